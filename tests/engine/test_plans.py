"""What the plan of a whole model gives, beside PyTorch's modules with the same weights in float32."""

import json

import pytest
import torch

from paragone.checkpoint.checkpoint import open_checkpoint
from paragone.cli.main import run
from paragone.compare.measure import bundled_texts
from paragone.engine.load import load_tokenizer
from paragone.kernels import native
from paragone.model.forward import BLOCK_SIZE, Reader, TorchForward
from paragone.model.load import load_decoder
from paragone.model.paged import PagedCache, Part, reaches_of
from paragone.model.plan import Plan, why_no_plan
from paragone.ops import implementation
from paragone.ops.threads import with_threads
from tests.parity.test_families import ids_of
from tests.real import SMOLLM2, path_of
from tests.tiny import CASES

# Of the logits' standard deviation: what bfloat16 caches and inputs in few bits cost. Mixtures may send a token
# elsewhere, where two experts are as good as each other.
ERROR = {"bf16": 0.04, "int8": 0.08, "int4": 0.08}


def widened(decoder, folder):
    """The same weights in float32, on PyTorch."""
    wide = load_decoder(open_checkpoint(folder), "fp32")
    pairs = [(wide.head, decoder.head)]
    for there, here in zip(wide.blocks, decoder.blocks, strict=True):
        pairs += zip(there.linears(), here.linears(), strict=True)
    for there, here in pairs:
        there.parts = [p.dequantize().float() for p in here.parts]
    return wide


def errors_of(decoder, wide, length):
    """How far each token's logits are off, of a text in pieces and in single tokens."""
    assert why_no_plan(decoder) is None
    ids = ids_of(decoder, batch=1, length=length)[0].tolist()
    text, other = Reader(decoder, length), Reader(wide, length)
    assert isinstance(text.forward, Plan)
    assert isinstance(other.forward, TorchForward)
    pieces = [ids[:17], ids[17:20], *([token] for token in ids[20:])]
    got, want = (
        torch.cat([reader.logits(reader.read(piece, length))[0] for piece in pieces])
        for reader in (text, other)
    )
    best = text.logits(text.read([ids[0]], length + 1))[1]
    assert len(best) == 1
    return (got - want).abs().amax(1) / want.std()


@pytest.mark.parametrize("precision", ERROR)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@torch.inference_mode()
def test_every_family_runs_on_the_kernels(case, precision, tmp_path):
    """Half of the tokens must be close even where experts are chosen."""
    case.save(tmp_path)
    decoder = load_decoder(open_checkpoint(tmp_path), precision)
    off = errors_of(decoder, widened(decoder, tmp_path), 28 if case.depends_on_length else 40)
    mixed = decoder.spec.moe is not None
    assert (off.median() if mixed else off.max()) <= ERROR[precision], off


def apart(deterministic):
    """How far results may be apart, of their deviation, where other tokens are beside them. Matrix units multiply
    packed weights in bfloat16 from some number of tokens on."""
    return 2e-5 if deterministic or native.words_from > 1000 else ERROR["int4"]


