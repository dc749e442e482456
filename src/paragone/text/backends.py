"""The two libraries that cut text into tokens, behind one small interface.

`sentencepiece` runs SentencePiece BPE models (tokenizer.model, and GGUF's "llama" vocabularies, from
which a model is put together); `tokenizers` runs tokenizer.json, GGUF's "gpt2" vocabularies and those kept as
ranks. Both take special tokens spelled in a text as plain text.
"""

import contextlib
import json
import re
import struct
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from paragone import limits
from paragone.errors import MalformedData, ParagoneError
from paragone.text.control import is_control
from paragone.text.pretokenizers import PreTokenizer
from paragone.text.probe import is_harmless, probe

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"  # how SentencePiece writes a space


class Backend(Protocol):
    """What `Tokenizer` needs of a library. Ids are those of the model; `adds_space` is whether a text gets a
    space before it, `spaces_every_run` whether one after a control token does too."""

    size: int
    adds_space: bool

    @property
    def spaces_every_run(self) -> bool: ...

    def encode(self, text: str, *, first: bool) -> list[int]:
        """Ids of plain text; `first` is whether nothing stands before it."""

    def has_token(self, token_id: int) -> bool:
        """Whether there is a token of this id."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text; special tokens give their spelling."""


class SentencePieceBackend:
    """SentencePiece, from a serialised model."""

    def __init__(self, model: bytes, source: Path, adds_space: bool | None = None) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            if not model:
                raise ValueError("the file is empty")
            self._model = SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError) as err:
            reason = str(err).splitlines()[0][:200] if str(err) else "rejected"
            raise MalformedData(f"{source}: not a SentencePiece model: {reason}") from None
        self.size: int = self._model.vocab_size()
        if adds_space is None:
            adds_space = self._model.encode("a", out_type=str)[:1] != ["a"]
        self.adds_space = adds_space

    @property
    def spaces_every_run(self) -> bool:
        return self.adds_space

    def encode(self, text: str, *, first: bool) -> list[int]:  # noqa: ARG002 -- each run gets its space
        return self._model.encode(text) if text else []

    def has_token(self, token_id: int) -> bool:
        return token_id < self.size

    def token_bytes(self, token_id: int) -> bytes:
        model = self._model
        piece = model.id_to_piece(token_id)
        return _byte_piece(piece) if model.is_byte(token_id) else piece.replace(SPACE, " ").encode()

    def control_tokens(self) -> dict[str, int]:
        """Spelling to id of the control tokens."""
        model = self._model
        return {
            piece: i
            for i, piece in enumerate(model.id_to_piece(list(range(self.size))))
            if model.is_control(i) or is_control(piece)
        }


def sentencepiece_model(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], unknown: int, adds_space: bool
) -> bytes:
    """A serialised SentencePiece BPE model from GGUF's vocabulary.

    Source: sentencepiece_model.proto; only the fields that encoding reads are written.
    """
    varints = [_varint(i) for i in range(256)]
    pack = struct.Struct("<f").pack
    out = []
    for text, score, kind in zip(tokens, scores, types, strict=True):
        if kind == USER_DEFINED:  # GGUF spells these as they stand in a text
            text = text.replace(" ", SPACE)
        piece = text.encode()
        size = len(piece)
        body = b"\x0a" + (varints[size] if size < 256 else _varint(size)) + piece + b"\x15" + pack(score)
        if kind != NORMAL:
            body += b"\x18" + varints[kind]
        size = len(body)
        out.append(b"\x0a" + (varints[size] if size < 256 else _varint(size)) + body)
    trainer = b"".join(
        _varint(number << 3) + _varint(value)
        for number, value in ((3, 2), (35, 1), (40, unknown))  # BPE, byte fallback, unknown id
    )
    normaliser = b"\x0a\x08identity" + bytes((0x18, adds_space, 0x20, 0, 0x28, 1))
    for tag, message in ((b"\x12", trainer), (b"\x1a", normaliser)):
        out.append(tag + _varint(len(message)) + message)
    return b"".join(out)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


