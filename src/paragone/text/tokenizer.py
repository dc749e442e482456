"""A model's tokenizer: from whichever file it comes, one set of methods.

Text is only ever text: special tokens spelled in it are encoded as the characters they are. Control
tokens enter by `special` ids or through a chat template.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paragone import limits
from paragone.checkpoint.jsonfile import read_json, refuse_remote_code
from paragone.errors import BadConfiguration, MalformedData, NotFound, UsageError
from paragone.text.backends import (
    Backend,
    SentencePieceBackend,
    TokenizersBackend,
    sentencepiece_model,
)
from paragone.text.control import END_OF_TURN, is_control
from paragone.text.pretokenizers import build_pretokenizer
from paragone.text.ranks import is_tiktoken, read_tekken, read_tiktoken


@dataclass
class Tokenizer:
    """Text to ids and back.

    `prefix` goes before a prompt (BOS, where the model wants it); `stop_ids` end an answer; `special` maps
    the control tokens' spelling to ids; `chat_template` is Jinja source or None, `chat_stop` the texts that
    end an answer in it, beside `stop_ids`. `strips` are control tokens that swallow the white space (before,
    after) them.
    """

    backend: Backend
    special: dict[str, int]
    prefix: list[int] = field(default_factory=list)
    stop_ids: frozenset[int] = frozenset()
    bos_id: int | None = None
    eos_id: int | None = None
    chat_template: str | None = None
    chat_stop: tuple[str, ...] = ()
    strips: dict[int, tuple[bool, bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._special_ids = frozenset(self.special.values())
        self._bytes: dict[int, bytes] = {}
        self._text_bytes: dict[int, bytes] = {}

    @property
    def vocab_size(self) -> int:
        return self.backend.size

    @property
    def gap(self) -> str:
        """What a text after a control token begins with, where the vocabulary was trained with a space there
        and the file does not put it."""
        return " " if self.backend.adds_space and not self.backend.spaces_every_run else ""

    def encode(self, text: str, *, prefix: bool = False, first: bool = True) -> list[int]:
        """Ids of a text; with `prefix` as a prompt, with the model's BOS where it wants one."""
        try:
            text.encode()
        except UnicodeEncodeError as err:
            raise MalformedData(f"text has half of a surrogate pair (character {err.start})") from None
        ids = self.backend.encode(text, first=first)
        if not self._special_ids.isdisjoint(ids):
            ids = self._encode_as_text(text, first)
        return (self.prefix if prefix else []) + ids

    def _encode_as_text(self, text: str, first: bool) -> list[int]:
        """For a library that takes control tokens, which the file does not flag, out of the text: it never
        sees one whole."""
        names = sorted(filter(None, self.special), key=len, reverse=True)
        ids: list[int] = []
        for piece in re.split("(" + "|".join(map(re.escape, names)) + ")", text):
            for part in (piece[:1], piece[1:]) if piece in self.special else (piece,):
                ids += self.backend.encode(part, first=first and not ids)
        return [i for i in ids if i not in self._special_ids]  # a name inside a name

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for. Raises UsageError for an id outside the vocabulary."""
        found = self._bytes.get(token_id)
        if found is None:
            if not self.knows(token_id):
                raise UsageError(f"token id {token_id} is outside the vocabulary of {self.backend.size}")
            found = self._bytes[token_id] = self.backend.token_bytes(token_id)
        return found

    def text_bytes(self, token_id: int, *, special: bool = False) -> bytes:
        """What a token adds to a text: control tokens are punctuation between a model's turns, and add
        nothing unless `special` asks for their spelling. Nor do ids outside the vocabulary."""
        if special:
            return self.token_bytes(token_id) if self.knows(token_id) else b""
        found = self._text_bytes.get(token_id)
        if found is None:
            shown = self.knows(token_id) and not self.is_special(token_id)
            found = self._text_bytes[token_id] = self.token_bytes(token_id) if shown else b""
        return found

    def knows(self, token_id: int) -> bool:
        """Whether the vocabulary has this id. Embeddings often have more rows, and vocabularies holes."""
        return token_id in self._bytes or (0 <= token_id < 1 << 32 and self.backend.has_token(token_id))

    def differs_from(self, other: "Tokenizer") -> int | None:
        """The first id that stands for something else there, None where the two agree on all that both
        know."""
        for token_id in range(min(self.vocab_size, other.vocab_size)):
            here = self.knows(token_id) and self.backend.token_bytes(token_id)
            there = other.knows(token_id) and other.backend.token_bytes(token_id)
            if here != there or self.is_special(token_id) != other.is_special(token_id):
                return token_id
        return None

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a control token."""
        return token_id in self._special_ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        pieces = [self.token_bytes(i) for i in ids if not (skip_special and self.is_special(i))]
        text = b"".join(pieces).decode("utf-8", "replace")
        return text[1:] if self.backend.adds_space and text.startswith(" ") else text

    def special_text(self, token_id: int | None) -> str | None:
        """A control token's spelling."""
        return None if token_id is None else self.token_bytes(token_id).decode("utf-8", "replace")


