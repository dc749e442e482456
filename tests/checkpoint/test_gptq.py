"""GPTQ and AWQ files: what they mean, that their integers are kept, and that wrong ones are refused by name."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from paragone.checkpoint.checkpoint import open_checkpoint
from paragone.errors import BadConfiguration, MalformedData
from paragone.model.load import load_decoder
from tests.engine.test_plans import ERROR, errors_of, widened
from tests.parity.test_families import assert_close, ids_of
from tests.tiny import CASES

CODED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
KINDS = [
    ("gptq", 4, 32), ("gptq", 4, -1), ("gptq", 8, 32), ("gptq_v2", 4, 32), ("awq", 4, 32),
    ("gptq_act", 4, 32), ("gptq_act", 8, 32),
]  # fmt: skip


def words(codes, bits, axis, order=None):
    """Codes to 32-bit words along an axis, one after the other from the lowest bits up, written down once more."""
    per = 32 // bits
    moved = np.moveaxis(codes, axis, -1).astype(np.uint64)
    groups = moved.reshape(*moved.shape[:-1], -1, per)
    out = np.zeros(groups.shape[:-1], dtype=np.uint64)
    for place in range(per):
        out |= groups[..., place if order is None else order[place]] << np.uint64(bits * place)
    return np.moveaxis(out.astype(np.uint32).view(np.int32), -1, axis).copy()


def write(folder, target, kind, bits, size, change=lambda tensors, config: None):
    """The folder's linear weights as such a file, and the same as plain float32 beside it."""
    rng = np.random.default_rng(0)
    tensors, plain, kept = {}, {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        base, _, last = name.removesuffix(".weight").rpartition(".")
        if last not in CODED:
            tensors[name] = plain[name] = weight
            continue
        rows, width = weight.shape
        group = width if size == -1 else size
        codes = rng.integers(0, 1 << bits, (rows, width))
        zeros = rng.integers(1, 1 << bits, (rows, width // group))
        scales = (np.abs(weight).mean() / (1 << bits) * (1 + rng.random(zeros.shape))).astype(np.float16)
        of_group = np.arange(width) // group
        if kind == "gptq_act":  # the same for what reads the same inputs, as such files have it
            of_group = np.random.default_rng(width + (last == "up_proj")).permutation(of_group)
        spread = [part[:, of_group] for part in (scales.astype(np.float32), zeros)]
        plain[name] = ((codes - spread[1]) * spread[0]).astype(np.float32)
        kept[name] = codes
        stem = f"{base}.{last}."
        tensors[stem + "scales"] = scales.T.copy()
        if kind == "awq":
            order = (0, 2, 4, 6, 1, 3, 5, 7)
            tensors[stem + "qweight"] = words(codes.T, bits, 1, order)
            tensors[stem + "qzeros"] = words(zeros.T, bits, 1, order)
        else:
            tensors[stem + "qweight"] = words(codes.T, bits, 0)
            tensors[stem + "qzeros"] = words(zeros.T - (kind != "gptq_v2"), bits, 1)
            tensors[stem + "g_idx"] = of_group.astype(np.int32)
    config = json.loads((folder / "config.json").read_text())
    coded = config | {
        "quantization_config": {"quant_method": kind.partition("_")[0], "bits": bits, "group_size": size}
        | (
            {"version": "gemm", "zero_point": True}
            if kind == "awq"
            else {"checkpoint_format": "gptq_v2" if kind == "gptq_v2" else "gptq"}
        )
    }
    change(tensors, coded)
    for where, values, text in ((target, tensors, coded), (target / "plain", plain, config)):
        where.mkdir(parents=True, exist_ok=True)
        (where / "config.json").write_text(json.dumps(text))
        save_file(values, where / "model.safetensors", metadata={"format": "pt"})
    return kept


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    next(case for case in CASES if case.name == "llama2_gqa").save(path)
    return path


@pytest.mark.parametrize(("kind", "bits", "size"), KINDS)
@torch.inference_mode()
def test_what_the_codes_mean(kind, bits, size, folder, tmp_path):
    kept = write(folder, tmp_path / "m", kind, bits, size)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "m" / "plain", dtype=torch.float32)
    decoder = load_decoder(open_checkpoint(tmp_path / "m"), "fp32")
    ids = ids_of(decoder)
    assert_close(decoder(ids), reference(ids).logits)
    packed = load_decoder(open_checkpoint(tmp_path / "m"), "int8" if bits == 8 else "int4")
    for part, name in zip(packed.blocks[0].attn.qkv.parts, "qkv", strict=True):
        codes = kept[f"model.layers.0.self_attn.{name}_proj.weight"]
        assert part.packing.bits == bits
        scale = part._scales(0).permute(0, 3, 1, 2).flatten(0, 1).flatten(1).float()[: len(codes)]
        low = part._scales(1).permute(0, 3, 1, 2).flatten(0, 1).flatten(1).float()[: len(codes)]
        scale, low = (t.repeat_interleave(32, 1)[:, : codes.shape[1]] for t in (scale, low))
        values = part.dequantize()
        values, codes = (
            (values, codes) if part.order is None else (values[:, part.order], codes[:, part.order])
        )
        found = ((values - low) / scale + (128 if bits == 8 else 0)).round()
        assert np.array_equal(found.numpy().astype(int), codes)


@pytest.mark.parametrize(("kind", "bits", "size"), KINDS)
@torch.inference_mode()
def test_the_kernels_compute_with_the_codes(kind, bits, size, folder, tmp_path):
    write(folder, tmp_path / "m", kind, bits, size)
    decoder = load_decoder(open_checkpoint(tmp_path / "m"), "int8")
    assert errors_of(decoder, widened(decoder, tmp_path / "m"), 40).max() < ERROR["int8"]


def drop(part):
    def change(tensors, _):
        tensors.pop(next(name for name in tensors if name.endswith(part)))

    return change


def reshape(tensors, _):
    name = next(name for name in tensors if name.endswith("scales"))
    tensors[name] = tensors[name][:, :-8].copy()


def unbalance(tensors, _):
    name = next(name for name in tensors if name.endswith("g_idx"))
    tensors[name][0] += 1


def setting(**values):
    return lambda _, config: config["quantization_config"].update(values)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (drop("qzeros"), MalformedData, "no qzeros or no scales"),
        (drop("scales"), MalformedData, "no qzeros or no scales"),
        (reshape, MalformedData, "do not fit each other"),
        (unbalance, MalformedData, "does not put 32 inputs into each group"),
        (setting(bits=3), BadConfiguration, "3 bits"),
        (setting(bits="4"), BadConfiguration, "bits"),
        (setting(group_size=0), BadConfiguration, "group_size 0"),
        (setting(group_size=7), BadConfiguration, "group_size 7"),
        (setting(group_size=128), MalformedData, "do not fit each other"),
        (setting(quant_method="bitsandbytes"), BadConfiguration, "bitsandbytes"),
        (lambda _, config: config.update(quantization_config=[]), BadConfiguration, "no object"),
        (lambda _, config: config.pop("quantization_config"), MalformedData, "whole numbers"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, says, folder, tmp_path):
    write(folder, tmp_path / "m", "gptq", 4, 32, change)
    with pytest.raises(error, match=says):
        load_decoder(open_checkpoint(tmp_path / "m"), "int4")
