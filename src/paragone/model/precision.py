"""The precisions in which weights can be kept, and what a model takes in each. No torch here."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, get_args

from paragone.errors import UsageError
from paragone.model.spec import ModelSpec
from paragone.ops.choose import kernels_here

if TYPE_CHECKING:
    from paragone.checkpoint.tensors import StoredTensor

Precision = Literal["fp32", "bf16", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
# As stored. int8: a byte, and about what scales and padding add; int4: half a byte, and for every 32 numbers
# a scale and a minimum of two bytes.
BYTES_A_NUMBER: dict[Precision, float] = {"fp32": 4.0, "bf16": 2.0, "int8": 1.02, "int4": 0.5 + 4 / 32}
COMPRESSED = 1.52  # the same for bf16 where there are kernels: twelve bits, and what needs more
MOST_BITS = {"int8": 8, "int4": 4}  # of what a file has in so many or fewer the integers are kept


def split_precision(name: str) -> tuple[str, Precision | None]:
    """MODEL or MODEL:PRECISION, apart."""
    base, _, last = name.rpartition(":")
    return (base, last) if base and last in PRECISIONS else (name, None)


def check_precision(name: str) -> Precision:
    """The precision of a name, or UsageError."""
    if name not in PRECISIONS:
        raise UsageError(f"precision {name!r} is not known. Known: {', '.join(PRECISIONS)}.")
    return name


def stored_precision(tensors: "Iterable[StoredTensor]") -> Precision:
    """What a file runs in where nothing is said: bfloat16 or, where it is quantised, its own integers."""
    return "int8" if any(t.type.is_quantized for t in tensors) else "bf16"


def estimate_bytes(spec: ModelSpec, precision: Precision, tensors: "Iterable[StoredTensor]" = ()) -> int:
    """Bytes that the weights will take in memory: from the spec, and from what the file has where it is
    quantised."""
    sizes = BYTES_A_NUMBER | ({"bf16": COMPRESSED} if kernels_here() else {})
    kept = [t for t in tensors if t.type.is_quantized and t.type.code_bits <= MOST_BITS.get(precision, 0)]
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
    outer = sizes["int8" if precision == "int4" else precision]  # embedding and head keep 8 bits
    whole = matrices * sizes[precision] + vocab * outer
    for tensor in kept:
        numbers = math.prod(tensor.shape)
        whole -= numbers * (sizes[precision] - tensor.type.code_bits / 8 - 4 / 32)
    return int(whole)


def gains_nothing(precision: Precision, spec: ModelSpec, tensors: "Iterable[StoredTensor]") -> bool:
    """Whether a file has all matrices but embedding and head in 4 bits already: in int4 they are then what
    they are in int8."""
    outer = spec.vocab_size, spec.hidden_size
    inner = [t for t in tensors if len(t.shape) > 1 and t.shape != outer]
    return precision == "int4" and all(t.type.is_quantized and t.type.code_bits <= 4 for t in inner)
