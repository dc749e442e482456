"""Models written as GGUF give the logits of the folder they came from; real weights give transformers'."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from benchmarks.export import export

from paragone.checkpoint.checkpoint import open_checkpoint
from paragone.model.load import load_decoder
from tests.real import GEMMA3, SMOLLM2, path_of
from tests.tiny import CASES

ARCH = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3", "mistral": "llama",
    "mixtral": "llama", "gemma": "gemma", "gemma2": "gemma2", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe",
    "phi": "phi2", "phi3": "phi3", "llama4_text": "llama4", "falcon": "falcon", "bloom": "bloom",
}  # fmt: skip
# What GGUF cannot say: yarn's and llama3's parameters beyond a tensor of divisors, windows of Qwen, other
# query scales of Gemma 3 than its head width's.
WRITABLE = [c for c in CASES if c.name in
            ("llama1", "llama2_gqa", "llama_biases", "llama3.1", "llama3.2_tied", "llama_linear", "qwen2_tied",
             "qwen3", "gemma3", "mistral_nemo", "mixtral", "gemma", "gemma2", "qwen2_moe", "qwen3_moe", "phi",
             "phi3_window", "phi3_longrope", "phi4_mini", "falcon_7b", "falcon_40b", "falcon_11b", "bloom", "llama4")]  # fmt: skip
# What the conversion takes as given, so that the folder must have it too.
GIVEN = {
    "gemma3": {"query_pre_attn_scalar": 32}, "gemma2": {"query_pre_attn_scalar": 32},
    "llama4": {"attention_chunk_size": 8192, "floor_scale": 8192},
    "qwen2_moe": {"mlp_only_layers": []}, "qwen3_moe": {"decoder_sparse_step": 1},
}  # fmt: skip


def permuted(weight, heads):
    """What conversion does to Llama's q and k."""
    shape = weight.shape
    return weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def write_gguf(model, path, single_experts=False, add=gguf.GGUFWriter.add_tensor):
    """The conversion's rules, written down once more and independently of the reader's tables. Files from 2023
    keep `single_experts`, not stacks of them. `add` writes a tensor."""
    c = model.config
    arch = ARCH[c.model_type]
    w = gguf.GGUFWriter(path, arch)
    heads = c.num_attention_heads
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // heads
    inner = getattr(c, "intermediate_size", None) or 4 * c.hidden_size
    kv_heads = getattr(c, "num_key_value_heads", heads)
    if arch == "falcon":
        kv_heads = c.num_kv_heads if c.new_decoder_architecture else 1
    w.add_context_length(getattr(c, "max_position_embeddings", 2048))
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(getattr(c, "intermediate_size_mlp", inner))
    w.add_head_count(heads)
    w.add_head_count_kv(kv_heads)
    if hasattr(c, "rms_norm_eps"):
        w.add_layer_norm_rms_eps(c.rms_norm_eps)
    else:
        w.add_layer_norm_eps(getattr(c, "layer_norm_epsilon", None) or c.layer_norm_eps)
    if arch not in ("falcon", "bloom", "phi2", "phi3"):
        w.add_key_length(head_dim)
        w.add_value_length(head_dim)
    if arch in ("gemma2", "gemma3", "phi3"):
        w.add_sliding_window(c.sliding_window or 0)
    if arch == "gemma2":
        w.add_attn_logit_softcapping(c.attn_logit_softcapping)
        w.add_final_logit_softcapping(c.final_logit_softcapping)
    experts = getattr(c, "num_experts", None) or getattr(c, "num_local_experts", None)
    if experts:
        w.add_expert_count(experts)
        w.add_expert_used_count(c.num_experts_per_tok)
        if arch != "llama":
            w.add_expert_feed_forward_length(inner if arch == "llama4" else c.moe_intermediate_size)
        if arch == "qwen2moe":
            w.add_expert_shared_feed_forward_length(c.shared_expert_intermediate_size)
    if arch not in ("bloom", "gemma", "gemma2"):
        write_rope(w, model, arch, head_dim)
    if arch == "llama4":
        w.add_interleave_moe_layer_step(c.interleave_moe_layer_step)

    def add_experts(at, part, stack):
        if not single_experts:
            add(w, f"{at}{part}_exps.weight", np.ascontiguousarray(stack))
            return
        for number, expert in enumerate(stack):
            add(w, f"{at}{part}.{number}.weight", np.ascontiguousarray(expert))

    tensors = dict(model.state_dict())
    if c.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    names = gguf.get_tensor_name_map(
        next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch), c.num_hidden_layers
    )
    for name, value in tensors.items():
        data = value.float().numpy()
        if arch == "llama4" and ".experts." in name:
            data = data.swapaxes(1, 2)
        at = f"blk.{name.split('.')[2]}.ffn_" if "experts." in name else ""
        if name.endswith("experts.gate_up_proj"):
            half = data.shape[1] // 2
            add_experts(at, "gate", data[:, :half])
            add_experts(at, "up", data[:, half:])
            continue
        if name.endswith("experts.down_proj"):
            add_experts(at, "down", data)
            continue
        if arch == "llama" and ".q_proj" in name:
            data = permuted(data, heads)
        if arch == "llama" and ".k_proj" in name:
            data = permuted(data, kv_heads)
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            data = data + 1
        if "query_key_value" in name:
            groups = data.reshape(kv_heads, heads // kv_heads + 2, head_dim, *data.shape[1:])
            parts = (groups[:, :-2], groups[:, -2], groups[:, -1])
            data = np.concatenate([part.reshape(-1, *data.shape[1:]) for part in parts])
        stored = names.get_name(name, (".weight", ".bias"))
        stored = stored or names.get_name(name.removeprefix("transformer."), (".weight", ".bias"))
        add(w, stored, np.ascontiguousarray(data))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def write_rope(w, model, arch, head_dim):
    """Theta, scaling, and the tensors that some scalings are stored in."""
    rope = model.config.rope_parameters
    rope = rope["full_attention"] if arch == "gemma3" else rope
    w.add_rope_freq_base(rope["rope_theta"])
    turned = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    w.add_rope_dimension_count(turned)
    if rope["rope_type"] == "linear":
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":
        default = 1.0 / rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
        w.add_tensor(
            "rope_freqs.weight", (default / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
        )
    if rope["rope_type"] == "longrope":
        w.add_rope_scaling_orig_ctx_len(model.config.original_max_position_embeddings)
        for which in ("long", "short"):
            w.add_tensor(f"rope_factors_{which}.weight", np.array(rope[f"{which}_factor"], np.float32))


@pytest.mark.parametrize("case", WRITABLE, ids=lambda c: c.name)
@torch.inference_mode()
def test_gguf_equals_its_folder(case, tmp_path):
    case = replace(case, options={**case.options, **GIVEN.get(case.name, {})})
    model = case.save(tmp_path / "hf")
    write_gguf(model, tmp_path / "m.gguf")
    ids = torch.randint(0, 128, (2, 48), generator=torch.Generator().manual_seed(2))
    got = load_decoder(open_checkpoint(tmp_path / "m.gguf"), "fp32")(ids)
    want = model(ids).logits
    assert (got - want).abs().max() <= 2e-5 * want.std()


@torch.inference_mode()
def test_old_files_with_single_experts(tmp_path):
    model = next(c for c in CASES if c.name == "mixtral").build()
    write_gguf(model, tmp_path / "m.gguf", single_experts=True)
    ids = torch.randint(0, 128, (2, 48), generator=torch.Generator().manual_seed(2))
    got = load_decoder(open_checkpoint(tmp_path / "m.gguf"), "fp32")(ids)
    want = model(ids).logits
    assert (got - want).abs().max() <= 2e-5 * want.std()


NVFP4 = gguf.GGMLQuantizationType.NVFP4


def in_nvfp4(matrix):
    """(rows, blocks of 64 as bytes), and what all of it is to be multiplied by. Numbers that came out of it
    twice stay as they are."""
    amax = np.abs(matrix).reshape(len(matrix), -1, 16).max(2, keepdims=True)
    factor = np.float32(2.0 ** np.ceil(np.log2(amax.max() / 6 / 400)) * 1.25)
    stored = gguf.quants.NVFP4.fp32_to_ue4m3((amax / 6 / factor).astype(np.float32))
    scale = gguf.quants.NVFP4.ue4m3_to_fp32(stored) * factor
    levels = np.array(gguf.quants.NVFP4.kvalues, np.float32)
    levels[8] = 99  # zero has one code
    near = np.abs(matrix.reshape(*amax.shape[:2], 16, 1) / np.maximum(scale, 1e-30)[..., None] - levels)
    codes = near.argmin(-1).astype(np.uint8)
    both = (codes[..., :8] | codes[..., 8:] << 4).reshape(len(matrix), -1, 32)
    blocks = np.concatenate([stored.reshape(len(matrix), -1, 4), both], axis=2)
    return blocks.reshape(len(matrix), -1), factor


def from_nvfp4(raw, factor):
    return gguf.quants.dequantize(raw, NVFP4) * factor


@pytest.mark.parametrize("name", ["llama2_gqa", "mixtral"])
@torch.inference_mode()
def test_nvfp4_with_the_numbers_beside_it(name, tmp_path):
    """A factor for each matrix and for each expert; those of inputs change nothing."""
    model = next(c for c in CASES if c.name == name).build()
    for key, parameter in model.model.layers.named_parameters():
        if parameter.ndim == 1 or parameter.shape[-1] % 64:
            continue
        for stored in parameter if parameter.ndim == 3 else [parameter]:
            for matrix in stored.chunk(2) if "gate_up" in key else [stored]:
                for _ in range(2):  # the first time may lower the largest, and so the factor
                    matrix.copy_(torch.from_numpy(from_nvfp4(*in_nvfp4(matrix.numpy()))))
    written = {}

    def add(w, name, data):
        if data.ndim == 1 or data.shape[-1] % 64 or not name.startswith("blk.") or "gate_inp" in name:
            w.add_tensor(name, data)
            return
        parts = [in_nvfp4(matrix) for matrix in (data if data.ndim == 3 else data[None])]
        raw = np.stack([raw for raw, _ in parts])
        w.add_tensor(name, raw if data.ndim == 3 else raw[0], raw_dtype=NVFP4)
        factors = written[name] = np.array([factor for _, factor in parts], np.float32)
        w.add_tensor(name.replace(".weight", ".scale"), factors)
        w.add_tensor(name.replace(".weight", ".input_scale"), 3 * factors)

    write_gguf(model, tmp_path / "m.gguf", add=add)
    assert len(written) >= 8
    assert name != "mixtral" or max(len(set(factors)) for factors in written.values()) > 1
    ids = torch.randint(0, 128, (2, 48), generator=torch.Generator().manual_seed(2))
    checkpoint, want = open_checkpoint(tmp_path / "m.gguf"), model(ids).logits
    assert (load_decoder(checkpoint, "fp32")(ids) - want).abs().max() <= 2e-5 * want.std()
    packed = load_decoder(checkpoint, "int8")  # whose integers are the file's
    linear = packed.blocks[1].attn.o
    assert linear.parts[0].packing.levels is not None
    stored = model.model.layers[1].self_attn.o_proj.weight
    torch.testing.assert_close(linear.parts[0].dequantize(), stored, rtol=1e-6, atol=0)
    assert (packed(ids) - want).abs().max() <= 0.1 * want.std()


PROMPTS = [
    "The capital of France is", "Once upon a time", "def fibonacci(n):", "Water boils at", "The quick brown fox",
    "In 1969, humans", "My favourite recipe is", "The difference between a virus and", "import numpy as np\n",
    "Dear Sir or Madam,", "The meaning of life", "To be or not to be", "A triangle has", "The best way to learn",
    "Q: What is 17 + 25?\nA:", "Die Hauptstadt von Deutschland", "El sol sale por", "Photosynthesis is",
    "SELECT name FROM", "The stock market",
]  # fmt: skip


@pytest.mark.parametrize("name", [SMOLLM2, GEMMA3])
@torch.inference_mode()
def test_real_weights_give_the_same_greedy_tokens(name, tmp_path):
    """64 tokens after each of 20 prompts, in fp32 from the same dequantised weights."""
    from transformers import AutoModelForCausalLM

    from paragone.engine.load import load_model

    model = load_model(path_of(name), name, "fp32")
    export(model.checkpoint, tmp_path, torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = [model.encode(p) for p in PROMPTS]
    for prompt, answer in zip(ids, model.generate(ids, max_tokens=64, ignore_eos=True), strict=True):
        # What the reference takes after each of them: if it is the next one everywhere, it would have said the same.
        logits = reference(torch.tensor([prompt + answer.token_ids])).logits[0, len(prompt) - 1 : -1]
        assert answer.token_ids == logits.argmax(-1).tolist()
