"""The parity of every family and the mistakes that its test sees: `python -m tests.parity.table [--write]`.

Prints two tables and ends in one JSON line; with --write they become docs/parity.md as well.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers as hf

from paragone.checkpoint.checkpoint import open_checkpoint
from paragone.model.load import load_decoder
from paragone.model.precision import estimate_bytes
from tests.parity.mutations import MUTATIONS, differences
from tests.tiny import CASES, WINDOW, spec_from

QWEN3_30B = hf.Qwen3MoeConfig(
    hidden_size=2048, num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4, head_dim=128,
    num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768, vocab_size=151_936,
)  # fmt: skip
PAGE = Path(__file__).parents[2] / "docs" / "parity.md"
TOLERANCE = 2e-5
INTRODUCTION = f"""# Parity with the reference implementations

Made by `make parity`. Tiny random models of every family, every parameter random, vectors included; 48 tokens,
float32; the largest difference of any logit from transformers' class, over the standard deviation of the
logits. The tests allow {TOLERANCE:g} and also cover texts in blocks, caches, chunks, bfloat16 and GGUF.

"""


def window_lines() -> list[str]:
    """Cache bytes as a text grows: held by tiny models, and by the spec for the sizes of real ones."""
    lines = [
        "## What windows keep",
        "",
        f"Bytes of cache that the tiny models (window or chunk of {WINDOW}, float32) hold after so many windows of",
        "single steps, and what they would hold if every layer kept everything.",
        "",
        "| model | layers | 1 | 2 | 4 | 8 | 8, all kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ("mistral_window", "phi3_window", "gemma2", "gemma3", "qwen2_window", "llama4"):
        with tempfile.TemporaryDirectory() as folder:
            next(case for case in CASES if case.name == name).save(Path(folder))
            decoder = load_decoder(open_checkpoint(Path(folder)), "fp32")
        spec, cache, held = decoder.spec, decoder.new_cache(1, 1), {}
        for at in range(8 * WINDOW):
            decoder.hidden(torch.tensor([[at % spec.vocab_size]]), cache)
            if (at + 1) % WINDOW == 0:
                held[(at + 1) // WINDOW] = sum(
                    room_bytes(spec, layer, room, cache.length)
                    for layer, room in zip(cache.layers, cache.room_of, strict=True)
                )
        kept = sum(layer.attention != "full" for layer in spec.layers)
        whole = 8 * WINDOW * kv_slot_bytes(spec, 4) * spec.num_layers
        cells = [f"{held[n]:,}" for n in (1, 2, 4, 8)]
        lines.append(f"| {name} | {kept} of {spec.num_layers} windowed | {' | '.join(cells)} | {whole:,} |")
    lines += [
        "",
        "At the sizes of the reference classes' defaults, bfloat16, 32,768 tokens, in MB:",
        "",
        "| model | kept | if every layer kept everything |",
        "|---|---|---|",
    ]
    for title, config in (
        ("Mistral 7B v0.1 (window 4,096)", hf.MistralConfig()),
        ("Gemma 2 2B (window 4,096 on every other layer)", hf.Gemma2Config()),
        ("Gemma 3 (window 4,096 on five of six layers)", hf.Gemma3TextConfig()),
    ):
        spec = spec_from(config)
        whole = 32_768 * kv_slot_bytes(spec, 2) * spec.num_layers
        lines.append(f"| {title} | {spec.kv_bytes(32_768, 2) / 1e6:,.0f} | {whole / 1e6:,.0f} |")
    return lines


def expert_lines() -> list[str]:
    """Bytes of weights that one token reads from a mixture, and from all its experts together."""
    lines = [
        "## What a token reads of a mixture",
        "",
        "Bytes of weights for one token, embedding rows aside; a dense model with all the experts reads the last",
        "column. Tiny ones as counted by the loaded model (float32), whose tests also see which experts are touched.",
        "",
        "| model | experts | read | all experts |",
        "|---|---|---|---|",
    ]
    for name in ("mixtral", "qwen2_moe", "qwen3_moe", "llama4"):
        with tempfile.TemporaryDirectory() as folder:
            next(case for case in CASES if case.name == name).save(Path(folder))
            decoder = load_decoder(open_checkpoint(Path(folder)), "fp32")
            moe = decoder.spec.moe
            every = decoder.weight_bytes - decoder.embedding_bytes
            which = f"{moe.top_k} of {moe.num_experts}"
            lines.append(f"| {name}, tiny | {which} | {decoder.decode_bytes:,} | {every:,} |")
    for title, config in (("Mixtral 8x7B", hf.MixtralConfig()), ("Qwen3-30B-A3B", QWEN3_30B)):
        spec = spec_from(config)
        moe = spec.moe
        every = estimate_bytes(spec, "bf16") - 2 * spec.vocab_size * spec.hidden_size
        mixed = sum(layer.moe for layer in spec.layers)
        idle = 2 * mixed * (moe.num_experts - moe.top_k) * 3 * spec.hidden_size * moe.intermediate_size
        which = f"{moe.top_k} of {moe.num_experts}"
        lines.append(f"| {title}, bf16 | {which} | {(every - idle) / 1e9:.1f} GB | {every / 1e9:.1f} GB |")
    return lines


def kv_slot_bytes(spec, bytes_per_number):
    """Bytes of one slot of one layer."""
    return 2 * spec.num_key_value_heads * spec.head_dim * bytes_per_number


def room_bytes(spec, layer, room, length):
    """Bytes that a layer holds: of a window all that is reserved, else what is filled."""
    return layer.nbytes if room.reach is not None else length * kv_slot_bytes(spec, layer.element_size())


@torch.inference_mode()
def main() -> None:
    right, seen = {}, {}
    for case in CASES:
        print(case.name, file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            found = differences(case, Path(folder))
        right[case.name] = found.pop("")
        for name, size in found.items():
            seen.setdefault(name, {})[case.name] = size
    lines = ["| model | largest difference |", "|---|---|"]
    lines += [f"| {name} | {size:.1e} |" for name, size in right.items()]
    lines += [
        "",
        "## Mistakes put in on purpose",
        "",
        "How far each moves the logits of the families that it concerns,",
    ]
    lines += [
        "in the same measure. All must be beyond the tolerance.",
        "",
        "| mistake | moves | least |",
        "|---|---|---|",
    ]
    for mutation in MUTATIONS:
        cases = seen[mutation.name]
        names = ", ".join(f"{name} {size:.0e}" for name, size in cases.items())
        lines.append(f"| {mutation.name} | {names} | {min(cases.values()):.1e} |")
    lines += ["", *window_lines(), "", *expert_lines()]
    text = "\n".join(lines) + "\n"
    print(text)
    if "--write" in sys.argv[1:]:
        PAGE.write_text(INTRODUCTION + text)
    sizes = [size for cases in seen.values() for size in cases.values()]
    summary = {
        "families": len(CASES),
        "worst_diff_over_std": float(f"{max(right.values()):.2g}"),
        "mutations": len(sizes),
        "caught": sum(size > TOLERANCE for size in sizes),
    }
    print(json.dumps(summary))


main()
