"""Many requests at once: add them, step until they are done, take one out at any moment.

engine = Engine(model.decoder, model.tokenizer)
number = engine.add(Request(prompt_ids, SamplingParams(max_tokens=20)))
while engine.has_work():
    for chunk in engine.step():
        print(chunk.index, chunk.text)
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from paragone.engine.block_manager import BlockManager, root_hash
from paragone.engine.generate import Request, check_request
from paragone.engine.model_runner import ModelRunner
from paragone.engine.request import Chunk, Completion, FinishReason, TokenLogprobs
from paragone.engine.resources import available_memory_bytes
from paragone.engine.sampler import Sampler
from paragone.engine.scheduler import Batch, Scheduled, Scheduler
from paragone.engine.sequence import Sequence, Status
from paragone.errors import ContextLengthExceeded, UsageError
from paragone.model.decoder import Decoder
from paragone.model.paged import block_bytes, reaches_of
from paragone.text.stream import TextStream
from paragone.text.tokenizer import Tokenizer

CACHE_SHARE = 0.25  # of the memory that is free, for keys and values, where nothing else is asked for


@dataclass(frozen=True)
class EngineConfig:
    """How much is done at once. `kv_cache_bytes` None: a quarter of the memory that is free, at most what
    `max_num_seqs` full contexts need."""

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    block_size: int = 16
    kv_cache_bytes: int | None = None
    find_prefixes: bool = True


@dataclass(frozen=True)
class StepStats:
    """What one step was: sequences and tokens, and the state after it."""

    running: int
    waiting: int
    prefill_tokens: int
    decode_tokens: int
    blocks_used: int
    blocks: int
    preempted: int
    prefix_hit_rate: float
    schedule_s: float
    compute_s: float
    sample_s: float


@dataclass(eq=False)
class _Answer:
    """What the engine keeps for a sequence beside what the scheduler needs."""

    sequence: Sequence
    sampler: Sampler
    stream: TextStream
    request: Request
    completion: Completion
    tenant: str
    begun: float = field(default_factory=time.perf_counter)


class Engine:
    """Runs requests together: they join and leave at every step."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, config: EngineConfig | None = None) -> None:
        """Raises UsageError where the memory asked for does not hold one token's keys and values."""
        self.config = config = config or EngineConfig()
        self.decoder, self.tokenizer = decoder, tokenizer
        reaches = reaches_of(decoder.spec)
        counts = num_blocks(decoder, config)
        self.blocks = BlockManager(reaches, counts, config.block_size, find_prefixes=config.find_prefixes)
        self.scheduler = Scheduler(self.blocks, config.max_num_seqs, config.max_num_batched_tokens)
        self.runner = ModelRunner(decoder, counts, config.block_size)
        self.stats: StepStats | None = None
        self._answers: dict[int, _Answer] = {}
        self._next = 0

    def add(self, request: Request, *, priority: int = 0, tenant: str = "") -> int:
        """Puts a request in line and returns its number. Raises before any work where it can never run.
        Cached beginnings are shared only within a `tenant`."""
        limit = check_request(request, self.decoder)
        room = self.blocks.capacity()
        prompt = len(request.prompt_ids)
        if prompt >= room:
            raise ContextLengthExceeded(
                f"the prompt has {prompt} tokens and the cache holds {room}: shorten it, or give more memory"
            )
        params = request.params.seeded()
        number, self._next = self._next, self._next + 1
        sequence = Sequence(
            number, request.prompt_ids, params, min(limit, room - prompt), self.blocks.new_slots(), priority
        )
        sequence.root = self._root(tenant, prompt)
        adds_space = request.chat and self.tokenizer.backend.adds_space
        self._answers[number] = _Answer(
            sequence,
            Sampler(params, request.prompt_ids, self.decoder.spec.vocab_size),
            TextStream((*params.stop, *request.stop), drop_first_space=adds_space),
            request,
            Completion("", [], "cancelled", prompt, params),
            tenant,
        )
        self.scheduler.add(sequence)
        return number

    def has_work(self) -> bool:
        """Whether any request is not finished."""
        return bool(self._answers)

    def abort(self, number: int) -> Completion | None:
        """Ends a request now and frees all that it holds. None where it has ended already."""
        answer = self._answers.pop(number, None)
        if answer is None:
            return None
        self.scheduler.remove(answer.sequence)
        answer.completion.text += answer.stream.finish()
        return answer.completion

    def step(self) -> list[Chunk]:
        """One step of all that runs: what became certain of each answer. A chunk with a finish reason is a
        request's last, and brings its completion. What fails ends requests of its own step at most, with the
        reason "error"; the others go on as if nothing had been."""
        failed: list[Chunk] = []
        begin = time.perf_counter()
        batch = self._plan(failed)
        planned = time.perf_counter()
        computed = self._compute(batch, failed)
        ready = time.perf_counter()
        chunks = failed if computed is None else failed + self._take_all(batch, *computed)
        if batch.scheduled:
            spent = planned - begin, ready - planned, time.perf_counter() - ready
            self.stats = self._step_stats(batch, *spent)
        return chunks

    def _plan(self, failed: list[Chunk]) -> Batch:
        """The next batch. Where planning fails twice, the newest request is given up for it."""
        for attempt in range(2):
            try:
                return self.scheduler.schedule()
            except Exception as err:
                self.scheduler.recover()
                if attempt and self._answers:
                    failed.append(self._fail(self._answers[max(self._answers)], err))
        return Batch()

    def _compute(self, batch: Batch, failed: list[Chunk]) -> tuple[Tensor, list[int]] | None:
        """The batch's logits, and the most likely token of every row: most requests want nothing else. Where
        it fails, it is tried once more without its newest request; where that fails as well, all of its
        requests end."""
        for attempt in range(2):
            if not batch.scheduled:
                return None
            try:
                logits = self.runner.forward(batch)
                return logits, logits.float().argmax(-1).tolist()
            except Exception as err:
                newest = max(batch.scheduled, key=lambda part: part.sequence.number)
                given_up = [newest] if attempt == 0 else list(batch.scheduled)
                batch.scheduled = [part for part in batch.scheduled if part not in given_up]
                failed += [self._fail(self._answers[part.sequence.number], err) for part in given_up]
        return None

    def _fail(self, answer: _Answer, err: Exception) -> Chunk:
        """Ends a request that something happened to."""
        number, completion = answer.sequence.number, answer.completion
        del self._answers[number]
        self.scheduler.remove(answer.sequence)
        completion.finish_reason, completion.error = "error", f"{type(err).__name__}: {err}"
        return Chunk(number, "", (), (), "error", completion)

    def _take_all(self, batch: Batch, logits: Tensor, best: list[int]) -> list[Chunk]:
        """The choices of all requests; what fails in one concerns only that one."""
        chunks, row = [], 0
        for part in batch.scheduled:
            rows = slice(row, row + part.num_logits)
            row += part.num_logits
            answer = self._answers[part.sequence.number]
            try:
                chunk = self._take_one(answer, part, logits[rows], best[rows])
            except Exception as err:
                chunk = self._fail(answer, err)
            chunks += [chunk] if chunk else []
        return chunks

    def _take_one(self, answer: _Answer, part: Scheduled, rows: Tensor, best: list[int]) -> Chunk | None:
        """Chooses a request's next tokens and says what became certain; None while its prompt is computed."""
        tokens, entries = self._choose(answer, part, rows, best)
        self.scheduler.commit(part, tokens)
        if not tokens:
            return None
        chunk = self._take(answer, tokens, entries)
        if chunk.finish_reason is not None:
            self.scheduler.remove(part.sequence)
            del self._answers[part.sequence.number]
        else:
            self._follow_regime(answer)
        return chunk

    @staticmethod
    def _choose(
        answer: _Answer, part: Scheduled, rows: Tensor, best: list[int]
    ) -> tuple[list[int], list[TokenLogprobs]]:
        """The next tokens: one, and one more for each guess that turns out right."""
        tokens: list[int] = []
        entries: list[TokenLogprobs] = []
        for at in range(part.num_logits):
            token, logprobs = answer.sampler.choose(rows[at], best[at])
            tokens.append(token)
            entries += [logprobs] if logprobs else []
            if at < len(part.draft) and part.draft[at] != token:
                break
        return tokens, entries

    def _take(self, answer: _Answer, tokens: list[int], entries: list[TokenLogprobs]) -> Chunk:
        """Adds tokens to an answer, up to its end, and says what became certain."""
        completion, sequence = answer.completion, answer.sequence
        now = time.perf_counter() - answer.begun
        if not completion.token_ids:
            completion.ttft_s = now
        completion.total_s = now
        text, reason, taken = "", None, 0
        for token in tokens:
            taken += 1
            completion.token_ids.append(token)
            piece, reason = self._push(answer, token)
            text += piece
            if reason is None and len(completion.token_ids) >= sequence.max_tokens:
                reason = "length"
            if reason is not None:
                text += answer.stream.finish()
                reason = "stop" if answer.stream.stopped else reason
                completion.finish_reason = reason
                break
        completion.text += text
        completion.logprobs += entries[:taken]
        ended = completion if reason is not None else None
        return Chunk(sequence.number, text, tuple(tokens[:taken]), tuple(entries[:taken]), reason, ended)

    def _push(self, answer: _Answer, token: int) -> tuple[str, FinishReason | None]:
        """A token's text, and whether it or a stop string ends the answer."""
        tokenizer = self.tokenizer
        if token in tokenizer.stop_ids and not answer.request.params.ignore_eos:
            return "", "stop"
        # Special tokens are the model's punctuation between turns, not part of a text.
        shown = tokenizer.knows(token) and not tokenizer.is_special(token)
        text = answer.stream.push(tokenizer.token_bytes(token) if shown else b"")
        return text, "stop" if answer.stream.stopped else None

    def _follow_regime(self, answer: _Answer) -> None:
        """Where the ropes turn a longer text otherwise, what is computed does not count any more."""
        sequence = answer.sequence
        length = len(sequence.token_ids)
        if self.decoder.regime(length) != self.decoder.regime(length - 1):
            self.scheduler.restart(sequence)
            sequence.root = self._root(answer.tenant, length)

    def _root(self, tenant: str, length: int) -> bytes:
        return root_hash(tenant, self.decoder.regime(length))

    def _step_stats(self, batch: Batch, schedule_s: float, compute_s: float, sample_s: float) -> StepStats:
        decode = sum(s.count for s in batch.scheduled if s.num_logits and s.count == s.num_logits)
        pool = self.blocks.pools[0]
        return StepStats(
            len(self.scheduler.running),
            len(self.scheduler.waiting),
            batch.num_tokens - decode,
            decode,
            pool.num_blocks - pool.num_free,
            pool.num_blocks,
            len(batch.preempted),
            self.blocks.hits / self.blocks.queries if self.blocks.queries else 0.0,
            schedule_s,
            compute_s,
            sample_s,
        )

    def run(self, requests: Iterable[Request]) -> list[Completion]:
        """All answers of a batch, in the order of the requests."""
        numbers = [self.add(request) for request in requests]
        done: dict[int, Completion] = {}
        while len(done) < len(numbers):
            for chunk in self.step():
                if chunk.completion is not None:
                    done[chunk.index] = chunk.completion
        return [done[number] for number in numbers]

    def check(self) -> None:
        """Raises AssertionError where the engine's state contradicts itself."""
        self.scheduler.check()
        live = {s.number for s in (*self.scheduler.waiting, *self.scheduler.running)}
        if live != self._answers.keys() or any(
            a.sequence.status is Status.FINISHED for a in self._answers.values()
        ):
            raise AssertionError("answers and sequences differ")


def num_blocks(decoder: Decoder, config: EngineConfig) -> list[int]:
    """Blocks of each pool: as many tokens as the memory allows; layers with a reach need no more than it for
    every sequence that runs."""
    spec, size = decoder.spec, config.block_size
    reaches = reaches_of(spec)
    each = [block_bytes(spec, reach, size, decoder.dtype.itemsize) for reach in reaches]
    budget = config.kv_cache_bytes
    if budget is None:
        budget = int(CACHE_SHARE * available_memory_bytes())
    full = -(-spec.max_position_embeddings // size) * config.max_num_seqs

    def counts(blocks: int) -> list[int]:
        out = []
        for reach in reaches:
            step = config.max_num_batched_tokens
            most = blocks if reach is None else ((reach + step) // size + 2) * config.max_num_seqs
            out.append(min(blocks, most))
        return out

    low, high = 0, full
    while low < high:  # the most blocks that fit
        middle = (low + high + 1) // 2
        fits = sum(n * b for n, b in zip(counts(middle), each, strict=True)) <= budget
        low, high = (middle, high) if fits else (low, middle - 1)
    if low < 2:
        raise UsageError(f"{budget:,} bytes do not hold two blocks of keys and values ({sum(each):,} each)")
    return counts(low)
