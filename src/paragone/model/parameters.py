"""The stored parameters of a model: their neutral names, and where a family's files keep them."""

import re
from collections.abc import Mapping
from dataclasses import replace

from paragone.checkpoint.tensors import StoredTensor
from paragone.model.spec import BLOCK_NORMS, ModelSpec

QKV, GATE_UP = "layers.{}.attn.qkv.weight", "layers.{}.mlp.gate_up.weight"
EXPERT_GATE_UP = "layers.{}.moe.{}.gate_up.weight"


def template(name: str) -> str:
    """A neutral name with `{}` for the numbers of layer and expert."""
    return ".".join("{}" if part.isdigit() else part for part in name.split("."))


def stored_name(name: str, names: Mapping[str, str]) -> str:
    """What the files call a parameter. `NAME[3]` is the fourth matrix of a stack."""
    return names[template(name)].format(*(part for part in name.split(".") if part.isdigit()))


def split_index(stored: str) -> tuple[str, int | None]:
    """A stored name and the number in its stack, or None."""
    match = re.fullmatch(r"(.+)\[(\d+)\]", stored)
    return (match[1], int(match[2])) if match else (stored, None)


def one_of(stack: StoredTensor, index: int) -> StoredTensor:
    """A matrix of a stack."""
    size = stack.nbytes // stack.shape[0]
    factors = stack.factors if len(stack.factors) == 1 else stack.factors[index : index + 1]
    return replace(
        stack, shape=stack.shape[1:], offset=stack.offset + index * size, nbytes=size, factors=factors
    )


def qkv_parts(names: Mapping[str, str]) -> tuple[str, ...]:
    """The matrices of queries, keys and values: three, or one that the files have fused."""
    return ("attn.qkv",) if QKV in names else ("attn.q", "attn.k", "attn.v")


def gate_up_parts(at: str, fused: str, names: Mapping[str, str], is_gated: bool = True) -> tuple[str, ...]:
    """The first matrices of an MLP: gate and up, one that the files have fused, or up alone."""
    if not is_gated:
        return (f"{at}.up",)
    return (f"{at}.gate_up",) if fused in names else (f"{at}.gate", f"{at}.up")


def parameter_names(spec: ModelSpec, names: Mapping[str, str]) -> list[str]:
    """Neutral names of every parameter that a model of this spec has, as a family's files divide them."""
    kinds = ("weight", "bias") if spec.norm.kind == "layer" else ("weight",)
    every = [f"{norm}.{kind}" for norm in BLOCK_NORMS[spec.block] for kind in kinds]
    if spec.qk_norm == "weighted":
        every += ["attn.q_norm.weight", "attn.k_norm.weight"]
    for parts, bias in ((qkv_parts(names), spec.qkv_bias), (("attn.o",), spec.o_bias)):
        every += [f"{p}.{kind}" for p in parts for kind in ("weight", "bias")[: 1 + bias]]
    dense = [
        f"{part}.{kind}"
        for part in (*gate_up_parts("mlp", GATE_UP, names, spec.gated_mlp), "mlp.down")
        for kind in ("weight", "bias")[: 1 + spec.mlp_bias]
    ]
    out = ["embed.weight", *(f"final_norm.{kind}" for kind in kinds)]
    out += [f"embed_norm.{kind}" for kind in kinds] if spec.embedding_norm else []
    out += [] if spec.tie_word_embeddings else ["head.weight"]
    out += ["head.bias"] if spec.head_bias else []
    for number, layer in enumerate(spec.layers):
        inner = _expert_names(spec, names) if layer.moe else dense
        out += [f"layers.{number}.{name}" for name in (*every, *inner)]
    return out


def _expert_names(spec: ModelSpec, names: Mapping[str, str]) -> list[str]:
    moe = spec.moe
    if moe is None:
        return []
    out = ["moe.router.weight"]
    for expert in range(moe.num_experts):
        parts = (*gate_up_parts(f"moe.{expert}", EXPERT_GATE_UP, names), f"moe.{expert}.down")
        out += [f"{part}.weight" for part in parts]
    if moe.shared_intermediate_size:
        out += [f"moe.shared.{part}.weight" for part in ("gate", "up", "down")]
    return out + (["moe.shared_gate.weight"] if moe.shared_gate else [])
