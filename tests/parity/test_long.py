"""Long texts: every rope scaling beyond its original context, and 32k tokens from end to end."""

from dataclasses import replace

import pytest
import torch

from paragone.checkpoint.checkpoint import open_checkpoint
from paragone.engine.config import EngineConfig
from paragone.engine.engine import Engine
from paragone.engine.params import SamplingParams
from paragone.engine.request import Request
from paragone.model.load import load_decoder
from tests.parity.test_families import TOLERANCE, assert_close, ids_of
from tests.tiny import CASES

SCALED = [
    "llama3.1", "llama3.2_tied", "llama_linear", "llama_yarn", "qwen2_yarn", "gemma3", "phi3_longrope",
    "phi4_mini", "llama_dynamic", "llama4",
]  # fmt: skip
CONTEXT = 32_768


def case_of(name):
    return next(case for case in CASES if case.name == name)


def original_context(spec):
    return max(
        max(rope.original_max_position_embeddings, rope.max_position_embeddings) for rope in spec.ropes
    )


@torch.inference_mode()
@pytest.mark.parametrize("name", SCALED)
def test_beyond_the_original_context(name, tmp_path):
    """Whole, and in chunks that know how long the text will be."""
    reference = case_of(name).save(tmp_path)
    decoder = load_decoder(open_checkpoint(tmp_path), "fp32")
    length = 300
    assert length > original_context(decoder.spec)
    ids = ids_of(decoder, length=length)
    want = reference(ids).logits
    assert_close(decoder(ids), want)
    cache = decoder.new_cache(2, length)
    chunks = [decoder.hidden(ids[:, at : at + 64], cache, longest=length) for at in range(0, length, 64)]
    assert_close(decoder.logits(torch.cat(chunks, dim=1)), want)


def reference_logits(model, ids, last, step):
    """Logits of the last positions, the reference fed `step` tokens at a time."""
    cache, kept = None, []
    for at in range(0, ids.shape[1], step):
        out = model(ids[:, at : at + step], past_key_values=cache, use_cache=True, logits_to_keep=last)
        cache = out.past_key_values
        kept.append(out.logits)
    return torch.cat(kept, dim=1)[:, -last:]


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama3.1", "llama_yarn", "phi3_longrope", "mistral_window", "gemma3"])
def test_32k_tokens_end_to_end(name, tmp_path, smollm2_tokenizer):
    """What the engine generates at the end of a full context is what the reference has as its best there."""
    case = case_of(name)
    # Less of the same: a layer of each kind is what a long text needs.
    fewer = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
    if name == "gemma3":
        fewer["layer_types"] = ["sliding_attention", "full_attention"]
    case = replace(case, options=case.options | fewer | {"max_position_embeddings": CONTEXT})
    windowed = "sliding_window" in case.options
    case.build().save_pretrained(tmp_path)
    reference = case.build(attention="eager" if windowed else "sdpa")
    decoder = load_decoder(open_checkpoint(tmp_path), "fp32")
    prompt = ids_of(decoder, batch=1, length=CONTEXT - 8)[0].tolist()
    request = Request(prompt, SamplingParams(max_tokens=8, ignore_eos=True, logprobs=2))
    answer = Engine(decoder, smollm2_tokenizer, EngineConfig(max_num_seqs=1)).run([request])[0]
    assert len(answer.token_ids) == 8
    ids = torch.tensor([prompt + answer.token_ids])
    want = reference_logits(reference, ids, last=9, step=1024 if windowed else CONTEXT)[:, :8]
    assert want[0].argmax(-1).tolist() == answer.token_ids
    got = torch.tensor([entry.logprob for entry in answer.logprobs])
    chosen = want[0].log_softmax(-1).gather(1, ids[0, -8:, None])[:, 0]
    assert (got - chosen).abs().max() <= TOLERANCE * want.std()
