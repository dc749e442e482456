"""The tokenizers of real families: ids are those of their makers' own code, from every kind of file."""

import json
import random
import shutil
from pathlib import Path

import mistral_common
import numpy as np
import pytest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from paragone.text.stream import TextStream
from paragone.text.tokenizer import tokenizer_from_folder, tokenizer_from_gguf
from tests.packages import dashscope, llama_models, llama_vocabulary, npm
from tests.text.corpus import corpus, random_text

CORPUS = corpus(800, seed=5)
MISTRAL = Path(mistral_common.__file__).with_name("data")
MISTRAL_FILES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
    "tekken": "tekken_240718.json",
    "tekken-images": "tekken_240911.json",
}


def mistral(version, folder):
    """Mistral's own tokenizer and ours, from the same file."""
    file = MISTRAL / MISTRAL_FILES[version]
    folder.mkdir(exist_ok=True)
    shutil.copy(file, folder / ("tekken.json" if file.suffix == ".json" else "tokenizer.model"))
    return MistralTokenizer.from_file(str(file)), tokenizer_from_folder(folder)


@pytest.mark.parametrize("version", MISTRAL_FILES)
def test_mistral_equals_mistral_common(version, tmp_path):
    reference, ours = mistral(version, tmp_path)
    raw = reference.instruct_tokenizer.tokenizer
    for text in CORPUS:
        ids = raw.encode(text, bos=True, eos=False)
        assert ours.encode(text, prefix=True) == ids, repr(text)
    for token in range(raw.n_words):
        if not ours.is_special(token) and not raw.is_special(token):
            assert ours.token_bytes(token) is not None
    assert ours.stop_ids == {raw.eos_id}
    for name in ("[INST]", "[/INST]") if version != "v1" else ():
        assert ours.special[name] == raw.get_special_token(name)


@pytest.mark.parametrize("version", [3, 4])
def test_llama_equals_metas(version):
    reference, folder = llama_models(version)
    ours = tokenizer_from_folder(folder)
    for text in CORPUS:
        assert ours.encode(text, prefix=True) == reference.encode(text, bos=True, eos=False), repr(text)
    assert ours.vocab_size == reference.n_words
    assert ours.special == reference.special_tokens
    assert ours.stop_ids == set(reference.stop_tokens)
    for token in range(0, reference.n_words, 7):
        assert ours.token_bytes(token) == reference.model.decode_single_token_bytes(token)


def test_qwen_equals_alibabas():
    reference, folder = dashscope()
    ours = tokenizer_from_folder(folder)
    for text in CORPUS:
        want = reference.encode(text, allowed_special=set(), disallowed_special=())
        assert ours.encode(text, prefix=True) == want, repr(text)
    assert ours.stop_ids == {151_643, 151_645}


def same_ids(ours, reference, texts=CORPUS):
    for text in texts:
        assert ours.encode(text) == reference(text), repr(text)


def gguf_of(folder, pre):
    """What a GGUF file of the same vocabulary says."""
    data = json.loads((folder / "tokenizer.json").read_text())
    model = data["model"]
    tokens = {i: t for t, i in model["vocab"].items()}
    added = {t["id"]: t["content"] for t in data["added_tokens"]}
    names = [added.get(i, tokens.get(i, f"<unused{i}>")) for i in range(max(*tokens, *added) + 1)]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.token_type": np.array([3 if i in added else 1 for i in range(len(names))]),
        "tokenizer.ggml.merges": merges,
    }
    return tokenizer_from_gguf(metadata, folder)


def test_llama_3_from_tokenizer_json_and_gguf():
    reference = llama_models(3)[0]
    folder = npm("llama3")
    for ours in (tokenizer_from_folder(folder), gguf_of(folder, "llama-bpe")):
        same_ids(ours, lambda text: reference.encode(text, bos=False, eos=False))


def test_qwen_3_from_tokenizer_json_and_gguf():
    reference = dashscope()[0]
    folder = npm("qwen3")
    for ours in (tokenizer_from_folder(folder), gguf_of(folder, "qwen2")):
        same_ids(ours, lambda text: reference.encode(text, allowed_special=set(), disallowed_special=()))


def test_nemo_from_tokenizer_json_and_gguf(tmp_path):
    reference = mistral("tekken", tmp_path)[0].instruct_tokenizer.tokenizer
    folder = npm("nemo")
    for ours in (tokenizer_from_folder(folder), gguf_of(folder, "tekken")):
        same_ids(ours, lambda text: reference.encode(text, bos=False, eos=False))


