"""Tiny random models of every family, made by the reference implementation.

Untouched initialisation hides bugs: biases are zero and norm weights one, so a dropped bias or a wrong
norm changes nothing. Every parameter is randomised here, vectors included.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from paragone.checkpoint.checkpoint import Checkpoint
from paragone.model.families import spec_of
from paragone.model.spec import ModelSpec

SIZES = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 3}
ATTENTION = {
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
BASE = SIZES | ATTENTION
WINDOW = 8


def rope(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta} | more}


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1 + 0.05 * i for i in range(8)],
    "long_factor": [1.5 + 0.4 * i for i in range(8)],
    "original_max_position_embeddings": 32,
}
FALCON = {**SIZES, "num_attention_heads": 4}


@dataclass(frozen=True)
class Case:
    name: str
    config: type
    options: dict[str, Any]

    @property
    def is_bitwise(self) -> bool:
        """Whether the reference's own rounding in bfloat16 can be had; not behind its fused attention."""
        return not self.options.get("alibi")

    @property
    def depends_on_length(self) -> bool:
        """Whether a rope looks at how many positions a step reaches, so that steps beyond the original
        context differ from a whole pass: the engine begins anew there."""
        parameters = self.options.get("rope_parameters", {})
        return parameters.get("rope_type") in ("longrope", "dynamic")

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float32, attention: str = "eager") -> Any:
        """A model of the reference class with all parameters random."""
        # Falcon's eager attention adds ALiBi twice; of experts, the eager form says how each sum is rounded.
        attention = "sdpa" if self.options.get("alibi") else attention
        config = self.config(**self.options, attn_implementation=attention)
        config._experts_implementation = "eager"
        torch.manual_seed(seed)
        model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.dim() < 2:
                    p += 0.2 * torch.randn_like(p)
                else:
                    std = 0.5 if "embed" in name else 0.6 / p.shape[-1] ** 0.5
                    p.copy_(std * torch.randn_like(p))
                p.data = p.data.to(dtype)
        return model

    def save(self, folder: Path, seed: int = 0, **options: Any) -> Any:
        model = self.build(seed)
        model.save_pretrained(folder, **options)
        return model


def spec_from(config: Any) -> ModelSpec:
    """The spec of a configuration of the reference implementation, without any weights."""
    path = Path("config.json")
    return spec_of(Checkpoint(path, "hf", path, json.loads(config.to_json_string()), {}))


GEMMA3 = {
    **BASE,
    "num_hidden_layers": 7,
    "head_dim": 32,
    "query_pre_attn_scalar": 16,
    "sliding_window": WINDOW,
    "rms_norm_eps": 0.05,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}

CASES = [
    Case("llama1", hf.LlamaConfig, {**BASE, "num_key_value_heads": 4, "rms_norm_eps": 1e-6}),
    Case("llama2_gqa", hf.LlamaConfig, {**BASE, "rms_norm_eps": 0.05}),
    Case("llama_biases", hf.LlamaConfig, {**BASE, "attention_bias": True, "mlp_bias": True}),
    Case("llama3.1", hf.LlamaConfig, {**BASE, **rope(5e5, **LLAMA3)}),
    Case(
        "llama3.2_tied",
        hf.LlamaConfig,
        {**BASE, **rope(5e5, **{**LLAMA3, "factor": 32.0}), "tie_word_embeddings": True, "head_dim": 32},
    ),
    Case("llama_linear", hf.LlamaConfig, {**BASE, **rope(1e4, rope_type="linear", factor=4.0)}),
    Case("llama_yarn", hf.LlamaConfig, {**BASE, **rope(1e4, **YARN)}),
    Case("qwen2_tied", hf.Qwen2Config, {**BASE, **rope(1e6), "tie_word_embeddings": True}),
    Case(
        "qwen2_window",
        hf.Qwen2Config,
        {**BASE, **rope(1e6), "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    Case("qwen2_yarn", hf.Qwen2Config, {**BASE, **rope(1e6, **YARN)}),
    Case("qwen3", hf.Qwen3Config, {**BASE, **rope(1e6), "head_dim": 32}),
    Case("qwen3_bias", hf.Qwen3Config, {**BASE, **rope(1e6), "head_dim": 32, "attention_bias": True}),
    Case("gemma3", hf.Gemma3TextConfig, GEMMA3),
    Case("gemma3_untied", hf.Gemma3TextConfig, {**GEMMA3, "tie_word_embeddings": False}),
    Case("mistral_window", hf.MistralConfig, {**BASE, **rope(1e4), "sliding_window": WINDOW}),
    Case("mistral_nemo", hf.MistralConfig, {**BASE, **rope(1e6), "sliding_window": None, "head_dim": 24}),
    Case("mixtral", hf.MixtralConfig, {**BASE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    Case("gemma", hf.GemmaConfig, {**BASE, "num_key_value_heads": 1, "head_dim": 32, "rms_norm_eps": 0.05}),
    Case(
        "gemma2",
        hf.Gemma2Config,
        {
            **BASE,
            "num_hidden_layers": 4,
            "head_dim": 32,
            "query_pre_attn_scalar": 16,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    Case(
        "qwen2_moe",
        hf.Qwen2MoeConfig,
        {
            **BASE,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 80,
            "norm_topk_prob": False,
            "mlp_only_layers": [1],
        },
    ),
    Case(
        "qwen3_moe",
        hf.Qwen3MoeConfig,
        {
            **BASE,
            "head_dim": 32,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
        },
    ),
    Case("phi", hf.PhiConfig, {**BASE, "num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    Case("phi3_window", hf.Phi3Config, {**BASE, "sliding_window": WINDOW, "pad_token_id": None}),
    Case(
        "phi3_longrope",
        hf.Phi3Config,
        {**BASE, "original_max_position_embeddings": 32, "pad_token_id": None, "rope_parameters": LONGROPE},
    ),
    Case(
        "phi4_mini",
        hf.Phi3Config,
        {
            **BASE,
            "original_max_position_embeddings": 32,
            "pad_token_id": None,
            "tie_word_embeddings": True,
            "rope_parameters": {
                **LONGROPE,
                "partial_rotary_factor": 0.75,
                "short_factor": LONGROPE["short_factor"][:6],
                "long_factor": LONGROPE["long_factor"][:6],
            },
        },
    ),
    Case(
        "llama_dynamic",
        hf.LlamaConfig,
        {**BASE, **rope(1e4, rope_type="dynamic", factor=2.0), "max_position_embeddings": 32},
    ),
    Case("falcon_7b", hf.FalconConfig, FALCON),
    Case("falcon_40b", hf.FalconConfig, {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True}),
    Case(
        "falcon_11b",
        hf.FalconConfig,
        {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
    ),
    Case(
        "falcon_rw",
        hf.FalconConfig,
        {
            **FALCON,
            "num_attention_heads": 16,
            "alibi": True,
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
        },
    ),
    Case("bloom", hf.BloomConfig, {"vocab_size": 128, "hidden_size": 72, "n_layer": 3, "n_head": 6}),
    Case(
        "llama4",
        hf.Llama4TextConfig,
        {
            **BASE,
            "num_hidden_layers": 4,
            "head_dim": 16,
            "intermediate_size_mlp": 112,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": WINDOW,
            "floor_scale": 4,
            "rope_parameters": {**LLAMA3, "rope_theta": 5e5},
        },
    ),
    Case("gemma3_softcap", hf.Gemma3TextConfig, {**GEMMA3, "final_logit_softcapping": 3.0}),
]
