"""Lowers a decoder over one cache to two flat lists of the compiled kernels' operations: one for its layers,
one for its head.

D model width, H query heads, K key/value heads, E head width.
"""

from typing import Any

import torch
from torch import Tensor

from paragone.kernels import native
from paragone.model.block import Block, ParallelBlock, SandwichBlock
from paragone.model.decoder import Decoder
from paragone.model.linear import Linear
from paragone.model.mlp import MLP, MoE
from paragone.model.norm import LayerNorm, Norm
from paragone.model.paged import PagedCache
from paragone.model.spec import LayerSpec
from paragone.ops.compressed import CompressedMatrix
from paragone.ops.hadamard import HadamardMatrix
from paragone.ops.packed import PackedMatrix

ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
               "gelu_bloom": "gelu_tanh"}  # fmt: skip


class Lowering:
    """`layers` and `head` are the operations, in order. They know tensors by address only: what belongs to
    nobody else lives as long as this does."""

    def __init__(self, decoder: Decoder, cache: PagedCache) -> None:
        self.decoder, self.cache = decoder, cache
        self._kept: list[Tensor | CompressedMatrix] = []
        self._orders: dict[bytes, Tensor] = {}
        spec = decoder.spec
        heads = spec.num_attention_heads + 2 * spec.num_key_value_heads
        inner = max(mlp.down.in_features for block in decoder.blocks for mlp in block.mlp.mlps())
        experts = spec.moe.num_experts if spec.moe else 0
        widths = [spec.hidden_size, heads * spec.head_dim, spec.num_attention_heads * spec.head_dim, inner,
                  spec.hidden_size, spec.hidden_size if experts else 0, experts]  # fmt: skip
        self.qkv, self.mixed, self.inner, self.branch, self.normed, self.routes = range(1, 7)
        self.angles = []
        for rope in decoder.ropes:
            self.angles.append((len(widths), len(widths) + 1))
            widths += [rope.dim // 2] * 2
        self.layers = native.Plan(widths)
        for reach in cache.reaches:
            chunked = reach is not None and reach == spec.attention_chunk
            view = "full" if reach is None else "chunked" if chunked else "sliding"
            self.layers.add_pool(view, reach or 0)
        self._lower()
        self.head = native.Plan([spec.hidden_size])
        head = self._linear(decoder.head, native.X, native.OUT, self._norm(decoder.final_norm))
        self.head.add(native.Head(head, spec.final_logit_softcapping or 0.0))

    def _lower(self) -> None:
        decoder = self.decoder
        if decoder.embedding_norm is not None:
            self._add_norm(decoder.embedding_norm, native.X, added=False)
        for number, rope in enumerate(decoder.ropes):
            self.layers.add(native.Angles(number, *self.angles[number], rope.dim))
        for number, (block, layer) in enumerate(zip(decoder.blocks, decoder.spec.layers, strict=True)):
            self._block(number, block, layer)

    def _block(self, number: int, block: Block, layer: LayerSpec) -> None:
        norms = block.norms
        if isinstance(block, ParallelBlock):
            # Both halves read x before either adds to it; what attention does not need is not made before it.
            [mlp] = block.mlp.mlps()
            self._qkv(block, norms[0])
            self._attend(number, block, layer)
            self.layers.add(self._up_of(mlp, native.X, self._norm(norms[-1])))
            self._out(block, native.X)
            self.layers.add(self._down_of(mlp, native.X))
        elif isinstance(block, SandwichBlock):
            self._qkv(block, norms[0])
            self._attend(number, block, layer)
            self._out(block, self.branch)
            self._add_norm(norms[1], self.branch, added=True)
            self._feed_forward(block, norms[2], self.branch)
            self._add_norm(norms[3], self.branch, added=True)
        else:
            self._qkv(block, norms[0])
            self._attend(number, block, layer)
            self._out(block, native.X)
            self._feed_forward(block, norms[1], native.X)

    def _qkv(self, block: Block, norm: Norm) -> None:
        self.layers.add(self._linear(block.attn.qkv, native.X, self.qkv, self._norm(norm)))

    def _attend(self, number: int, block: Block, layer: LayerSpec) -> None:
        attn, cache, spec = block.attn, self.cache, self.decoder.spec
        cos, sin = (-1, -1) if layer.rope is None else self.angles[layer.rope]
        rope = None if layer.rope is None else self.decoder.ropes[layer.rope]
        norm = None if attn.qk_norm is None else self._keep(attn.qk_norm)
        heads = native.HeadsSpec(
            buffer=self.qkv,
            cos=cos,
            sin=sin,
            sizes=(attn.num_heads, attn.num_kv_heads, attn.head_dim),
            rope_dim=0 if rope is None else rope.dim,
            neighbours=rope is not None and rope.spec.pairs,
            norm=0 if norm is None else norm.data_ptr(),
            l2=attn.l2_norm,
            eps=attn.eps,
            scale=attn.scale,
            temperature_floor=attn.temperature[0],
            temperature_scale=attn.temperature[1],
            pool=cache.pool_of[number],
            cache=cache.layers[number].data_ptr(),
            block_size=cache.block_size,
            block_bytes=cache.layers[number].stride(0) * cache.layers[number].itemsize,
            eight_bit=cache.layers[number].dtype == torch.uint8,
        )
        self.layers.add(native.Heads(heads))
        self.layers.add(
            native.Attend(heads, self.mixed, spec.attn_logit_softcapping or 0.0, self._seen(number))
        )

    def _seen(self, number: int) -> str:
        """What a layer's queries see, where it is not all alike."""
        reach = self.cache.reaches[self.cache.pool_of[number]]
        chunked = reach is not None and reach == self.decoder.spec.attention_chunk
        seen = "" if reach is None else f", chunks of {reach}" if chunked else f", window of {reach}"
        return seen + (", alibi" if self.decoder.spec.alibi is not None else "")

    def _out(self, block: Block, target: int) -> None:
        added = target == native.X
        self.layers.add(self._linear(block.attn.o, self.mixed, target, native.Prologue(), added=added))

    def _feed_forward(self, block: Block, norm: Norm, target: int) -> None:
        if isinstance(block.mlp, MoE):
            self._mixture(block.mlp, norm)
            return
        up = self._up_of(block.mlp, native.X, self._norm(norm))
        self.layers.add(native.FeedForward(up, self._down_of(block.mlp, target)))

    def _up_of(self, mlp: MLP, source: int, norm: Any) -> Any:
        act = native.activated(ACTIVATIONS[mlp.activation], mlp.is_gated)
        return self._linear(mlp.up, source, self.inner, norm, act)

    def _down_of(self, mlp: MLP, target: int) -> Any:
        return self._linear(mlp.down, self.inner, target, native.Prologue(), added=target == native.X)

    def _mixture(self, moe: MoE, norm: Norm) -> None:
        """Only blocks of the kind "pre" have mixtures: what they give is added to x."""
        spec = moe.spec

        def pair(mlp: MLP) -> tuple[Any, Any]:
            return self._up_of(mlp, self.normed, native.Prologue()), self._down_of(mlp, self.branch)

        gates = [] if moe.shared_gate is None else [moe.shared_gate]
        mixture = native.Mixture(
            buffers=(self.normed, self.routes, self.inner, self.branch),
            D=self.decoder.spec.hidden_size,
            top_k=spec.top_k,
            norm=self._norm(norm),
            router=self._linear(moe.router, self.normed, self.routes, native.Prologue()),
            experts=[pair(expert) for expert in moe.experts],
            sigmoid=spec.score == "sigmoid",
            renormalise=spec.renormalise,
            shared=[] if moe.shared is None else [pair(moe.shared)],
            shared_gate=[self._linear(g, self.normed, self.routes, native.Prologue()) for g in gates],
        )
        self.layers.add(mixture)

    def _linear(
        self,
        linear: Linear,
        source: int,
        target: int,
        prologue: Any,
        epilogue: Any = None,
        *,
        added: bool = False,
    ) -> Any:
        parts = []
        for part in linear.parts:
            if isinstance(part, PackedMatrix):
                at, sizes = part.panels.data_ptr(), (part.rows, part.width)
                parts.append(native.packed(part.packing.native, at, *sizes, self._order(part)))
                continue
            if isinstance(part, HadamardMatrix):
                parts.append(native.in_hadamard(part.panels.data_ptr(), part.rows, part.width))
                continue
            matrix = CompressedMatrix.of(part) if isinstance(part, Tensor) else part
            self._kept.append(matrix)
            parts.append(native.in_bfloat16(*matrix.addresses, matrix.rows, matrix.width))
        bias = 0 if linear.bias is None else self._keep(linear.bias).data_ptr()
        finish = epilogue or native.Epilogue()
        return native.Linear(source, target, linear.in_features, parts, bias, prologue, finish, added)

    def _order(self, part: PackedMatrix) -> int:
        """Where the order of its inputs lies; matrices of the same order share one. 0: as they are."""
        if part.order is None:
            return 0
        order = self._orders.setdefault(part.order.numpy().tobytes(), part.order)
        return order.data_ptr()

    def _add_norm(self, norm: Norm, source: int, *, added: bool) -> None:
        width = self.decoder.spec.hidden_size
        self.layers.add(native.Norm(source, native.X, width, self._norm(norm), added))

    def _norm(self, norm: Norm) -> Any:
        weight = self._keep(norm.weight)
        bias = self._keep(norm.bias) if isinstance(norm, LayerNorm) else None
        kind = "rms" if bias is None else "layer"
        at = 0 if bias is None else bias.data_ptr()
        return native.norm(kind, weight.data_ptr(), at, norm.eps, len(weight))

    def _keep(self, vector: Tensor) -> Tensor:
        """A vector in float32."""
        wide = vector.float().contiguous()
        self._kept.append(wide)
        return wide
