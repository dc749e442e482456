"""Mistakes that implementations make, injected one by one: each must move the logits beyond the tolerance.

A parity test that lets one of these pass is no test. Those that are values are put into the spec before the
decoder is built; those that are not change the built decoder.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from unittest import mock

import torch

from paragone.checkpoint.checkpoint import open_checkpoint
from paragone.model import load, position
from paragone.model.families import spec_of

LENGTH = 48


@dataclass(frozen=True)
class Mutation:
    """A mistake: which specs it concerns, and how the spec or the decoder becomes wrong by it."""

    name: str
    concerns: Callable
    spec: Callable | None = None
    decoder: Callable | None = None


def layers(spec, **changes):
    return replace(spec, layers=tuple(replace(layer, **changes) for layer in spec.layers))


def ropes(spec, **changes):
    return replace(spec, ropes=tuple(replace(rope, **changes) for rope in spec.ropes))


def slides(spec):
    return spec.sliding_window is not None and any(layer.attention == "sliding" for layer in spec.layers)


def mixed(spec):
    return slides(spec) and len({layer.attention for layer in spec.layers}) == 2


def other_kind(layer):
    return replace(layer, attention="full" if layer.attention == "sliding" else "sliding")


def scaled(kind):
    return lambda spec: any(rope.scaling == kind for rope in spec.ropes)


def moe(**changes):
    return lambda spec: replace(spec, moe=replace(spec.moe, **changes))


def without_bias(which):
    def change(decoder):
        for block in decoder.blocks:
            for linear in which(block):
                linear.bias = None

    return change


def without_head_bias(decoder):
    decoder.head.bias = None


def one_norm(decoder):
    for block in decoder.blocks:
        block.norms[1] = block.norms[0]


def whole_twice(decoder):
    for block in decoder.blocks:
        block.norms[0].weight = block.norms[0].weight + 1


def no_shared_gate(decoder):
    for block in decoder.blocks:
        if hasattr(block.mlp, "shared_gate"):
            block.mlp.shared_gate = None


def tiled_heads(decoder):
    """Query head h reads key head h mod K instead of h // (H / K)."""
    for block in decoder.blocks:
        attn = block.attn
        H, K, E = attn.num_heads, attn.num_kv_heads, attn.head_dim
        order = torch.arange(H).view(H // K, K).T.reshape(-1)
        rows = torch.cat([torch.arange(E) + int(h) * E for h in order.argsort().argsort()])
        stacked = torch.cat(attn.qkv.parts)
        swapped = torch.cat((stacked[: H * E][rows], stacked[H * E :]))
        attn.qkv.parts, attn.qkv.kernel = [swapped], None


def alibi_of(kind):
    return lambda spec: spec.alibi == kind


def not_rounded(kind, slopes, positions, scale, dtype):  # Falcon's bfloat16 rounding left out
    return (slopes[None, :, None] * positions[:, None, :]).to(dtype) * scale


MUTATIONS = [
    Mutation("window ignored", slides, lambda s: replace(s, sliding_window=1 << 20)),
    Mutation("window one too wide", slides, lambda s: replace(s, sliding_window=s.sliding_window + 1)),
    Mutation("window one too narrow", slides, lambda s: replace(s, sliding_window=s.sliding_window - 1)),
    Mutation("full and sliding layers swapped", mixed, lambda s: replace(s, layers=tuple(map(other_kind, s.layers)))),
    Mutation("chunks ignored", lambda s: s.attention_chunk, lambda s: replace(s, attention_chunk=1 << 20)),
    Mutation("layers without rope turned", lambda s: s.ropes and any(x.rope is None for x in s.layers), lambda s: layers(s, rope=0)),
    Mutation("temperature left out", lambda s: s.temperature_floor, lambda s: replace(s, temperature_floor=0)),
    Mutation("ropes swapped", lambda s: len(s.ropes) == 2, lambda s: replace(s, ropes=s.ropes[::-1])),
    Mutation("rope theta wrong", lambda s: s.ropes, lambda s: ropes(s, theta=s.ropes[0].theta * 2)),
    Mutation("linear scaling ignored", scaled("linear"), lambda s: ropes(s, scaling="none")),
    Mutation("llama3 scaling ignored", scaled("llama3"), lambda s: ropes(s, scaling="none")),
    Mutation("llama3 without its smooth band", scaled("llama3"), lambda s: ropes(s, low_freq_factor=3.999)),
    Mutation("yarn scaling ignored", scaled("yarn"), lambda s: ropes(s, scaling="none")),
    Mutation("yarn without its factor on cosines", scaled("yarn"), lambda s: ropes(s, attention_factor=1.0)),
    Mutation("longrope always short", scaled("longrope"), lambda s: ropes(s, long_factors=s.ropes[0].factors)),
    Mutation("longrope without its factor on cosines", scaled("longrope"), lambda s: ropes(s, attention_factor=1.0)),
    Mutation("dynamic scaling ignored", scaled("dynamic"), lambda s: ropes(s, scaling="none")),
    Mutation("whole head turned", lambda s: any(r.dim for r in s.ropes) and s.ropes[0].scaling == "none", lambda s: ropes(s, dim=None)),
    Mutation("halves for pairs", lambda s: any(r.pairs for r in s.ropes), lambda s: ropes(s, pairs=False)),
    Mutation("eps wrong", lambda s: s.norm.eps > 1e-3, lambda s: replace(s, norm=replace(s.norm, eps=1e-6))),
    Mutation("eps 1e-5 for 1e-6", lambda s: s.norm.eps == 1e-6, lambda s: replace(s, norm=replace(s.norm, eps=1e-5))),
    Mutation("norms' 1 + w twice", lambda s: s.norm.scale_in_float32, decoder=whole_twice),
    Mutation("query scale from the head's width", lambda s: s.query_scale, lambda s: replace(s, query_scale=None)),
    Mutation("GELU by erf for tanh", lambda s: s.activation in ("gelu_tanh", "gelu_new", "gelu_bloom"), lambda s: replace(s, activation="gelu")),
    Mutation("GELU by tanh for erf", lambda s: s.activation == "gelu", lambda s: replace(s, activation="gelu_tanh")),
    Mutation("scores not capped", lambda s: s.attn_logit_softcapping, lambda s: replace(s, attn_logit_softcapping=None)),
    Mutation("logits not capped", lambda s: s.final_logit_softcapping, lambda s: replace(s, final_logit_softcapping=None)),
    Mutation("embeddings not scaled", lambda s: s.embedding_scale, lambda s: replace(s, embedding_scale=None)),
    Mutation("query heads dealt out", lambda s: 1 < s.num_key_value_heads < s.num_attention_heads, decoder=tiled_heads),
    Mutation("biases of q, k, v dropped", lambda s: s.qkv_bias, decoder=without_bias(lambda b: [b.attn.qkv])),
    Mutation("bias of o dropped", lambda s: s.o_bias, decoder=without_bias(lambda b: [b.attn.o])),
    Mutation("biases of the MLP dropped", lambda s: s.mlp_bias, decoder=without_bias(lambda b: b.mlp.linears())),
    Mutation("bias of the head dropped", lambda s: s.head_bias, decoder=without_head_bias),
    Mutation("one norm for both halves", lambda s: s.block == "parallel_two_norms", decoder=one_norm),
    Mutation("norm of heads after rotation left out", lambda s: s.qk_norm == "l2", lambda s: replace(s, qk_norm=None)),
    Mutation("experts renormalised", lambda s: s.moe and s.moe.score == "softmax" and not s.moe.renormalise, moe(renormalise=True)),
    Mutation("experts not renormalised", lambda s: s.moe and s.moe.renormalise, moe(renormalise=False)),
    Mutation("one expert too few", lambda s: s.moe and s.moe.top_k > 1, lambda s: moe(top_k=s.moe.top_k - 1)(s)),
    Mutation("outputs scaled for inputs", lambda s: s.moe and s.moe.score == "sigmoid", moe(score="softmax")),
    Mutation("shared expert not weighed", lambda s: s.moe and s.moe.shared_gate, decoder=no_shared_gate),
    Mutation("ALiBi left out", lambda s: s.alibi, lambda s: replace(s, alibi=None)),
    Mutation("ALiBi scaled as Falcon's", alibi_of("bloom"), lambda s: replace(s, alibi="falcon")),
    Mutation("ALiBi scaled as BLOOM's", alibi_of("falcon"), lambda s: replace(s, alibi="bloom")),
    Mutation("ALiBi not rounded to bfloat16", alibi_of("falcon"), decoder=lambda d: setattr(d, "unrounded_alibi", True)),
]  # fmt: skip


def differences(case, folder):
    """{mistake: largest difference over the logits' standard deviation}; "" is the right decoder's."""
    reference = case.save(folder)
    checkpoint = open_checkpoint(folder)
    right = spec_of(checkpoint)
    ids = torch.randint(0, right.vocab_size, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    want = reference(ids).logits

    def distance(spec, change=None):
        with mock.patch.object(load, "spec_of", return_value=spec):
            decoder = load.load_decoder(checkpoint, "fp32")
        if change:
            change(decoder)
        rounding = not_rounded if getattr(decoder, "unrounded_alibi", False) else position.alibi_bias
        with mock.patch("paragone.model.decoder.alibi_bias", rounding):
            return float((decoder(ids) - want).abs().max() / want.std())

    out = {"": distance(right)}
    for mutation in MUTATIONS:
        if mutation.concerns(right):
            out[mutation.name] = distance(mutation.spec(right) if mutation.spec else right, mutation.decoder)
    return out
