"""Tokenizer files made to do harm: an error that names the file, or a tokenizer that works."""

import base64
import contextlib
import json
import struct
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paragone.checkpoint.gguf import read_gguf
from paragone.errors import BadConfiguration, MalformedData, NotFound, ParagoneError, UsageError
from paragone.text.pretokenizers import TEKKEN
from paragone.text.tokenizer import tokenizer_from_folder, tokenizer_from_gguf
from tests.real import SMOLLM2, path_of


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tokenizer.ggml.model": "wordpiece"}, BadConfiguration, "'wordpiece' is not supported"),
        ({"tokenizer.ggml.pre": "smolllm"}, BadConfiguration, "did you mean 'smollm'"),
        ({"tokenizer.ggml.pre": None}, MalformedData, "pre is missing"),
        ({"tokenizer.ggml.tokens": None}, MalformedData, "tokens is missing"),
        ({"tokenizer.ggml.tokens": [[1]]}, MalformedData, "tokens is missing"),
        ({"tokenizer.ggml.merges": None}, MalformedData, "merges is missing"),
        ({"tokenizer.ggml.merges": ["nonsense"]}, MalformedData, "not usable"),
        ({"tokenizer.ggml.merges": ["zz qq"]}, MalformedData, "not usable"),
        ({"tokenizer.ggml.merges": [3]}, MalformedData, "merges"),
        ({"tokenizer.ggml.tokens": ["x" * 70_000]}, MalformedData, "longer than|token_type"),
    ],
)
def test_bad_gguf_vocabularies(changes, error, message):
    metadata = dict(read_gguf(path_of(SMOLLM2)).metadata)
    metadata.update(changes)
    metadata = {k: v for k, v in metadata.items() if v is not None}
    with pytest.raises(error, match=message):
        tokenizer_from_gguf(metadata, path_of(SMOLLM2))


EXPLOSIVE = [
    "(a+)+$", "(a|a)*b", "(.*)*x", r"(\\s+)+\\S", "([a-z]+)*!", "(a|aa)+$", "(a?){60}a{60}", r"(\\w+\\s?)+:", "((a*)*)*c",
    r"(?:a+a+)+b", r"(x+x+)+y|(a+a+)+z",
]  # fmt: skip