def hidden_of(decoder, count, lengths, longest, wanted=None, *, deterministic=False):
    """Hidden states of two steps of several texts: their beginnings, of which so many last rows are wanted,
    then some tokens each."""
    with with_threads(count):
        blocks, pools = -(-longest // BLOCK_SIZE), len(reaches_of(decoder.spec))
        cache = PagedCache(
            decoder.spec, [blocks * len(lengths)] * pools, BLOCK_SIZE, decoder.dtype, decoder.device
        )
        forward, found = Plan(decoder, cache, deterministic=deterministic), []
        ids = ids_of(decoder, batch=len(lengths), length=longest).tolist()
        tables = [[list(range(n * blocks, (n + 1) * blocks))] * pools for n in range(len(lengths))]
        for first in (True, False):
            parts = [
                Part(0, n, n if wanted is None else wanted, table)
                if first
                else Part(n, 1 + row % 2, 1 + row % 2, table)
                for row, (n, table) in enumerate(zip(lengths, tables, strict=True))
            ]
            step = [
                token
                for part, row in zip(parts, ids, strict=True)
                for token in row[part.start : part.start + part.count]
            ]
            found.append(forward.hidden(step, parts, [longest] * len(parts)).clone())
        return found


@pytest.mark.parametrize("lengths", [[1, 20, 1, 2, 1], [7, 2, 5, 4, 3, 6]], ids=["cut", "whole texts"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@torch.inference_mode()
def test_a_step_in_pieces_is_the_step(case, lengths, tmp_path):
    """Threads that take rows of their own, one text's rows among several or whole texts, give what one thread
    gives."""
    case.save(tmp_path)
    decoder = load_decoder(open_checkpoint(tmp_path), "int4")
    for deterministic in {False, native.words_from < 1000}:
        many, one = (hidden_of(decoder, n, lengths, 24, deterministic=deterministic) for n in (2, 1))
        for got, want in zip(many, one, strict=True):
            off = (got - want).abs().amax(1) / want.std()
            experts = decoder.spec.moe is not None and not deterministic  # of which others may be chosen
            assert (off.median() if experts else off.max()) <= apart(deterministic), off


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@torch.inference_mode()
def test_rows_that_nobody_wants_change_nothing(case, count, tmp_path):
    """What the last layer does not compute of them is missed neither by the last rows nor by later tokens."""
    case.save(tmp_path)
    decoder = load_decoder(open_checkpoint(tmp_path), "int4")
    lengths = [1, 20, 1, 2, 9]
    for deterministic in {False, native.words_from < 1000}:
        (some, after), (every, later) = (
            hidden_of(decoder, count, lengths, 24, wanted, deterministic=deterministic)
            for wanted in (1, None)
        )
        last = torch.tensor(lengths).cumsum(0) - 1
        assert (some[last] - every[last]).abs().max() <= apart(deterministic) * every.std()
        assert (after - later).abs().max() <= apart(deterministic) * later.std()
        assert not torch.equal(some, every)  # the others are indeed left unfinished


@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("name", ["llama2_gqa", "mistral_window", "gemma3", "bloom"])
@torch.inference_mode()
def test_a_prompt_at_once_is_the_prompt_in_steps(name, eight_bit, tmp_path):
    """Of a long one, keys and values are brought into tiles once for all pieces of a step; of a short step, by each
    piece itself. Another text is beside it."""
    case = next(case for case in CASES if case.name == name)
    case.save(tmp_path)
    decoder = load_decoder(open_checkpoint(tmp_path), "bf16")
    ids = ids_of(decoder, batch=2, length=1000).tolist()
    reaches = reaches_of(decoder.spec)
    tables = [[list(range(n * 63, n * 63 + 63))] * len(reaches) for n in range(2)]

    def hidden(*steps):
        cache = PagedCache(
            decoder.spec, [126] * len(reaches), BLOCK_SIZE, decoder.dtype, decoder.device, eight_bit=eight_bit
        )
        plan, found, at = Plan(decoder, cache), [], 0
        for count in steps:
            parts = [Part(at, count, count, tables[0]), Part(at // 10, count // 10, count // 10, tables[1])]
            tokens = [
                t
                for part, row in zip(parts, ids, strict=True)
                for t in row[part.start : part.start + part.count]
            ]
            found.append(plan.hidden(tokens, parts, [1000] * 2)[:count].clone())
            at += count
        return torch.cat(found)

    with with_threads(2):
        off = (hidden(600, 300) - (want := hidden(*[100] * 9))).abs().amax(1) / want.std()
    assert off.max() <= ERROR["bf16"]
    assert off.median() <= ERROR["bf16"] / 4


@pytest.mark.parametrize(("precision", "most", "usual"), [("bf16", 0.02, 0.005), ("int8", 0.15, 0.04)])
@torch.inference_mode()
def test_a_real_model_runs_on_the_kernels(precision, most, usual):
    """SmolLM2 on real text, beside the same weights in float32: what inputs in few bits cost, of the logits'
    standard deviation. Where bfloat16 is multiplied in pairs, inputs are rounded to it, too."""
    if precision == "bf16" and native.pairs:
        most, usual = 0.04, 0.008
    checkpoint = open_checkpoint(path_of(SMOLLM2))
    decoder = load_decoder(checkpoint, precision)
    ids = load_tokenizer(checkpoint).encode(next(iter(bundled_texts().values()))[:600])
    text, other = Reader(decoder, len(ids)), Reader(widened(decoder, path_of(SMOLLM2)), len(ids))
    got, want = (reader.logits(reader.read(ids, len(ids)))[0] for reader in (text, other))
    off = (got - want).square().mean(1).sqrt() / want.std()
    assert off.max() <= most
    assert off.median() <= usual


def test_why_there_is_no_plan(tmp_path):
    next(case for case in CASES if case.name == "llama1").save(tmp_path)
    assert "float32" in why_no_plan(load_decoder(open_checkpoint(tmp_path), "fp32"))
    decoder = load_decoder(open_checkpoint(tmp_path), "bf16")
    assert why_no_plan(decoder) is None
    with implementation("torch"):
        assert "PARAGONE_OPS" in why_no_plan(decoder)


def test_inspect_says_what_runs_where(capsys):
    assert run(["inspect", "smollm2-135m-instruct", "--plan", "--precision", "int8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["why_not"] is None
    count = {row["operation"]: row["count"] for row in found["operations"]}
    kind = "int4+min/32" + (" (bf16 for many)" if native.words_from < 1000 else "")
    up = f"linear 3072 x 576: {kind} {kind}, after rms norm, then a gate of silu"
    assert count[f"{up}; linear 576 x 1536: {kind}"] == 30
    assert count[f"linear 576 x 576: {kind}"] == 30
    assert all(
        row["microseconds"] > 0 for row in found["operations"] if row["operation"].startswith("linear")
    )
    assert run(["inspect", "smollm2-135m-instruct", "--plan", "--precision", "fp32"]) == 0
    assert "runs on PyTorch: it computes in float32" in capsys.readouterr().out