def test_gemma_3_from_tokenizer_json(gemma3_tokenizer):
    """Two libraries, `tokenizers` here and `sentencepiece` on the model's GGUF file."""
    ours = tokenizer_from_folder(npm("gemma3"))
    texts = [text for text in CORPUS if "▁" not in text]
    same_ids(ours, gemma3_tokenizer.encode, texts)
    assert ours.stop_ids == {1, 106}


@pytest.mark.parametrize(
    ("control", "listed", "want"),
    [
        (
            ("<|endoftext|>", "<|assistant|>", "<|end|>"),
            ["<|end|>", "<|assistant|>", "<|endoftext|>"],
            3,
        ),  # Phi-3
        (("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"), [], 2),  # Phi-4
        (("<|endoftext|>", ">>ABSTRACT<<"), ["<|endoftext|>"], 1),  # Falcon
        (("<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"), ["<eos>"], 2),  # Gemma
        (
            ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
            ["<|end_of_text|>"],
            3,
        ),  # Llama 3.1
    ],
)
def test_stop_tokens_are_the_listed_and_the_known(control, listed, want, tmp_path):
    """generation_config.json often forgets the end of a turn; what is spelled like one ends an answer too."""
    state = json.loads((npm("qwen3") / "tokenizer.json").read_text())
    state["added_tokens"] = [t | {"content": c} for t, c in zip(state["added_tokens"], control, strict=False)]
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    ids = {token["content"]: token["id"] for token in state["added_tokens"]}
    settings = {"eos_token_id": [ids[name] for name in listed]}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    tokenizer = tokenizer_from_folder(tmp_path)
    assert len(tokenizer.stop_ids) == want
    assert tokenizer.stop_ids >= {ids[name] for name in listed}


def test_mistral_from_tokenizer_json(tmp_path):
    reference = mistral("v1", tmp_path)[0].instruct_tokenizer.tokenizer
    ours = tokenizer_from_folder(npm("mistral"))
    texts = [text for text in CORPUS if "▁" not in text]
    same_ids(ours, lambda text: reference.encode(text, bos=False, eos=False), texts)
    assert ours.prefix == [1]
    assert ours.stop_ids == {2}


def test_llama_2_from_tokenizer_json_and_gguf(tmp_path):
    """The same vocabulary in both libraries: merges in `tokenizers`, scores that say their order in
    `sentencepiece`."""
    tokens, merges = llama_vocabulary()
    scores = dict.fromkeys(tokens, -1e9)
    for rank, (left, right) in enumerate(merges):
        scores[left + right] = max(scores[left + right], -float(rank))
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(kinds),
        "tokenizer.ggml.scores": np.array([scores[token] for token in tokens]),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    from_gguf = tokenizer_from_gguf(metadata, tmp_path)
    llama = json.loads((npm("mistral") / "tokenizer.json").read_text())
    llama["model"] |= {"vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges}
    (tmp_path / "tokenizer.json").write_text(json.dumps(llama))
    from_folder = tokenizer_from_folder(tmp_path)
    texts = [text for text in CORPUS if "▁" not in text]
    same_ids(from_folder, from_gguf.encode, texts)
    assert from_folder.prefix == from_gguf.prefix == [1]
    assert from_folder.stop_ids == from_gguf.stop_ids == {2}
    # What every Llama 2 user has seen: the packaged script's own tests, and Meta's paper of the prompt.
    assert from_folder.encode("grabbed", prefix=True) == [1, 2646, 1327, 287]
    assert from_folder.encode("[INST]") == [518, 25580, 29962]


@pytest.mark.parametrize("family", ["smollm2", "gemma3", "tekken", "v3"])
def test_tokens_of_twenty_thousand_texts_come_as_the_texts(family, request, tmp_path):
    """As an answer is streamed (row 27): bytes in pairs and alone, spaces as ▁, bytes where there is no
    token."""
    if family in MISTRAL_FILES:
        ours = mistral(family, tmp_path)[1]
    else:
        ours = request.getfixturevalue(f"{family}_tokenizer")
    rng = random.Random(27)
    for _ in range(20_000):
        text = random_text(rng)
        stream, pieces = TextStream(drop_first_space=ours.backend.adds_space), []
        for token in ours.encode(text):
            pieces.append(stream.push(ours.token_bytes(token)))
            assert "\ufffd" not in pieces[-1], text
        pieces.append(stream.finish())
        if family == "smollm2":  # its vocabulary has no tokens for these, and its makers' code drops them too
            text = text.translate(dict.fromkeys(b"\x04\x06\x13\x14\x16\x1d"))
        assert "".join(pieces) == (text.replace("▁", " ") if family in ("gemma3", "v3") else text), text