def hostile_tokenizers():
    """Broken and hostile tokenizer.json files by name."""
    base = {
        "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": {"type": "ByteLevel",
        "add_prefix_space": False, "trim_offsets": True, "use_regex": True}, "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
    }  # fmt: skip
    files = {
        "empty": b"", "not_json": b"hello", "array": b"[]", "null": b"null", "deep": b"[" * 100_000,
        "deep_object": b'{"a":' * 50_000, "binary": bytes(range(256)) * 10, "truncated": json.dumps(base).encode()[:200],
        "half_utf8": b'{"version": "\xc3', "nan": b'{"version": NaN}', "pickle": b"\x80\x04\x95\0\0",
    }  # fmt: skip
    for path, values in {
        "model": [None, {}, {"type": "BPE"}, {"type": "Nope", "vocab": {}}, [], "x", 3],
        "model.vocab": [None, [], {"a": -1}, {"a": "x"}, {"a": 1e30}, {"a": 1 << 40}, 7],
        "model.merges": [None, ["a"], [["a"]], ["a zz"], [["a", "zz"]], {"a": 1}, 7],
        "decoder": [None, {}, {"type": "Nope"}, {"type": "WordPiece", "prefix": "##", "cleanup": True}, 3],
        "pre_tokenizer": [{}, {"type": "Nope"}, {"type": "Split"}, 3,
            {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
            {"type": "Split", "pattern": {"Regex": "[" * 1000}, "behavior": "Isolated", "invert": False},
            *({"type": "Split", "pattern": {"Regex": r}, "behavior": "Isolated", "invert": False} for r in EXPLOSIVE),
            *({"type": "Sequence", "pretokenizers": [{"type": "FixedLength", "length": n}]} for n in (0, 1 << 62))],
        "normalizer": [{}, {"type": "Nope"}, {"type": "Precompiled", "precompiled_charsmap": "!!!"},
            {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, {"type": "Replace"}, 3,
            {"type": "Prepend", "prepend": "a" * 5_000_000},
            {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 1_000_000},
            {"type": "Replace", "pattern": {"String": ""}, "content": "b" * 1000},
            {"type": "Replace", "pattern": {"Regex": "(a*)*$"}, "content": "b"},
            {"type": "Sequence", "normalizers": [
                {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaa"}] * 12}],
        "model.continuing_subword_prefix": ["x" * 100_000, 3], "model.unk_token": ["nope", 3],
        "added_tokens": [None, 3, [3], [{}], [{"id": -1, "content": "x"}], [{"id": 1 << 40, "content": "x"}]],
        "post_processor": [{}, {"type": "Nope"}, {"type": "TemplateProcessing"}, 3,
            {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}], "pair": [],
             "special_tokens": {}}],
        "truncation": [{"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 5}, 3],
        "padding": [{"strategy": {"Fixed": 1 << 40}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}, 3],
    }.items():  # fmt: skip
        for number, value in enumerate(values):
            changed = json.loads(json.dumps(base))
            target = changed
            *parents, last = path.split(".")
            for parent in parents:
                target = target[parent]
            target[last] = value
            files[f"{path}_{number}"] = json.dumps(changed).encode()
    return files


@pytest.mark.parametrize("name", hostile_tokenizers())
def test_hostile_tokenizer_files(name, tmp_path):
    """Refused by name, or usable; within two seconds either way."""
    import time

    (tmp_path / "tokenizer.json").write_bytes(hostile_tokenizers()[name])
    begin = time.monotonic()
    try:
        tokenizer = tokenizer_from_folder(tmp_path)
        for text in ("a" * 4096 + "!b", " " * 4096 + "x"):
            tokenizer.encode(text)
    except (MalformedData, BadConfiguration) as err:
        assert "tokenizer.json" in str(err)
    assert time.monotonic() - begin < 2


SMALL_TOKENIZERS = [d for d in list(hostile_tokenizers().values())[11:] if len(d) < 5000]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 40) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=2000, deadline=None)
@given(st.data())
def test_any_tokenizer_file_is_one_or_an_error_of_ours(data):
    """A hostile file with one more place changed, at any depth."""
    state = json.loads(data.draw(st.sampled_from(SMALL_TOKENIZERS)))
    where = state
    while True:
        keys = sorted(where) if isinstance(where, dict) else list(range(len(where)))
        key = data.draw(st.sampled_from(keys)) if keys else None
        if key is None:
            break
        if isinstance(where[key], dict | list) and where[key] and data.draw(st.booleans()):
            where = where[key]
            continue
        where[key] = data.draw(JSON)
        break
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(MalformedData, BadConfiguration):
        (Path(folder) / "tokenizer.json").write_text(json.dumps(state))
        with mock.patch("paragone.text.backends.probe", side_effect=MalformedData("tried elsewhere")):
            tokenizer = tokenizer_from_folder(Path(folder))
        ids = tokenizer.encode("a b!\n")
        tokenizer.decode(ids)


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 100, b"\x0a\xff\xff\xff\xff\x0f", struct.pack("<Q", 1 << 63) * 4]
)
def test_hostile_sentencepiece_files(data, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(MalformedData, match=r"tokenizer\.model"):
        tokenizer_from_folder(tmp_path)


GGUF_TOKENIZER = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a", "b"],
    "tokenizer.ggml.scores": np.zeros(5, np.float32),
    "tokenizer.ggml.token_type": np.array([2, 3, 3, 1, 1], np.int32),
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", ["llama"]), ("model", np.zeros(3)), ("model", None), ("model", "x" * 10_000), ("tokens", []), ("tokens", "abc"),
        ("tokens", ["a", 3]), ("tokens", ["a" * 100_000] * 5), ("scores", np.full(5, np.nan)), ("scores", np.full(5, 1e300)),
        ("scores", np.full(5, np.inf)), ("scores", np.zeros(4)), ("scores", [0] * 5), ("scores", 3), ("scores", "x"),
        ("token_type", np.full(5, 1.5)), ("token_type", np.full(5, 9)), ("token_type", np.full(5, -1)),
        ("token_type", np.ones(5, bool)), ("token_type", "x"), ("token_type", np.ones(6, int)),
    ],
)  # fmt: skip
def test_hostile_gguf_tokenizers(key, value, tmp_path):
    metadata = GGUF_TOKENIZER | {f"tokenizer.ggml.{key}": value}
    with pytest.raises((MalformedData, BadConfiguration), match=r"m\.gguf") as caught:
        tokenizer_from_gguf(metadata, tmp_path / "m.gguf")
    assert len(str(caught.value)) < 400


def test_a_vocabulary_with_holes(tmp_path):
    state = json.loads(hostile_tokenizers()["model_0"])
    state["model"] = {"type": "BPE", "merges": [], "vocab": {"a": 5, "b": 900}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    tokenizer = tokenizer_from_folder(tmp_path)
    assert tokenizer.encode("ab") == [5, 900]
    assert tokenizer.decode([5, 900]) == "ab"
    assert not tokenizer.knows(0)
    assert not tokenizer.knows(901)
    for outside in (0, 901, -1, 1 << 40):
        with pytest.raises(UsageError, match="outside the vocabulary"):
            tokenizer.token_bytes(outside)


def test_no_tokenizer(tmp_path):
    with pytest.raises(NotFound, match="has no tokenizer"):
        tokenizer_from_folder(tmp_path)


def tekken(changes=(), vocabulary=None):
    """A small tekken.json, with what `changes` put into its config or beside it."""
    tokens = vocabulary or [bytes([i]) for i in range(256)] + [b"ab", b"abc"]
    data = {
        "config": {
            "pattern": TEKKEN,
            "default_vocab_size": len(tokens) + 5,
            "default_num_special_tokens": 5,
            "num_vocab_tokens": len(tokens),
            "version": "v3",
        },
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(t).decode(), "token_str": None}
            for i, t in enumerate(tokens)
        ],
    }
    config = data["config"]
    for key, value in dict(changes).items():
        (config if key in config else data)[key] = value
    return data