def tokenizer_from_gguf(metadata: dict[str, Any], path: Path) -> Tokenizer:
    """The tokenizer inside a GGUF file."""
    model = metadata.get("tokenizer.ggml.model")
    if not isinstance(model, str):
        raise MalformedData(f"{path}: tokenizer.ggml.model is missing or no text")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(t, str) for t in tokens):
        raise MalformedData(f"{path}: tokenizer.ggml.tokens is missing or holds no strings")
    types = _numbers(metadata, "token_type", len(tokens), path, default=1)
    if not all(type(t) is int and 1 <= t <= 6 for t in types):
        raise MalformedData(f"{path}: tokenizer.ggml.token_type has a kind outside 1 to 6")
    if max(map(len, tokens)) > limits.TOKEN_BYTES:
        raise MalformedData(f"{path}: a token is longer than {limits.TOKEN_BYTES} bytes")

    def id_of(name: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        return value if isinstance(value, int) and 0 <= value < len(tokens) else None

    backend: Backend
    if model == "llama":
        scores = _numbers(metadata, "scores", len(tokens), path, default=0.0)
        if not all(math.isfinite(score) and abs(score) < 1e30 for score in scores):
            raise MalformedData(f"{path}: tokenizer.ggml.scores holds what is no usable number")
        adds_space = metadata.get("tokenizer.ggml.add_space_prefix", True) is True
        unknown = id_of("unknown") or 0
        types = [t if i != unknown or t == 2 else 2 for i, t in enumerate(types)]
        types = [t if i == unknown or t != 2 else 3 for i, t in enumerate(types)]
        proto = sentencepiece_model(tokens, scores, types, unknown, adds_space)
        backend = SentencePieceBackend(proto, path, adds_space)
        adds_bos = True
    elif model == "gpt2":
        merges = metadata.get("tokenizer.ggml.merges")
        if not isinstance(merges, list):
            raise MalformedData(f"{path}: tokenizer.ggml.merges is missing")
        pre = metadata.get("tokenizer.ggml.pre")
        if not isinstance(pre, str):
            raise MalformedData(f"{path}: tokenizer.ggml.pre is missing, so texts cannot be cut as trained")
        pretokenizer = build_pretokenizer(pre, path)
        backend = TokenizersBackend.from_vocabulary(tokens, types, _pairs(merges, path), pretokenizer, path)
        adds_bos = pre in ("llama-bpe", "llama3", "llama-v3", "tekken")
    else:
        raise BadConfiguration(f"{path}: tokenizer {model[:80]!r} is not supported. Known: gpt2, llama.")
    special = {t: i for i, t in reversed(list(enumerate(tokens))) if t and (types[i] == 3 or is_control(t))}
    bos, eos = id_of("bos"), id_of("eos")
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", adds_bos) is True
    stops = {i for i in (eos, id_of("eot"), id_of("eom")) if i is not None}
    template = metadata.get("tokenizer.chat_template")
    # GGUF has no flag for it: Phi-3's control tokens but for the oldest swallow white space, as in llama.cpp.
    is_phi3 = model == "llama" and metadata.get("general.architecture") == "phi3"
    plain = {"<unk>", "<s>", "<|endoftext|>"}
    return Tokenizer(
        backend,
        special,
        [bos] if adds_bos and bos is not None else [],
        _stop_ids(stops, special),
        bos,
        eos,
        template if isinstance(template, str) else None,
        strips={i: (False, True) for name, i in special.items() if is_phi3 and name not in plain},
    )


def tokenizer_from_folder(folder: Path, eos_ids: Iterable[int] = ()) -> Tokenizer:
    """The tokenizer of a Hugging Face folder: tokenizer.json, or else Mistral's tekken.json, SentencePiece's
    tokenizer.model, or a tiktoken file of that name."""
    settings_file = folder / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.exists() else {}
    refuse_remote_code(settings, settings_file)
    backend, prefix = _folder_backend(folder)
    special = backend.control_tokens()
    bos = special.get(_content(settings.get("bos_token")) or "<s>")
    eos = special.get(_content(settings.get("eos_token")) or "</s>")
    if prefix is None:
        bos = special.get("<|begin_of_text|>") if bos is None else bos
        prefix = [bos] if bos is not None and settings.get("add_bos_token", True) else []
    stops = set(eos_ids) | ({eos} if eos is not None else set())
    stops |= _generation_stops(folder)
    stops = {i for i in stops if i < backend.size}
    template = _folder_template(folder, settings)
    strips = backend.strips() if isinstance(backend, TokenizersBackend) else {}
    return Tokenizer(backend, special, prefix, _stop_ids(stops, special), bos, eos, template, strips=strips)


def _folder_backend(
    folder: Path,
) -> tuple[SentencePieceBackend | TokenizersBackend, list[int] | None]:
    """What cuts texts, and the ids before a prompt where the file itself says so."""
    path = folder / "tokenizer.json"
    if path.is_file():
        backend = TokenizersBackend.from_file(path)
        return backend, backend.surroundings()[0]
    path = folder / "tekken.json"
    if path.is_file():
        return read_tekken(path), None
    for path in (folder / "tokenizer.model", *sorted(folder.glob("*.tiktoken"))[:1]):
        if not path.is_file():
            continue
        if path.stat().st_size > limits.TOKENIZER_BYTES:
            raise MalformedData(f"{path}: larger than {limits.TOKENIZER_BYTES} bytes")
        if is_tiktoken(path):
            return read_tiktoken(path), None
        return SentencePieceBackend(path.read_bytes(), path), None
    raise NotFound(f"{folder}: has no tokenizer.json, tokenizer.model, tekken.json or *.tiktoken")


def _pairs(merges: list[Any], path: Path) -> list[tuple[str, str]]:
    """GGUF's merges, two tokens with a space between; the first may itself begin with one."""
    if not all(isinstance(merge, str) for merge in merges):
        raise MalformedData(f"{path}: tokenizer.ggml.merges holds something other than strings")
    split = ((merge[:1], *merge[1:].partition(" ")) for merge in merges)
    return [(first + left, right) for first, left, _, right in split]


def _stop_ids(stops: set[int], special: dict[str, int]) -> frozenset[int]:
    return frozenset(stops | {special[name] for name in END_OF_TURN if name in special})


def _numbers(metadata: dict[str, Any], name: str, count: int, path: Path, default: float) -> list[Any]:
    values = metadata.get(f"tokenizer.ggml.{name}")
    if values is None:
        return [default] * count
    if not isinstance(values, np.ndarray) or len(values) != count or values.dtype == bool:
        raise MalformedData(f"{path}: tokenizer.ggml.{name} does not have one number for each token")
    return values.tolist()  # type: ignore[no-any-return]


def _content(token: Any) -> str | None:
    """A token in tokenizer_config.json: a string, or an object with `content`."""
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else None


def _generation_stops(folder: Path) -> set[int]:
    path = folder / "generation_config.json"
    if not path.exists():
        return set()
    value = read_json(path).get("eos_token_id") or []
    ids = value if isinstance(value, list) else [value]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise MalformedData(f"{path}: eos_token_id is neither an id nor a list of ids")
    return set(ids)


def _folder_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """chat_template.jinja, else tokenizer_config.json's (one, or the one called default)."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        if path.stat().st_size > limits.TEMPLATE_BYTES:
            raise MalformedData(f"{path}: larger than {limits.TEMPLATE_BYTES} bytes")
        try:
            return path.read_text("utf-8")
        except UnicodeDecodeError as err:
            raise MalformedData(f"{path}: is not UTF-8: {err.reason} (byte {err.start})") from None
    template = settings.get("chat_template")
    if isinstance(template, list):
        defaults = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
        template = defaults[0].get("template") if defaults else None
    return template if isinstance(template, str) else None
