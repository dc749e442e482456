"""Vocabularies that are kept as ranks: tiktoken's files (Llama 3 and 4, Qwen) and Mistral's tekken.json.

A token's rank is the order in which merging makes it, so the merges need not be stored: every way to put a
token together from two others is one, and the lower rank goes first (openai/tiktoken, `_byte_pair_merge`).
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from paragone import limits
from paragone.checkpoint.jsonfile import read_json
from paragone.errors import BadConfiguration, MalformedData
from paragone.text.backends import CONTROL, NORMAL, TokenizersBackend, byte_of_character
from paragone.text.pretokenizers import TEKKEN, build_pretokenizer

TIKTOKEN_LINE = 512  # bytes of a line of a rank file: a token in base64, its rank


def _reserved(name: str, first: int, count: int) -> tuple[str, ...]:
    return tuple(f"<|{name}reserved_special_token_{i}|>" for i in range(first, first + count))


# Control tokens follow the ranks; files do not name them. Source: llama-models, llama3 and llama4.
_LLAMA3 = (
    "<|begin_of_text|>", "<|end_of_text|>", *_reserved("", 0, 2), "<|finetune_right_pad_id|>", "<|step_id|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>", "<|image|>",
    *_reserved("", 2, 244),
)  # fmt: skip
_LLAMA4 = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    "<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>",
    *_reserved("text_post_train_", 0, 6), "<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>",
    *_reserved("text_post_train_", 8, 61), "<|image_start|>", "<|image_end|>", *_reserved("vision_", 0, 2),
    "<|tile_x_separator|>", "<|tile_y_separator|>", *_reserved("vision_", 2, 4), "<|image|>",
    *_reserved("vision_", 6, 1), "<|patch|>", *_reserved("vision_", 7, 1041),
    *_reserved("reasoning_", 0, 8), "<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>",
    *_reserved("", 0, 904),
)  # fmt: skip
_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
# A rank file does not say whose it is, but no two have as many ranks: (pre-tokeniser, control tokens).
_TIKTOKEN = {128_000: ("llama3", _LLAMA3), 200_000: ("llama4", _LLAMA4), 151_643: ("qwen2", _QWEN)}
# Mistral's control tokens where tekken.json does not list them. Source: mistral-common, tekken.py.
_TEKKEN = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
    "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip


def is_tiktoken(path: Path) -> bool:
    """Whether a file begins as tiktoken's rank files do; SentencePiece models have the same name."""
    with path.open("rb") as file:
        line = file.readline(TIKTOKEN_LINE).split()
    return len(line) == 2 and line[1] == b"0" and _bytes_of(line[0]) is not None


