"""The precisions in which weights can be kept, and what a model takes in each. No torch here."""

from typing import Literal, get_args

from paragone.errors import UsageError
from paragone.model.spec import ModelSpec

Precision = Literal["fp32", "bf16", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
# int4: half a byte, and a scale and a zero of two bytes each for every 32 numbers.
BYTES_A_NUMBER: dict[Precision, float] = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5 + 4 / 32}


def split_precision(name: str) -> tuple[str, Precision | None]:
    """MODEL or MODEL:PRECISION, apart."""
    base, _, last = name.rpartition(":")
    return (base, last) if base and last in PRECISIONS else (name, None)


def check_precision(name: str) -> Precision:
    """The precision of a name, or UsageError."""
    if name not in PRECISIONS:
        raise UsageError(f"precision {name!r} is not known. Known: {', '.join(PRECISIONS)}.")
    return name


def estimate_bytes(spec: ModelSpec, precision: Precision) -> int:
    """Bytes that the weights will take in memory, from the spec alone."""
    attention = (
        spec.hidden_size * spec.head_dim * (2 * spec.num_attention_heads + 2 * spec.num_key_value_heads)
    )
    mlp = (2 + spec.gated_mlp) * spec.hidden_size * spec.intermediate_size
    moe = 0
    if spec.moe:
        widths = spec.moe.num_experts * spec.moe.intermediate_size + spec.moe.shared_intermediate_size
        moe = 3 * spec.hidden_size * widths
    matrices = sum(attention + (moe if layer.moe else mlp) for layer in spec.layers)
    vocab = spec.vocab_size * spec.hidden_size * (1 if spec.tie_word_embeddings else 2)
    outer = 1.0 if precision == "int4" else BYTES_A_NUMBER[precision]  # embedding and head keep 8 bits
    return int(matrices * BYTES_A_NUMBER[precision] + vocab * outer)
