"""Tiny random models of every family, made by the reference implementation.

Untouched initialisation hides bugs: biases are zero and norm weights one, so a dropped bias or a wrong
norm changes nothing. Every parameter is randomised here, vectors included.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf

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


@dataclass(frozen=True)
class Case:
    name: str
    config: type
    options: dict[str, Any]

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
        """A model of the reference class with all parameters random."""
        config = self.config(**self.options, attn_implementation="eager")
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
    Case("gemma3_softcap", hf.Gemma3TextConfig, {**GEMMA3, "final_logit_softcapping": 3.0}),
]
