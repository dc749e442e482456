"""The deciding half of the engine, without torch: random workloads, and after every step everything adds up."""

import itertools
import multiprocessing
import random
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from paragone.engine.block_manager import NONE, BlockManager, hash_blocks, root_hash
from paragone.engine.params import SamplingParams
from paragone.engine.scheduler import Scheduler
from paragone.engine.sequence import Sequence, Status

BLOCK = 4


class Cache:
    """What keys and values would be: for every slot of every block, the tokens that decide its content."""

    def __init__(self, blocks):
        self.blocks = blocks
        self.held = [{} for _ in blocks.pools]

    def step(self, scheduled):
        """Writes what is computed, and checks that all that its tokens see is what their text says."""
        sequence = scheduled.sequence
        text = [*sequence.token_ids, *scheduled.draft]
        end = scheduled.start + scheduled.count
        for reach, table, held in zip(self.blocks.reaches, sequence.slots.tables, self.held, strict=True):
            for at in range(scheduled.start, end):
                assert table[at // BLOCK] != NONE
                held[table[at // BLOCK], at % BLOCK] = tuple(text[: at + 1]) if reach is None else text[at]
            first = 0 if reach is None else max(0, scheduled.start - reach + 1)
            for at in range(first, end):
                seen = held[table[at // BLOCK], at % BLOCK]
                assert seen == (tuple(text[: at + 1]) if reach is None else text[at])


def make(rng, reaches, *, find_prefixes=True, num_blocks=None):
    budget = rng.choice([5, 16, 64])
    counts = [
        num_blocks or (rng.randrange(12, 40) if reach is None else rng.randrange(-(-reach // BLOCK) + 2, 40))
        for reach in reaches
    ]
    blocks = BlockManager(reaches, counts, BLOCK, find_prefixes=find_prefixes)
    return Scheduler(blocks, rng.choice([1, 3, 8]), budget)


def sequence(number, scheduler, rng, prefixes):
    most = min(scheduler.blocks.capacity(), 60)
    prompt = list(rng.choice(prefixes)[: rng.randrange(0, most // 2)])
    prompt += [rng.randrange(5) for _ in range(rng.randrange(1, max(2, most // 3)))]
    prompt = prompt[: most - 2]
    answer = rng.randrange(1, most - len(prompt))
    return Sequence(
        number,
        prompt,
        SamplingParams(),
        answer,
        scheduler.blocks.new_slots(),
        rng.choice([0, 0, 0, 1]),
        b"root",
    )


def truth(sequence, at):
    """The token that the model says after a text: a function of the text alone."""
    return hash((sequence.number, at)) % 5


def run(seed, steps, reaches):
    rng = random.Random(seed)
    scheduler = make(rng, reaches)
    cache = Cache(scheduler.blocks)
    prefixes = [[rng.randrange(5) for _ in range(40)] for _ in range(3)]
    live, done, number = [], 0, 0
    for _ in range(steps):
        while len(live) < 12 and rng.random() < 0.4:
            new = sequence(number, scheduler, rng, prefixes)
            number += 1
            live.append(new)
            scheduler.add(new)
        if live and rng.random() < 0.03:
            scheduler.remove(live.pop(rng.randrange(len(live))))
        for s in live:  # guesses, some right, some wrong
            if s.status is Status.RUNNING and rng.random() < 0.3:
                known = [truth(s, len(s.token_ids) + i) for i in range(3)]
                left = s.max_tokens - s.num_answer
                s.draft = [t if rng.random() < 0.7 else 9 for t in known][: max(0, left - 1)]
        batch = scheduler.schedule()
        assert batch.num_tokens <= scheduler.max_num_batched_tokens
        assert batch.scheduled or batch.preempted or not live
        for part in batch.scheduled:
            cache.step(part)
        for part in batch.scheduled:
            s, new = part.sequence, []
            for i in range(part.num_logits):
                new.append(truth(s, len(s.token_ids) + i))
                if i < len(part.draft) and part.draft[i] != new[-1]:
                    break
            scheduler.commit(part, new)
            s.draft = []
            if s.num_answer >= s.max_tokens:
                scheduler.remove(s)
                live.remove(s)
                done += 1
                want = [truth(s, i) for i in range(len(s.prompt_ids), len(s.token_ids))]
                assert s.answer_ids == want
        scheduler.check()
    for s in live:
        scheduler.remove(s)
    scheduler.check()
    assert all(pool.num_free == pool.num_blocks for pool in scheduler.blocks.pools)
    return done, scheduler


@pytest.mark.parametrize("reaches", [(None,), (None, 7), (7,), (9, 16)])
def test_random_workloads(reaches):
    done = hits = preempted = 0
    for seed in range(50):
        finished, scheduler = run(seed, 500, reaches)
        done += finished
        hits += scheduler.blocks.hits
        preempted += scheduler.num_preemptions
    assert done > 1000
    assert hits > 1000
    assert preempted > 100


def test_the_first_in_line_is_served_first():
    """Nobody starves: with requests coming all the time, each runs before any that came later ends its wait."""
    rng = random.Random(1)
    scheduler = make(rng, (None,), num_blocks=20)
    scheduler.max_num_seqs = 2
    started = []
    for number in range(200):
        new = Sequence(number, [1] * 20, SamplingParams(), 8, scheduler.blocks.new_slots())
        scheduler.add(new)
        for part in scheduler.schedule().scheduled:
            if part.sequence.number not in started:
                started.append(part.sequence.number)
            scheduler.commit(part, [2] * part.num_logits)
            if part.sequence.num_answer >= 8:
                scheduler.remove(part.sequence)
    assert started == sorted(started)
    assert len(started) > 15


def test_the_important_go_first_and_push_others_out():
    blocks = BlockManager((None,), (10,), BLOCK, find_prefixes=False)
    scheduler = Scheduler(blocks, 8, 64)
    low = Sequence(0, [1] * 30, SamplingParams(), 8, blocks.new_slots(), priority=5)
    scheduler.add(low)
    for part in scheduler.schedule().scheduled:
        scheduler.commit(part, [3])
    high = Sequence(1, [2] * 30, SamplingParams(), 8, blocks.new_slots(), priority=0)
    scheduler.add(high)
    batch = scheduler.schedule()
    assert [p.sequence for p in batch.scheduled] == [high]
    assert batch.preempted == [low]
    assert low.token_ids == [1] * 30 + [3]
    scheduler.check()


def test_long_prompts_do_not_hold_up_answers():
    blocks = BlockManager((None,), (100,), BLOCK, find_prefixes=False)
    scheduler = Scheduler(blocks, 8, 16)
    short = Sequence(0, [1, 2], SamplingParams(), 50, blocks.new_slots())
    scheduler.add(short)
    scheduler.commit(scheduler.schedule().scheduled[0], [3])
    long = Sequence(1, [1] * 200, SamplingParams(), 5, blocks.new_slots())
    scheduler.add(long)
    for _ in range(12):
        batch = scheduler.schedule()
        assert [(p.sequence, p.count) for p in batch.scheduled] == [(short, 1), (long, 15)]
        for part in batch.scheduled:
            scheduler.commit(part, [3] * part.num_logits)


def test_guesses_take_nobody_s_token():
    scheduler = Scheduler(BlockManager([None], [100], 4, find_prefixes=False), 8, 16)
    sequences = [Sequence(n, [1, 2], SamplingParams(), 50, scheduler.blocks.new_slots()) for n in range(4)]
    for s in sequences:
        scheduler.add(s)
    for _ in range(2):
        batch = scheduler.schedule()
        assert {part.sequence.number for part in batch.scheduled} == {0, 1, 2, 3}
        for part in batch.scheduled:
            scheduler.commit(part, [5] if part.num_logits else [])
        for s in sequences:
            s.draft = [5] * 7
    assert batch.num_tokens <= 16


def test_what_waits_is_hashed_once(monkeypatch):
    from paragone.engine import block_manager

    hashed, original = [], block_manager.hash_blocks
    monkeypatch.setattr(block_manager, "hash_blocks", lambda *a: hashed.append(a[3] - a[2]) or original(*a))
    scheduler = Scheduler(BlockManager([None], [20], 4, find_prefixes=True), 8, 60)
    for n in range(2):
        scheduler.add(Sequence(n, [n] * 60, SamplingParams(), 15, scheduler.blocks.new_slots()))
    for _ in range(10):
        for part in scheduler.schedule().scheduled:
            scheduler.commit(part, [7] if part.num_logits else [])
    assert hashed.count(14) == 2
    assert sum(hashed) < 60  # and once more as they are computed
    assert scheduler.blocks.queries == 60


def test_hashes_depend_on_all_that_comes_before():
    ids = list(range(12))
    root = root_hash("model", "tenant")
    whole = hash_blocks(root, ids, 0, 3, BLOCK)
    assert hash_blocks(whole[0], ids, 1, 3, BLOCK) == whole[1:]
    assert not set(whole) & set(hash_blocks(root_hash("model", "other"), ids, 0, 3, BLOCK))
    assert not set(whole) & set(hash_blocks(root, [99, *ids[1:]], 0, 3, BLOCK))


def eight_bytes_of_hashes(model, tenant):
    """Of the hashes of a million blocks that are all alike."""
    count = 1_000_000
    hashes = hash_blocks(root_hash(model, tenant), [0] * (2 * count), 0, count, 2)
    return np.frombuffer(b"".join(hashes), "<u8")[::4].copy()


def test_ten_million_blocks_have_ten_million_hashes():
    """Of the texts that are most alike: one token again and again, for many tenants and models (row 18). Eight
    of a hash's 32 bytes suffice to tell them apart."""
    models, tenants = zip(*itertools.product(("m", "mm"), ("", "m", "t", "tt", "\x00")), strict=True)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        found = pool.map(eight_bytes_of_hashes, models, tenants)
        whole = np.concatenate(list(found))
    assert len(whole) == 10_000_000 == len(np.unique(whole))


def test_deciding_needs_no_torch():
    code = "import paragone.engine.scheduler, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
