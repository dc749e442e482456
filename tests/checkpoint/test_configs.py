"""Configurations: every key is used, known to be harmless, or refused by name; sizes are bounded."""

import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paragone.checkpoint.checkpoint import open_checkpoint
from paragone.checkpoint.facts import Facts
from paragone.errors import BadConfiguration, MalformedData, NotFound, ParagoneError, Refused
from paragone.model.families import spec_of
from paragone.model.load import load_decoder
from tests.tiny import CASES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    CASES[1].save(path)
    return path


def changed(folder, tmp_path, **changes):
    """A copy of the folder with other configuration values; None takes a key away."""
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        if value is None:
            config.pop(key, None)
        else:
            config[key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    if not (tmp_path / "model.safetensors").exists():
        (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return tmp_path


def test_the_unchanged_copy_loads(folder, tmp_path):
    load_decoder(open_checkpoint(changed(folder, tmp_path)), "fp32")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_type": "lama"}, BadConfiguration, "'lama' is not supported. Did you mean llama"),
        ({"model_type": "mamba"}, BadConfiguration, "Known: bloom, falcon"),
        ({"model_type": None}, MalformedData, "model_type is missing"),
        ({"logit_scale": 0.5}, BadConfiguration, "unknown key 'logit_scale'"),
        ({"hiden_size": 64}, BadConfiguration, "did you mean 'hidden_size'"),
        ({"hidden_size": None}, MalformedData, "hidden_size is missing"),
        ({"hidden_size": "64"}, MalformedData, "hidden_size is '64', not a whole number"),
        ({"hidden_size": True}, MalformedData, "hidden_size is True"),
        ({"hidden_size": -64}, MalformedData, "hidden_size is -64"),
        ({"hidden_size": 0}, MalformedData, "hidden_size is 0"),
        ({"hidden_size": 10**12}, MalformedData, "hidden_size is 1000000000000"),
        ({"vocab_size": 10**9}, (MalformedData, BadConfiguration), "vocab_size"),
        ({"vocab_size": 129}, MalformedData, r"lm_head.weight is \[128, 64\].*needs \[129, 64\]"),
        ({"num_hidden_layers": 10**6}, MalformedData, "num_hidden_layers is 1000000"),
        ({"num_hidden_layers": 4}, MalformedData, r"tensors are missing \(model.layers.3"),
        ({"num_hidden_layers": 2}, MalformedData, r"not known \(model.layers.2"),
        ({"num_attention_heads": 3}, BadConfiguration, "cannot share"),
        ({"num_key_value_heads": 4}, MalformedData, "k_proj"),
        ({"head_dim": 15}, BadConfiguration, "odd"),
        ({"hidden_act": "relu"}, BadConfiguration, "hidden_act = 'relu' is not supported"),
        ({"rms_norm_eps": "small"}, MalformedData, "rms_norm_eps"),
        ({"rms_norm_eps": -1}, MalformedData, "rms_norm_eps"),
        ({"rope_parameters": {"rope_type": "magic"}}, BadConfiguration, "'magic' is not supported"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8}},
            MalformedData,
            "low_freq_factor is missing",
        ),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, MalformedData, "factor"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2, "wobble": 1}},
            BadConfiguration,
            "wobble",
        ),
        ({"rope_parameters": 7}, MalformedData, "rope_parameters"),
        ({"tie_word_embeddings": "yes"}, MalformedData, "tie_word_embeddings"),
        ({"tie_word_embeddings": True}, None, ""),
        ({"attention_bias": True}, MalformedData, "tensors are missing"),
        ({"quantization_config": {"quant_method": "gptq"}}, BadConfiguration, "quantization_config"),
        ({"eos_token_id": "x"}, MalformedData, "eos_token_id"),
        ({"auto_map": {}}, Refused, "remote code"),
    ],
)
def test_configurations(changes, error, message, folder, tmp_path):
    path = changed(folder, tmp_path, **changes)
    if error is None:
        load_decoder(open_checkpoint(path), "fp32")
        return
    with pytest.raises(error, match=message):
        load_decoder(open_checkpoint(path), "fp32")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "holds a list"),
        (b"\xff\xfe", "codec|not JSON"),
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (b'{"a": NaN}', "not a finite"),
        (b'{"a": 1e999}', "not a finite"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"a":' * 100_000, "nested too deeply|not JSON|nested deeper"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested deeper"),
        (b'{"a": "' + b"x" * (9 << 20) + b'"}', "more than"),
    ],
)
def test_broken_json(data, message, tmp_path):
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(MalformedData, match=message):
        open_checkpoint(tmp_path)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)  # fmt: skip
KEYS = st.sampled_from(
    [
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "num_hidden_layers",
        "head_dim",
        "vocab_size",
        "rms_norm_eps",
        "rope_theta",
        "rope_parameters",
        "rope_scaling",
        "max_position_embeddings",
        "hidden_act",
        "layer_types",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "tie_word_embeddings",
        "eos_token_id",
        "query_pre_attn_scalar",
        "sliding_window_pattern",
        "final_logit_softcapping",
        "rope_local_base_freq",
        "attention_bias",
        "mlp_bias",
        "num_local_experts",
        "num_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "mlp_only_layers",
        "decoder_sparse_step",
        "no_rope_layers",
        "moe_layers",
        "interleave_moe_layer_step",
        "attention_chunk_size",
        "floor_scale",
        "partial_rotary_factor",
        "original_max_position_embeddings",
        "num_kv_heads",
        "new_decoder_architecture",
        "num_ln_in_parallel_attn",
        "alibi",
        "n_layer",
        "n_head",
        "attn_logit_softcapping",
    ]
)
MODEL_TYPES = [
    "llama", "llama4_text", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "qwen2_moe",
    "qwen3_moe", "phi", "phi3", "falcon", "bloom",
]  # fmt: skip
ARCHITECTURES = [
    "llama", "gemma", "gemma2", "gemma3", "qwen2", "qwen3", "qwen2moe", "qwen3moe", "phi2", "phi3", "falcon", "bloom",
]  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(MODEL_TYPES), st.dictionaries(KEYS, VALUES, max_size=6))
def test_any_configuration_is_a_spec_or_an_error_of_ours(model_type, changes):
    base = {
        "model_type": model_type, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
        "num_hidden_layers": 2, "vocab_size": 128, "num_key_value_heads": 2, "head_dim": 16,
    }  # fmt: skip
    from pathlib import Path

    from paragone.checkpoint.checkpoint import Checkpoint

    checkpoint = Checkpoint(Path("x"), "hf", Path("config.json"), base | changes, {})
    try:
        assert spec_of(checkpoint).num_layers >= 1
    except ParagoneError as err:
        assert "config.json" in str(err)


