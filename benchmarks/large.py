"""A model of 1.1 billion random parameters in Q4_0, of the shape of TinyLlama, with SmolLM2's tokenizer: what
is too large for any cache of the processor."""

from pathlib import Path

import gguf
import numpy as np

from paragone import paths
from paragone.engine.resolve import locate

LAYERS, WIDTH, INNER, HEADS, KV_HEADS, HEAD = 22, 2048, 5632, 32, 4, 64
MATRICES = {
    "attn_q": (WIDTH, WIDTH), "attn_k": (KV_HEADS * HEAD, WIDTH), "attn_v": (KV_HEADS * HEAD, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER),
}  # fmt: skip


def blocks(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Random Q4_0 blocks: a scale in float16 and 32 codes each."""
    rows, width = shape
    out = rng.integers(0, 256, (rows, width // 32, 18), dtype=np.uint8)
    out[:, :, :2] = np.frombuffer(np.float16(0.004).tobytes(), dtype=np.uint8)
    return out.reshape(rows, -1)


def large() -> Path:
    """The file, made once."""
    path = paths.home() / "benchmarks" / "large-q4_0.gguf"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    source = gguf.GGUFReader(locate("smollm2-135m-instruct").path)
    partial = path.with_suffix(".partial")
    w = gguf.GGUFWriter(partial, "llama")
    w.add_context_length(8192)
    w.add_embedding_length(WIDTH)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(INNER)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(HEAD)
    words = source.fields["tokenizer.ggml.tokens"].contents()
    w.add_vocab_size(len(words))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(source.fields["tokenizer.ggml.pre"].contents())
    w.add_token_list(words)
    w.add_token_types(source.fields["tokenizer.ggml.token_type"].contents())
    w.add_token_merges(source.fields["tokenizer.ggml.merges"].contents())
    for name in ("bos", "eos"):
        getattr(w, f"add_{name}_token_id")(source.fields[f"tokenizer.ggml.{name}_token_id"].contents())
    rng, kind = np.random.default_rng(0), gguf.GGMLQuantizationType.Q4_0
    ones = np.ones(WIDTH, dtype=np.float32)
    w.add_tensor("token_embd.weight", blocks((len(words), WIDTH), rng), raw_dtype=kind)
    w.add_tensor("output_norm.weight", ones)
    for layer in range(LAYERS):
        for name, shape in MATRICES.items():
            w.add_tensor(f"blk.{layer}.{name}.weight", blocks(shape, rng), raw_dtype=kind)
        for name in ("attn_norm", "ffn_norm"):
            w.add_tensor(f"blk.{layer}.{name}.weight", ones)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    partial.rename(path)
    return path