def written(folder, name, data):
    (folder / name).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return folder


def test_a_small_tekken_file(tmp_path):
    tokenizer = tokenizer_from_folder(written(tmp_path, "tekken.json", tekken()))
    assert tokenizer.encode("xabc", prefix=True) == [1, 5 + ord("x"), 5 + 257]
    assert tokenizer.special["[INST]"] == 3
    assert tokenizer.stop_ids == {2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "(a+)+$"}, "pattern"),
        ({"default_vocab_size": -1}, "cannot be"),
        ({"default_vocab_size": 1 << 40}, "cannot be"),
        ({"default_num_special_tokens": "5"}, "cannot be"),
        ({"default_vocab_size": 10_000}, "has 258 tokens"),
        ({"config": []}, "is no tekken.json"),
        ({"vocab": {}}, "is no tekken.json"),
        ({"vocab": [1] * 258}, r"vocab\[0\]"),
        ({"vocab": [{"rank": 1, "token_bytes": "AA=="}] * 258}, r"vocab\[0\]"),
        ({"vocab": [{"rank": 0, "token_bytes": "?"}] * 258}, r"vocab\[0\]"),
        ({"default_num_special_tokens": 1 << 20, "default_vocab_size": (1 << 20) + 258}, "cannot be"),
        ({"special_tokens": 7}, "special_tokens"),
        ({"special_tokens": [{"rank": [], "token_str": "x"}]}, "special_tokens"),
        ({"special_tokens": [{"rank": 9, "token_str": "x"}]}, "special_tokens"),
        ({"special_tokens": [{"rank": 1, "token_str": "x"}] * 2}, "special_tokens"),
        ({"special_tokens": [{"rank": 1, "token_str": "ab"}]}, "spelled like another"),
    ],
)
def test_bad_tekken_files(changes, message, tmp_path):
    with pytest.raises((MalformedData, BadConfiguration), match=message):
        tokenizer_from_folder(written(tmp_path, "tekken.json", tekken(changes)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"YQ== 0\nYg== 1\n", "2 ranks are no known vocabulary"),
        (b"YQ== 0\n\xff\xff 1\n", "line 2"),
        (b"YQ== 0\nYg== -1\n", "line 2"),
        (b"YQ== 0\nYg== " + b"9" * 5000, "line 2"),
        (b"YQ== 0\n\n\nYg== 1\n", "line 2"),
        (b"YQ== 0 0\n", "SentencePiece"),
    ],
)
def test_bad_rank_files(data, message, tmp_path):
    with pytest.raises((MalformedData, BadConfiguration), match=message):
        tokenizer_from_folder(written(tmp_path, "tokenizer.model", data))


def test_ranks_that_are_no_order(tmp_path):
    lines = [base64.b64encode(str(i).encode()) + b" %d" % (i // 2 * 2) for i in range(128_000)]
    with pytest.raises(MalformedData, match="there twice"):
        tokenizer_from_folder(written(tmp_path, "tokenizer.model", b"\n".join(lines)))


def test_bytes_that_are_no_tokens(tmp_path):
    with pytest.raises(MalformedData, match="some bytes are no tokens"):
        tokenizer_from_folder(written(tmp_path, "tekken.json", tekken(vocabulary=[b"a", b"b", b"ab"])))


def test_tokens_too_long_to_find_their_merges(tmp_path):
    tokens = [bytes([i]) for i in range(256)] + [bytes([i]) * 30_000 for i in range(8)]
    with pytest.raises(MalformedData, match="too long"):
        tokenizer_from_folder(written(tmp_path, "tekken.json", tekken(vocabulary=tokens)))


@settings(max_examples=300)
@given(st.data())
def test_any_tekken_file_is_one_or_an_error_of_ours(data):
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    )
    names = [
        "pattern",
        "default_vocab_size",
        "default_num_special_tokens",
        "vocab",
        "special_tokens",
        "config",
    ]
    changes = data.draw(st.dictionaries(st.sampled_from(names), values, max_size=3))
    with tempfile.TemporaryDirectory() as folder:
        try:
            tokenizer = tokenizer_from_folder(written(Path(folder), "tekken.json", tekken(changes)))
        except ParagoneError:
            return
        assert tokenizer.decode(tokenizer.encode("ab c")) == "ab c"