def read_tiktoken(path: Path) -> TokenizersBackend:
    """The tokenizer of a rank file. Raises MalformedData for a broken file,
    BadConfiguration for a vocabulary that is none of the known ones."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_limited(path).rstrip().splitlines(), 1):
        parts = line.split()
        token = _bytes_of(parts[0]) if len(parts) == 2 and parts[1].isascii() and parts[1].isdigit() else None
        if token is None or len(parts[1]) > 9:
            raise MalformedData(f"{path}: line {number} is no token in base64 and its rank")
        ranks[token] = int(parts[1])
    if len(ranks) not in _TIKTOKEN:
        known = ", ".join(f"{n:,}" for n in _TIKTOKEN)
        raise BadConfiguration(
            f"{path}: {len(ranks):,} ranks are no known vocabulary ({known}): a tokenizer.json is needed"
        )
    pre, control = _TIKTOKEN[len(ranks)]
    return _backend(ranks, (), control, pre, path)


def read_tekken(path: Path) -> TokenizersBackend:
    """The tokenizer of a tekken.json. Raises MalformedData where it is broken, BadConfiguration where it cuts
    texts otherwise than any known one."""
    data = read_json(path, limits.RANKED_FILE_BYTES)
    config, vocabulary = data.get("config"), data.get("vocab")
    if not isinstance(config, dict) or not isinstance(vocabulary, list):
        raise MalformedData(f"{path}: is no tekken.json: config or vocab is missing")
    if config.get("pattern") != TEKKEN:
        raise BadConfiguration(f"{path}: config.pattern is not the one that is known")
    size, count = config.get("default_vocab_size"), config.get("default_num_special_tokens")
    if not isinstance(size, int) or not isinstance(count, int) or not count < size <= limits.VOCAB_SIZE:
        raise MalformedData(f"{path}: default_vocab_size {size} cannot be")
    if not 3 <= count <= limits.RANKED_CONTROL_TOKENS:
        raise MalformedData(f"{path}: default_num_special_tokens {count} cannot be")
    if len(vocabulary) < size - count:
        raise MalformedData(f"{path}: vocab has {len(vocabulary)} tokens, not {size - count} or more")
    ranks: dict[bytes, int] = {}
    for rank, entry in enumerate(vocabulary[: size - count]):
        token = _bytes_of(entry.get("token_bytes")) if isinstance(entry, dict) else None
        if token is None or entry.get("rank") != rank:
            raise MalformedData(f"{path}: vocab[{rank}] is no token of rank {rank}")
        ranks[token] = rank
    return _backend(ranks, _tekken_control(data.get("special_tokens"), count, path), (), "tekken", path)


def _tekken_control(listed: Any, count: int, path: Path) -> list[str]:
    """The spelling of control tokens by id; ids without a name get a filler, as the reference gives them."""
    if listed is None:
        names = dict(enumerate(_TEKKEN[:count]))
    else:
        names = {}
        for entry in listed if isinstance(listed, list) else [None]:
            found = entry if isinstance(entry, dict) else {}
            rank, name = found.get("rank"), found.get("token_str")
            if type(rank) is not int or not 0 <= rank < count or rank in names or not isinstance(name, str):
                raise MalformedData(f"{path}: special_tokens is no list of tokens with ranks below {count}")
            names[rank] = name
    return [names.get(i, f"<SPECIAL_{i}>") for i in range(count)]


def _backend(
    ranks: Mapping[bytes, int], before: Sequence[str], after: Sequence[str], pre: str, path: Path
) -> TokenizersBackend:
    """A byte-level BPE whose control tokens come before or after the ranks."""
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise MalformedData(f"{path}: ranks are missing or there twice")
    if not all(bytes((byte,)) in ranks for byte in range(256)):
        raise MalformedData(f"{path}: some bytes are no tokens, so that texts would lose them")
    if sum(len(token) ** 2 for token in ranks) > limits.RANKED_TOKENS_WORK:
        raise MalformedData(f"{path}: tokens are too long to find their merges")
    letters = {byte: letter for letter, byte in byte_of_character().items()}
    by_name = {token.decode("latin-1").translate(letters): rank for token, rank in ranks.items()}
    by_rank = sorted(by_name, key=by_name.__getitem__)
    if not by_name.keys().isdisjoint((*before, *after)) or len({*before, *after}) < len(before) + len(after):
        raise MalformedData(f"{path}: a control token is spelled like another token")
    tokens = [*before, *by_rank, *after]
    kinds = [CONTROL] * len(before) + [NORMAL] * len(by_rank) + [CONTROL] * len(after)
    # A piece of text that is a token is never taken apart, whatever the merges say.
    steps = replace(build_pretokenizer(pre, path), ignore_merges=True)
    return TokenizersBackend.from_vocabulary(tokens, kinds, _merges(by_name, by_rank), steps, path)


def _merges(ranks: Mapping[str, int], by_rank: Sequence[str]) -> list[tuple[str, str]]:
    """Every pair of tokens that make another, in the order of what they make."""
    merges = []
    for token in by_rank:
        pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
        found = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        merges += (
            found if len(found) < 2 else sorted(found, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        )
    return merges


def _bytes_of(text: Any) -> bytes | None:
    """What base64 says, or None where it says nothing."""
    try:
        return base64.b64decode(text, validate=True) or None
    except (TypeError, ValueError, binascii.Error):
        return None


def _limited(path: Path) -> bytes:
    if path.stat().st_size > limits.RANKED_FILE_BYTES:
        raise MalformedData(f"{path}: larger than {limits.RANKED_FILE_BYTES} bytes")
    return path.read_bytes()