GGUF_KEYS = st.sampled_from(
    [
        "context_length",
        "block_count",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.freq_base",
        "rope.freq_base_swa",
        "rope.dimension_count",
        "rope.scaling.type",
        "rope.scaling.factor",
        "attention.sliding_window",
        "vocab_size",
        "attention.sliding_window_pattern",
        "final_logit_softcapping",
        "expert_count",
        "expert_used_count",
        "expert_feed_forward_length",
        "attention.layer_norm_epsilon",
        "rope.scaling.original_context_length",
    ]
)


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(ARCHITECTURES), st.dictionaries(GGUF_KEYS, VALUES, max_size=6))
def test_any_gguf_metadata_is_a_spec_or_an_error_of_ours(arch, changes):
    from pathlib import Path

    from paragone.checkpoint.checkpoint import Checkpoint
    from paragone.checkpoint.gguf_types import BY_CODE
    from paragone.checkpoint.tensors import StoredTensor

    base = {
        "context_length": 128, "block_count": 2, "embedding_length": 64, "feed_forward_length": 96,
        "attention.head_count": 4, "attention.layer_norm_rms_epsilon": 1e-5, "attention.sliding_window": 8,
    }  # fmt: skip
    metadata = {f"{arch}.{k}": v for k, v in (base | changes).items()} | {"general.architecture": arch}
    embedding = StoredTensor("token_embd.weight", (128, 64), BY_CODE[0], None, 0, 0)
    checkpoint = Checkpoint(
        Path("m.gguf"), "gguf", Path("m.gguf"), metadata, {"token_embd.weight": embedding}
    )
    try:
        assert spec_of(checkpoint).num_layers >= 1
    except ParagoneError as err:
        assert "m.gguf" in str(err)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mixtral", {"num_experts_per_tok": 9}, "9 of 4 experts"),
        ("mixtral", {"num_local_experts": 0}, "num_local_experts"),
        ("mixtral", {"num_local_experts": 5}, "tensors are missing"),
        ("qwen2_moe", {"mlp_only_layers": ["x"]}, "mlp_only_layers"),
        ("qwen2_moe", {"moe_intermediate_size": 64}, r"needs \[64, 64\]"),
        ("phi", {"partial_rotary_factor": 1.5, "rope_parameters": None}, "not a share"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm"),
        ("phi3_longrope", {"rope_parameters": {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}}, "1 short and 1 long"),
        ("phi3_longrope", {"rope_parameters": {"rope_type": "longrope", "short_factor": "x", "long_factor": [1]}}, "short_factor"),
        ("phi3_longrope", {"rope_parameters": {"rope_type": "longrope", "long_factor": [-1] * 8}}, "long_factor|short_factor"),
        ("falcon_40b", {"num_kv_heads": 3}, "cannot share"),
        ("falcon_7b", {"new_decoder_architecture": True}, "missing"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual"),
        ("bloom", {"n_head": 5}, "tensor|needs|odd"),
        ("llama4", {"no_rope_layers": [1, 2]}, "no_rope_layers"),
        ("llama4", {"layer_types": ["full_attention"]}, "layer_types"),
        ("gemma2", {"sliding_window": -1}, "sliding_window"),
        ("mistral_window", {"sliding_window": "wide"}, "sliding_window"),
    ],
)  # fmt: skip
def test_wrong_configurations_of_other_families(name, changes, message, tmp_path):
    from tests.tiny import CASES

    next(c for c in CASES if c.name == name).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(ParagoneError, match=message):
        load_decoder(open_checkpoint(tmp_path), "fp32")


def test_loading_proves_that_every_tensor_is_used(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    for missing in (["model.norm.weight"], ["model.layers.1.mlp.up_proj.weight"], list(tensors)[:2]):
        changed(folder, tmp_path)
        save_file({k: v for k, v in tensors.items() if k not in missing}, tmp_path / "model.safetensors")
        with pytest.raises(MalformedData, match=f"{len(missing)} tensors are missing"):
            load_decoder(open_checkpoint(tmp_path), "fp32")
    save_file(tensors | {"model.extra.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(MalformedData, match=r"1 are not known \(model\.extra\.weight\)"):
        load_decoder(open_checkpoint(tmp_path), "fp32")


def test_nothing_there(tmp_path):
    with pytest.raises(NotFound, match="no such"):
        open_checkpoint(tmp_path / "x")
    with pytest.raises(NotFound, match="not a model"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(NotFound, match="was the download finished"):
        open_checkpoint(tmp_path)


def test_facts_name_what_is_wrong(tmp_path):
    facts = Facts(tmp_path / "c.json", {"a": 1, "b": struct})
    assert facts.integer("a") == 1
    with pytest.raises(BadConfiguration, match="unknown key 'b'"):
        facts.finish(())
