"""A tiny random Llama with a tokenizer of single bytes and ChatML's control tokens: it says anything, in any
bytes, within milliseconds."""

import json
from pathlib import Path

import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.tiny import BASE, Case

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 1024


def write_tiny_model(
    folder: Path, seed: int = 0, settings: dict | None = None, template: str = TEMPLATE
) -> Path:
    """A Hugging Face folder. `settings` are generation_config.json's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: i for i, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    size = tokenizer.get_vocab_size()
    options = {
        **BASE,
        "vocab_size": size,
        "max_position_embeddings": CONTEXT,
        "eos_token_id": vocab_id(tokenizer, "<|im_end|>"),
        "bos_token_id": None,
    }
    Case("tiny", hf.LlamaConfig, options).save(folder, seed)
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {"eos_token": "<|im_end|>", "chat_template": template, "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    (folder / "generation_config.json").write_text(json.dumps(settings or {}))
    return folder


def vocab_id(tokenizer: Tokenizer, name: str) -> int:
    found = tokenizer.token_to_id(name)
    assert found is not None
    return found