class TokenizersBackend:
    """Hugging Face's `tokenizers`."""

    def __init__(self, tokenizer: Any, byte_level: bool, source: Path) -> None:
        self._source = source
        self._tokenizer, self._byte_level = tokenizer, byte_level
        with _rust_errors(source, "not a usable tokenizer"):
            tokenizer.encode_special_tokens = True  # special tokens spelled in a text stay text
            tokenizer.no_truncation()
            tokenizer.no_padding()
            self._added = dict(tokenizer.get_added_tokens_decoder())
            count: int = tokenizer.get_vocab_size(with_added_tokens=True)
            self.size = max(
                count, 1 + max(self._added, default=0)
            )  # ids may have holes before the added ones
            self._continues = None if byte_level else _without_first_space(tokenizer)
        self.adds_space = not byte_level and self.token_bytes_of("a")[:1] == b" "

    @classmethod
    def from_file(cls, path: Path) -> "TokenizersBackend":
        """Reads a tokenizer.json. Raises MalformedData where the library rejects it."""
        from tokenizers import Tokenizer

        if path.stat().st_size > limits.TOKENIZER_BYTES:
            raise MalformedData(f"{path}: larger than {limits.TOKENIZER_BYTES} bytes")
        with _rust_errors(path, "not a tokenizer"):
            tokenizer = Tokenizer.from_file(str(path))
            decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else {}
            steps = [part.__getstate__() for part in (tokenizer.normalizer, tokenizer.pre_tokenizer) if part]
        if not all(is_harmless(json.loads(step)) for step in steps):
            probe(path)
        kinds = {decoder.get("type")} | {d.get("type") for d in decoder.get("decoders", [])}
        if not kinds & {"ByteLevel", "ByteFallback"}:
            known = "byte-level BPE and SentencePiece-like BPE are"
            raise MalformedData(f"{path}: this kind of tokenizer is not supported, {known}")
        return cls(tokenizer, "ByteLevel" in kinds, path)

    @classmethod
    def from_vocabulary(
        cls,
        tokens: Sequence[str],
        types: Sequence[int],
        merges: list[tuple[str, str]],
        pretokenizer: PreTokenizer,
        source: Path,
    ) -> "TokenizersBackend":
        """A byte-level BPE from its tokens, spelled in GPT-2's letters for bytes, and its merges."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

        with _rust_errors(source, "the vocabulary is not usable"):
            vocabulary = {token: i for i, token in reversed(list(enumerate(tokens)))}
            model = models.BPE(vocabulary, merges, ignore_merges=pretokenizer.ignore_merges)
            tokenizer = Tokenizer(model)
            tokenizer.pre_tokenizer = pretokenizer.steps
            tokenizer.decoder = decoders.ByteLevel()
            if pretokenizer.nfc:
                tokenizer.normalizer = normalizers.NFC()
            for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
                added = [t for t, k in zip(tokens, types, strict=True) if k == kind and t]
                tokenizer.add_tokens([AddedToken(t, normalized=False, special=special) for t in added])
        return cls(tokenizer, byte_level=True, source=source)

    @property
    def spaces_every_run(self) -> bool:
        return self.adds_space and self._continues is None

    def encode(self, text: str, *, first: bool) -> list[int]:
        tokenizer = self._tokenizer if first or self._continues is None else self._continues
        with _rust_errors(self._source, "cannot cut this text"):  # a regular expression may give up
            return tokenizer.encode(text, add_special_tokens=False).ids  # type: ignore[no-any-return]

    def token_bytes_of(self, text: str) -> bytes:
        """The bytes that a text's tokens stand for."""
        return b"".join(self.token_bytes(i) for i in self.encode(text, first=True))

    def has_token(self, token_id: int) -> bool:
        return token_id in self._added or self._tokenizer.id_to_token(token_id) is not None

    def token_bytes(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].content.encode()  # type: ignore[no-any-return]
        piece = self._tokenizer.id_to_token(token_id)
        if self._byte_level:
            table = byte_of_character()
            return b"".join(bytes((table[c],)) if c in table else c.encode() for c in piece)
        return _byte_piece(piece)

    def control_tokens(self) -> dict[str, int]:
        """Spelling to id of the special tokens."""
        return {t.content: i for i, t in self._added.items() if t.special or is_control(t.content)}

    def strips(self) -> dict[int, tuple[bool, bool]]:
        """Added tokens that swallow the white space (before, after) them."""
        return {i: (t.lstrip, t.rstrip) for i, t in self._added.items() if t.lstrip or t.rstrip}

    def serialised(self) -> str:
        """The content of a tokenizer.json that means the same."""
        return self._tokenizer.to_str()  # type: ignore[no-any-return]

    def surroundings(self) -> tuple[list[int], list[int]]:
        """Ids that the file's own post-processor puts before and after a text."""
        with _rust_errors(self._source, "its post-processor fails"):
            plain = self._tokenizer.encode("a", add_special_tokens=False).ids
            whole = self._tokenizer.encode("a", add_special_tokens=True).ids
        for at in range(len(whole) - len(plain) + 1):
            if whole[at : at + len(plain)] == plain:
                return whole[:at], whole[at + len(plain) :]
        return [], []


def _byte_piece(piece: str) -> bytes:
    """`<0xE2>` as its byte, any other piece as its text."""
    if re.fullmatch("<0x[0-9A-Fa-f]{2}>", piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(SPACE, " ").encode()


def _without_first_space(tokenizer: Any) -> Any:
    """A twin for text that follows a special token, where the file prefixes only the very first text."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.pre_tokenizer.__getstate__()) if tokenizer.pre_tokenizer else {}
    if state.get("type") != "Metaspace" or state.get("prepend_scheme") != "first":
        return None
    from tokenizers.pre_tokenizers import Metaspace

    twin = Tokenizer.from_str(tokenizer.to_str())
    twin.encode_special_tokens = True
    twin.pre_tokenizer = Metaspace(
        replacement=state.get("replacement", SPACE), prepend_scheme="never", split=state.get("split", True)
    )
    return twin


@cache
def byte_of_character() -> dict[str, int]:
    """GPT-2's table of printable characters that stand for bytes (openai/gpt-2, encoder.py)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


@contextlib.contextmanager
def _rust_errors(source: Path, what: str) -> Iterator[None]:
    """Turns the library's failures into MalformedData. It is Rust: its panics derive from BaseException."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, ParagoneError):
        raise
    except BaseException as err:
        reason = " ".join(str(err).split())[:200] or type(err).__name__
        raise MalformedData(f"{source}: {what}: {reason}") from None
