"""Logits of our decoder against the transformers class, on tiny random models of every family.

Tolerance: 2e-5 of the reference logits' standard deviation in float32. Real mistakes can be as small
as 5e-5 of it (a GELU of the wrong kind), so nothing looser would do.
"""

from itertools import zip_longest

import pytest
import torch
from safetensors.torch import load_file, save_file

from paragone.checkpoint.checkpoint import open_checkpoint
from paragone.engine.engine import Engine
from paragone.engine.params import SamplingParams
from paragone.engine.request import Request
from paragone.model.load import load_decoder
from paragone.model.paged import PagedCache, PagedStep, Part
from paragone.ops import implementation
from tests.tiny import CASES, WINDOW, Case

TOLERANCE = 2e-5
LENGTH = 48  # longer than the window and than llama3's and yarn's original context in the tiny configs


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    reference = request.param.save(folder)
    decoder = load_decoder(open_checkpoint(folder), "fp32")
    decoder.test_length = 31 if request.param.depends_on_length else LENGTH  # within the original context
    return reference, decoder


def ids_of(decoder, batch=2, length=LENGTH, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, decoder.spec.vocab_size, (batch, length), generator=generator)


def assert_close(got, want):
    worst = (got - want).abs().max() / want.std()
    assert worst <= TOLERANCE, f"differs by {worst:.1e} of the logits' standard deviation"


@torch.inference_mode()
def test_whole_sequence(pair):
    reference, decoder = pair
    ids = ids_of(decoder)
    assert_close(decoder(ids), reference(ids).logits)


@torch.inference_mode()
def test_reference_operations_agree(pair):
    reference, decoder = pair
    ids = ids_of(decoder)
    with implementation("reference"):
        assert_close(decoder(ids), reference(ids).logits)


@torch.inference_mode()
def test_prefill_then_single_steps(pair):
    reference, decoder = pair
    ids = ids_of(decoder, length=min(decoder.test_length, 30))
    want = reference(ids).logits
    cache = decoder.new_cache(2, 24)  # too small on purpose: it must grow
    got = [decoder(ids[:, :20], cache)]
    got += [decoder(ids[:, i : i + 1], cache) for i in range(20, 30)]
    assert_close(torch.cat(got, dim=1), want[:, :30])


@torch.inference_mode()
@pytest.mark.parametrize("chunk", [1, WINDOW - 1, WINDOW, 13])
def test_prefill_in_chunks(pair, chunk):
    reference, decoder = pair
    ids = ids_of(decoder, length=decoder.test_length)
    cache = decoder.new_cache(2, LENGTH)
    got = [decoder(ids[:, i : i + chunk], cache) for i in range(0, ids.shape[1], chunk)]
    assert_close(torch.cat(got, dim=1), reference(ids).logits)


