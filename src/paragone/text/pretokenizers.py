"""How byte-level vocabularies cut a text before merging, by the name that GGUF files give it.

Each name stands for the pre-tokeniser of the family's own tokenizer.json; the names are those of
llama.cpp's `tokenizer.ggml.pre`.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paragone.errors import BadConfiguration

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"


def _cased(end: str) -> str:
    """Words that end where upper case follows lower case, each with an optional `end`."""
    return f"{_BEFORE}{_UPPER}*{_LOWER}+{end}|{_BEFORE}{_UPPER}+{_LOWER}*{end}"


LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_TAIL}"
QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_TAIL}"
TEKKEN = rf"{_cased('')}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_TAIL}"
GPT4O = rf"{_cased(_CONTRACTION + '?')}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_TAIL}"

# Names that mean: split by this expression, then bytes.
EXPRESSIONS = {
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "falcon3": LLAMA3,
    "dbrx": LLAMA3,
    "smaug-bpe": LLAMA3,
    "qwen2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
    "stablelm2": QWEN2,
    "tekken": TEKKEN,
    "gpt-4o": GPT4O,
    "llama4": GPT4O,
}
KNOWN_EXPRESSIONS = frozenset(EXPRESSIONS.values())
# Names that mean GPT-2's own split; those in DIGITS single out every digit first.
GPT2 = {"gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais"}
DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
IGNORE_MERGES = {"llama-bpe", "llama3", "llama-v3", "falcon3", "tekken"}
NFC = {"qwen2", "deepseek-r1-qwen", "stablelm2"}


@dataclass(frozen=True)
class PreTokenizer:
    """The steps before merging, and two habits that go with them."""

    steps: Any
    ignore_merges: bool  # a whole word in the vocabulary is taken as it is
    nfc: bool  # the text is normalised to NFC first


def build_pretokenizer(name: str, source: Path) -> PreTokenizer:
    """The pre-tokeniser of a name. Raises BadConfiguration for a name that is not known."""
    from tokenizers import Regex, pre_tokenizers

    if name in GPT2:
        steps: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    elif name in DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        steps = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif name in EXPRESSIONS:
        split = pre_tokenizers.Split(Regex(EXPRESSIONS[name]), "isolated")
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        steps = pre_tokenizers.Sequence([split, to_bytes])
    else:
        known = sorted(GPT2 | DIGITS | EXPRESSIONS.keys())
        near = difflib.get_close_matches(name[:64], known, n=1)
        raise BadConfiguration(
            f"{source}: pre-tokeniser {name[:60]!r} is not supported"
            + (f"; did you mean {near[0]!r}?" if near else "")
            + f" Known: {', '.join(known)}."
        )
    return PreTokenizer(steps, name in IGNORE_MERGES, name in NFC)
