"""From a checkpoint to a decoder: which modules there are, and which parameters fill them."""

import ctypes
import sys

import torch
from torch import Tensor

from paragone.checkpoint.checkpoint import Checkpoint
from paragone.checkpoint.packed_file import packed_path
from paragone.model.attention import Attention
from paragone.model.block import BLOCKS, Block
from paragone.model.decoder import Decoder
from paragone.model.families import family_of, spec_of
from paragone.model.linear import (
    DenseEmbedding,
    Embedding,
    Linear,
    StoredEmbedding,
    TiedEmbedding,
)
from paragone.model.mlp import MLP, MoE
from paragone.model.norm import LayerNorm, Norm
from paragone.model.parameters import (
    EXPERT_GATE_UP,
    GATE_UP,
    gate_up_parts,
    qkv_parts,
)
from paragone.model.precision import Precision, check_precision
from paragone.model.read import Parameters, Progress
from paragone.model.spec import BLOCK_NORMS, LayerSpec


def load_decoder(
    checkpoint: Checkpoint,
    precision: Precision = "bf16",
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    *,
    keep_packed: bool = False,
) -> Decoder:
    """Builds the decoder of a checkpoint at a precision. `keep_packed`: weights as the kernels take them are
    kept on disk, and mapped from there the next time.

    Raises BadConfiguration for a configuration that is not understood, MalformedData where tensors are
    missing, left over or of the wrong shape.
    """
    check_precision(precision)
    spec = spec_of(checkpoint)
    keep = packed_path(checkpoint.files, precision) if keep_packed and precision != "fp32" else None
    read = Parameters(
        checkpoint, family_of(checkpoint), spec, precision, torch.device(device), progress, keep
    )
    with torch.inference_mode():
        decoder = _Loader(read).decoder()
    read.keep_made()
    return decoder


class _Loader:
    """One load: builds modules of what it reads."""

    def __init__(self, read: Parameters) -> None:
        self.read, self.spec, self.family = read, read.spec, read.family

    def decoder(self) -> Decoder:
        spec = self.spec
        width = spec.hidden_size
        source = "embed" if spec.tie_word_embeddings else "head"
        head_bias = (
            self.read.vector("head.bias", spec.vocab_size).to(self.read.dtype) if spec.head_bias else None
        )
        head = self.read.linear((source,), (spec.vocab_size,), width, outer=True, given_bias=head_bias)
        blocks = []
        for number, layer in enumerate(spec.layers):
            return_freed_memory()
            blocks.append(self.block(number, layer))
        return_freed_memory()
        embed = self.embedding(head)
        embedding_norm = self.norm("embed_norm") if spec.embedding_norm else None
        return Decoder(spec, embed, blocks, self.norm("final_norm"), head, self.read.dtype, embedding_norm)

    def embedding(self, head: Linear) -> Embedding:
        """On the CPU the rows stay in the file; elsewhere they are the tied head's weight, or a copy."""
        weight = head.parts[0]
        if self.spec.tie_word_embeddings and isinstance(weight, Tensor):
            return DenseEmbedding(weight)
        if self.spec.tie_word_embeddings and not isinstance(weight, Tensor) and weight.is_exact:
            return TiedEmbedding(weight, self.read.dtype)
        tensor = self.read.take("embed.weight", (self.spec.vocab_size, self.spec.hidden_size))
        if self.read.device.type == "cpu":
            return StoredEmbedding(tensor, self.read.dtype)
        rows = torch.empty(tensor.shape, dtype=self.read.dtype)
        for at, chunk in self.read.row_chunks("embed.weight", *rows.shape):
            rows[at : at + len(chunk)] = chunk
        return DenseEmbedding(rows.to(self.read.device))

    def block(self, number: int, layer: LayerSpec) -> Block:
        spec, at = self.spec, f"layers.{number}"
        H, K, E = spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim
        parts = [f"{at}.{part}" for part in qkv_parts(self.family.names)]
        rows = (H * E, K * E, K * E) if len(parts) == 3 else ((H + 2 * K) * E,)
        qkv = self.read.linear(parts, rows, spec.hidden_size, bias=spec.qkv_bias)
        o = self.read.linear((f"{at}.attn.o",), (spec.hidden_size,), H * E, bias=spec.o_bias)
        attn = Attention(spec, layer, qkv, o, self.qk_norm(at) if spec.qk_norm == "weighted" else None)
        norms = [self.norm(f"{at}.{name}") for name in BLOCK_NORMS[spec.block]]
        mlp = self.moe(f"{at}.moe") if layer.moe else self.dense_mlp(f"{at}.mlp")
        return BLOCKS[spec.block](attn, mlp, norms)

    def dense_mlp(self, at: str) -> MLP:
        spec = self.spec
        parts = gate_up_parts(at, GATE_UP, self.family.names, spec.gated_mlp)
        return self.mlp(at, parts, spec.intermediate_size, bias=spec.mlp_bias, is_gated=spec.gated_mlp)

    def mlp(
        self, at: str, parts: tuple[str, ...], inner: int, *, bias: bool = False, is_gated: bool = True
    ) -> MLP:
        width = self.spec.hidden_size
        fused = is_gated and len(parts) == 1
        up = self.read.linear(parts, (2 * inner,) if fused else (inner,) * len(parts), width, bias=bias)
        down = self.read.linear((f"{at}.down",), (width,), inner, bias=bias)
        return MLP(self.spec.activation, up, down, is_gated=is_gated)

    def moe(self, at: str) -> MoE:
        moe, width, names = self.spec.moe, self.spec.hidden_size, self.family.names
        assert moe is not None  # noqa: S101 -- a spec with such layers has it
        router = self.read.linear((f"{at}.router",), (moe.num_experts,), width, exact=True)
        experts = []
        for number in range(moe.num_experts):
            parts = gate_up_parts(f"{at}.{number}", EXPERT_GATE_UP, names)
            experts.append(self.mlp(f"{at}.{number}", parts, moe.intermediate_size))
        shared = gate = None
        if moe.shared_intermediate_size:
            parts = (f"{at}.shared.gate", f"{at}.shared.up")
            shared = self.mlp(f"{at}.shared", parts, moe.shared_intermediate_size)
        if moe.shared_gate:
            gate = self.read.linear((f"{at}.shared_gate",), (1,), width, exact=True)
        return MoE(moe, router, experts, shared, gate)

    def norm(self, name: str) -> Norm:
        size = self.spec.hidden_size
        weight = self.norm_weight(f"{name}.weight", size)
        if self.spec.norm.kind == "layer":
            return LayerNorm(self.spec.norm, weight, self.norm_weight(f"{name}.bias", size))
        return Norm(self.spec.norm, weight)

    def norm_weight(self, name: str, size: int) -> Tensor:
        dtype = torch.float32 if self.spec.norm.scale_in_float32 else self.read.dtype
        return self.read.vector(name, size).to(dtype).to(self.read.device)

    def qk_norm(self, at: str) -> Tensor:
        """The norm weights of query and key heads, one row a head."""
        E = self.spec.head_dim
        q = self.norm_weight(f"{at}.attn.q_norm.weight", E).expand(self.spec.num_attention_heads, E)
        k = self.norm_weight(f"{at}.attn.k_norm.weight", E).expand(self.spec.num_key_value_heads, E)
        return torch.cat((q, k))


def return_freed_memory() -> None:
    """Hands what the allocator has freed back to the system, where it can (glibc): between weights that stay,
    conversions leave holes that would otherwise count as used."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