@torch.inference_mode()
def test_two_texts_in_blocks(pair):
    """As the engine runs them: of unequal length, pieces of one beside single tokens of the other."""
    reference, decoder = pair
    length = decoder.test_length
    ids = ids_of(decoder, length=length)
    blocks = -(-length // 4)
    cache = PagedCache(decoder.spec, [2 * blocks] * 2, 4, decoder.dtype, decoder.device)
    tables = [[list(range(text, 2 * blocks, 2))] * len(cache.reaches) for text in range(2)]
    short = length - 10
    takes = [[20] + [1] * (length - 20), [0, 10, 1, 9] + [1] * (short - 20)]
    done, got = [0, 0], [[], []]
    for counts in zip_longest(*takes, fillvalue=0):
        texts = sorted((t for t in range(2) if counts[t]), key=lambda t: counts[t])
        step = PagedStep(cache, [Part(done[t], counts[t], counts[t], tables[t]) for t in texts])
        step_ids = torch.cat([ids[t, done[t] : done[t] + counts[t]] for t in texts])[None]
        cos_sin = [rope.cos_sin(step.positions, decoder.dtype, length) for rope in decoder.ropes]
        logits = decoder.logits(decoder.run(step_ids, cos_sin, step.positions, step))[0]
        for text, rows in zip(texts, logits.split_with_sizes([counts[t] for t in texts]), strict=True):
            got[text].append(rows)
            done[text] += counts[text]
    assert_close(torch.cat(got[0]), reference(ids[:1]).logits[0])
    assert_close(torch.cat(got[1]), reference(ids[1:, :short]).logits[0])


@pytest.mark.parametrize("case", [c for c in CASES if c.is_bitwise], ids=lambda case: case.name)
@torch.inference_mode()
def test_bfloat16_is_bitwise_equal(case: Case, tmp_path):
    """With reference operations even the rounding in bfloat16 is the reference's."""
    reference = case.build(dtype=torch.bfloat16)
    reference.save_pretrained(tmp_path)
    with implementation("reference"):
        decoder = load_decoder(open_checkpoint(tmp_path), "bf16")
        ids = ids_of(decoder)
        assert torch.equal(decoder(ids), reference(ids).logits)


def test_sharded_folder_loads_alike(tmp_path):
    case = CASES[1]
    case.save(tmp_path / "single")
    case.save(tmp_path / "sharded", max_shard_size="40KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    one = load_decoder(open_checkpoint(tmp_path / "single"), "fp32")
    many = load_decoder(open_checkpoint(tmp_path / "sharded"), "fp32")
    ids = ids_of(one)
    with torch.inference_mode():
        assert torch.equal(one(ids), many(ids))


WINDOWED = ["mistral_window", "phi3_window", "gemma2", "gemma3", "qwen2_window", "llama4"]


@torch.inference_mode()
@pytest.mark.parametrize("name", WINDOWED)
def test_windows_keep_only_their_window(name, tmp_path):
    """Beyond the window its layers' bytes stay flat, and every token is what a whole pass gives."""
    case = next(c for c in CASES if c.name == name)
    case.save(tmp_path)
    decoder = load_decoder(open_checkpoint(tmp_path), "fp32")
    ids = ids_of(decoder, batch=1, length=10 * WINDOW)
    cache = decoder.new_cache(1, 1)
    kept = {reach: [] for reach in cache.rooms}
    got = []
    for at in range(ids.shape[1]):
        got.append(decoder(ids[:, at : at + 1], cache))
        for layer, room in zip(cache.layers, cache.room_of, strict=True):
            kept[room.reach].append(layer.nbytes)
    assert_close(torch.cat(got, dim=1), decoder(ids))
    assert WINDOW in kept
    one_slot = 2 * decoder.spec.num_key_value_heads * decoder.spec.head_dim * 4
    for reach, sizes in kept.items():
        if reach is not None:
            assert max(sizes) <= 3 * reach * one_slot
    shorter = decoder.new_cache(1, 1)
    decoder(ids[:, :40], shorter)
    for length in (39, 36, 3):  # taken back a little it goes on, taken back far it begins anew
        shorter.truncate(length)
        assert shorter.length in ((length,) if length > 3 else (0, 3))
        begin = shorter.length
        assert_close(decoder(ids[:, begin:40], shorter), decoder(ids[:, :40])[:, begin:])


def relabelled(folder, target, change):
    """The same weights in a folder of their own, named otherwise."""
    target.mkdir()
    (target / "config.json").write_text((folder / "config.json").read_text())
    tensors = {}
    for name, value in load_file(folder / "model.safetensors").items():
        change(tensors, name, value)
    save_file({k: v.contiguous() for k, v in tensors.items()}, target / "model.safetensors")
    return load_decoder(open_checkpoint(target), "fp32")


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe", "bloom"])
@torch.inference_mode()
def test_other_layouts_load_alike(name, tmp_path):
    """Experts in stacks, as transformers 5 has them in memory; BLOOM without its prefix, as it is
    published."""
    case = next(c for c in CASES if c.name == name)
    case.save(tmp_path / "one")
    model = case.build()

    def stacked(tensors, name, value):
        if "experts." not in name:
            tensors[name.replace("block_sparse_moe", "mlp").removeprefix("transformer.")] = value

    def with_stacks(tensors, name, value):
        stacked(tensors, name, value)
        tensors |= {n: p for n, p in model.state_dict().items() if "mlp.experts." in n}

    one = load_decoder(open_checkpoint(tmp_path / "one"), "fp32")
    other = relabelled(tmp_path / "one", tmp_path / "other", stacked if name == "bloom" else with_stacks)
    ids = ids_of(one)
    assert torch.equal(one(ids), other(ids))


@torch.inference_mode()
def test_one_token_reads_only_the_chosen_experts(tmp_path):
    """In bytes: attention, router, two of four experts, head; and a dense model of all experts reads more."""
    case = next(c for c in CASES if c.name == "mixtral")
    case.save(tmp_path)
    decoder = load_decoder(open_checkpoint(tmp_path), "fp32")
    expert = 4 * 3 * 64 * 96
    assert decoder.weight_bytes - decoder.embedding_bytes - decoder.decode_bytes == 3 * (4 - 2) * expert
    touched = set()
    for layer, block in enumerate(decoder.blocks):
        for number, mlp in enumerate(block.mlp.experts):
            block.mlp.experts[number] = Spy(mlp, touched, (layer, number))
    decoder(ids_of(decoder, batch=1, length=1))
    assert len(touched) == 3 * 2


class Spy:
    def __init__(self, mlp, touched, key):
        self.mlp, self.touched, self.key = mlp, touched, key

    def __call__(self, x):
        self.touched.add(self.key)
        return self.mlp(x)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["phi3_longrope", "phi4_mini"])
def test_generation_across_the_original_context(name, tmp_path, smollm2_tokenizer):
    """Beyond the original context all tokens turn otherwise, those before included: each token must be what
    a whole pass over the text so far gives."""
    case = next(c for c in CASES if c.name == name)
    case.save(tmp_path)
    decoder = load_decoder(open_checkpoint(tmp_path), "fp32")
    for length in (20, 31, 32, 40):
        prompt = ids_of(decoder, batch=1, length=length)[0].tolist()
        request = Request(prompt, SamplingParams(max_tokens=16, ignore_eos=True))
        answer = Engine(decoder, smollm2_tokenizer).run([request])[0]
        want = list(prompt)
        for _ in range(16):
            want.append(int(decoder(torch.tensor([want]))[0, -1].argmax()))
        assert answer.token_ids == want[length:]
