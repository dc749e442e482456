"""The most that a machine allows: tokens/s that no program exceeds that reads these weights from memory and
makes these products, however well it is written."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.turns import STEPS
from paragone.engine.model import Model
from paragone.kernels import native
from paragone.model.linear import Linear
from paragone.model.spec import ModelSpec
from paragone.ops import pages
from paragone.ops.hadamard import HadamardMatrix
from paragone.ops.linear import Part
from paragone.ops.packed import PackedMatrix
from paragone.ops.threads import threads

EQUAL_PROMPT, EQUAL_ANSWER = 13, 64  # tokens of the equal requests of own_engine.py
DECODE_PROMPT = 16  # of own_kernels.py's


class Rates(NamedTuple):
    """Bytes read a second, and operations a second of bytes with codes of four and of eight bits (brought to
    scale after every 32, as the formats of files need it), of eight where rows have one scale, of bfloat16
    or float32, and of what prompts' attention is made of. Without VNNI codes of four bits are multiplied at
    twice the rate of those of eight; those of five and six are taken for as fast."""

    read: float
    int4: float
    int8: float
    rows: float
    floats: float
    attention: float

    def of(self, part: Part) -> float:
        """By how a weight is multiplied."""
        if isinstance(part, HadamardMatrix):
            return self.rows
        if not isinstance(part, PackedMatrix):
            return self.floats
        return self.int8 if part.packing.levels or part.packing.bits == 8 else self.int4


class Machine:
    """What it gives to a program that does nothing else, for as many bytes as a token reads."""

    def __init__(self, size: int) -> None:
        self.memory = pages.empty((size,), torch.uint8).fill_(1)

    def rates(self) -> Rates:
        """The best of a moment."""
        size, at, count = len(self.memory), self.memory.data_ptr(), threads()
        return Rates(
            max(native.read_rate(at, size, count) for _ in range(5)),
            *(
                max(native.multiply_rate(bits, count, whole_rows) for _ in range(5))
                for bits, whole_rows in ((4, False), (8, False), (8, True), (16, False), (16, True))
            ),
        )

    def around(self, figure: Callable[[], float]) -> tuple[float, Rates]:
        """A figure, and the better of the rates just before and just after it: machines that are shared give
        more in one minute than in the next."""
        before = self.rates()
        value = figure()
        return value, Rates(*map(max, before, self.rates()))


def bounds(model: Model, rates: Rates) -> dict[str, float]:
    """By the names of own_kernels.py's figures. Everything but reading and products (norms, Python) is taken
    to cost nothing."""
    decoder, spec = model.decoder, model.decoder.spec
    *most_layers, last = (sum(seconds(linear, rates) for linear in b.linears()) for b in decoder.blocks)
    head = seconds(decoder.head, rates)
    # Of a prompt's last layer only keys and values are needed of all tokens.
    kv = 2 * spec.num_key_value_heads / (spec.num_attention_heads + 2 * spec.num_key_value_heads)
    of_all = sum(most_layers) + seconds(decoder.blocks[-1].attn.qkv, rates) * kv

    def step(sequences: int, seen: int) -> float:
        cache = sequences * spec.kv_bytes(seen, 2)
        products = sequences * (sum(most_layers) + last + head)
        attention = sequences * token_attention_operations(spec, seen) / rates.attention
        return max((decoder.decode_bytes + cache) / rates.read, products + attention)

    def prompt(length: int) -> float:
        return length * of_all + head + attention_operations(spec, length) / rates.attention

    found = {f"decode{n}": n / step(n, DECODE_PROMPT + steps // 2) for n, steps in STEPS.items()}
    found |= {f"prefill{n}": n / prompt(n) for n in (512, 4096)}
    for n in (16, 64):
        steps = EQUAL_ANSWER * step(n, EQUAL_PROMPT + EQUAL_ANSWER // 2)
        found[f"seq{n}"] = n * EQUAL_ANSWER / (n * prompt(EQUAL_PROMPT) + steps)
    return found


def seconds(linear: Linear, rates: Rates) -> float:
    """Of its products for one token."""
    width = linear.in_features
    return sum((2 * len(part) * width / rates.of(part) for part in linear.parts), 0.0)


def operations(model: Model) -> float:
    """Of a token's products in the layers: one product and one sum for a number of a weight."""
    linears = (linear for block in model.decoder.blocks for linear in block.linears())
    return float(sum(2 * len(part) * linear.in_features for linear in linears for part in linear.parts))


def token_attention_operations(spec: ModelSpec, seen: int) -> float:
    """Of a token that sees so many others: for every query and every key that it sees, two products and two
    sums a number."""
    pairs = sum(min(spec.reach(layer) or seen, seen) for layer in spec.layers)
    return 4.0 * pairs * spec.num_attention_heads * spec.head_dim


def attention_operations(spec: ModelSpec, length: int) -> float:
    """The same of a prompt, in all layers but the last."""
    pairs = 0.0
    for layer in spec.layers[:-1]:
        reach = min(spec.reach(layer) or length, length)
        pairs += reach * (reach + 1) / 2 + (length - reach) * reach
    return 4 * pairs * spec.num_attention_heads * spec.head_dim
