"""The most that a machine allows: tokens/s that no program exceeds that reads these weights from memory and
makes these products, however well it is written."""

from paragone.engine.model import Model
from paragone.model.spec import ModelSpec

EQUAL_PROMPT, EQUAL_ANSWER = 13, 64  # tokens of the equal requests of own_engine.py


def bounds(model: Model, read: float, integers: float, floats: float) -> dict[str, float]:
    """By the names of own_kernels.py's figures. The rates are bytes read, operations on bytes (brought to
    scale after every 32, as quantised weights need it) and operations on bfloat16 or float32 a second, as
    native.read_rate and native.multiply_rate measure them: everything else (norms, Python) is taken to cost
    nothing."""
    decoder = model.decoder
    linears = [linear for block in decoder.blocks for linear in block.linears()]
    layers = sum(linear.in_features * linear.out_features for linear in linears)
    head = decoder.spec.hidden_size * decoder.spec.vocab_size
    rate = integers if model.precision.startswith("int") else floats

    def step(sequences: int) -> float:
        return max(decoder.decode_bytes / read, 2 * sequences * (layers + head) / rate)

    def prompt(length: int) -> float:
        products = 2 * (length * layers + head) / rate
        return products + attention_operations(decoder.spec, length) / floats

    found = {f"decode{n}": n / step(n) for n in (1, 16, 64)}
    found |= {f"prefill{n}": n / prompt(n) for n in (512, 4096)}
    for n in (16, 64):
        found[f"seq{n}"] = n * EQUAL_ANSWER / (n * prompt(EQUAL_PROMPT) + EQUAL_ANSWER * step(n))
    return found


def attention_operations(spec: ModelSpec, length: int) -> float:
    """Of a prompt: for every pair of a query and a key that it sees, two products and two sums a number."""
    pairs = 0.0
    for layer in spec.layers:
        reach = min(spec.reach(layer) or length, length)
        pairs += reach * (reach + 1) / 2 + (length - reach) * reach
    return 4 * pairs * spec.num_attention_heads * spec.head_dim
