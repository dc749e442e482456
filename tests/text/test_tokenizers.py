"""Token ids against independent implementations on a fuzz corpus, and text back from ids."""

import io
import json
import random

import gguf
import pytest
import regex
import sentencepiece
import tiktoken
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from paragone.checkpoint.gguf import read_gguf
from paragone.errors import MalformedData, UsageError
from paragone.text.backends import byte_of_character
from paragone.text.tokenizer import tokenizer_from_folder, tokenizer_from_gguf
from tests.real import GEMMA3, SMOLLM2, path_of
from tests.text.corpus import corpus

CORPUS = corpus(1500)


def test_smollm2_equals_tiktoken(smollm2_tokenizer):
    """tiktoken is another implementation of byte-level BPE, fed with the vocabulary's ranks and the
    family's published split: every digit alone, then GPT-2's pattern."""
    metadata = read_gguf(path_of(SMOLLM2)).metadata
    table = byte_of_character()
    tokens = metadata["tokenizer.ggml.tokens"]
    types = metadata["tokenizer.ggml.token_type"].tolist()
    ranks = {
        bytes(table[c] for c in token): i
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind == 1
    }
    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    oracle = tiktoken.Encoding("smollm2", pat_str=gpt2, mergeable_ranks=ranks, special_tokens={})
    for text in CORPUS:
        if any(bytes([b]) not in ranks for b in text.encode()):
            continue  # the vocabulary lacks some control characters; the reference drops them
        pieces = [p for p in regex.split(r"(\p{Nd}|\p{Nl}|\p{No})", text) if p]
        want = [i for piece in pieces for i in oracle.encode_ordinary(piece)]
        assert smollm2_tokenizer.encode(text) == want, repr(text)


def test_gemma3_equals_tokenizers(gemma3_tokenizer):
    """The other way round: pieces and scores turned into merges for Hugging Face's BPE."""
    metadata = read_gguf(path_of(GEMMA3)).metadata
    tokens = metadata["tokenizer.ggml.tokens"]
    scores = metadata["tokenizer.ggml.scores"].tolist()
    types = metadata["tokenizer.ggml.token_type"].tolist()
    vocabulary = {t: i for i, t in enumerate(tokens)}
    merges = []
    for token, score, kind in zip(tokens, scores, types, strict=True):
        if kind == 1:
            for at in range(1, len(token)):
                if token[:at] in vocabulary and token[at:] in vocabulary:
                    merges.append((-score, vocabulary[token], token[:at], token[at:]))
    merges.sort()
    bpe = models.BPE(
        vocabulary, [m[2:] for m in merges], byte_fallback=True, unk_token="<unk>", fuse_unk=True
    )
    oracle = HFTokenizer(bpe)
    oracle.normalizer = normalizers.Replace(" ", "▁")
    from tokenizers import AddedToken

    oracle.add_tokens([AddedToken(t, normalized=False) for t, k in zip(tokens, types, strict=True) if k == 4])
    for text in CORPUS[:600]:
        if "▁" in text or "\u2581" in text:
            continue
        assert gemma3_tokenizer.encode(text) == oracle.encode(text, add_special_tokens=False).ids, repr(text)


@pytest.mark.parametrize("which", ["smollm2_tokenizer", "gemma3_tokenizer"])
def test_decoding_gives_the_text_back(which, request):
    tokenizer = request.getfixturevalue(which)
    for text in CORPUS:
        if which.startswith("gemma") and "▁" in text:
            continue  # SentencePiece writes spaces with this character
        if which.startswith("smollm") and any(ord(c) < 32 and c not in "\t\n\r" for c in text):
            continue  # SmolLM2's vocabulary lacks some control characters; the reference drops them
        assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text, repr(text)


@pytest.mark.parametrize("which", ["smollm2_tokenizer", "gemma3_tokenizer"])
def test_special_tokens_in_text_stay_text(which, request):
    tokenizer = request.getfixturevalue(which)
    rng = random.Random(0)
    names = list(tokenizer.special)
    for _ in range(2500):
        parts = [
            rng.choice(["", " ", "x", "\n", "é"]) + rng.choice(names) for _ in range(rng.randrange(1, 4))
        ]
        text = "".join(parts) + rng.choice(["", " tail"])
        ids = tokenizer.encode(text)
        assert not any(tokenizer.is_special(i) for i in ids), text
        assert tokenizer.decode(ids) == text


@pytest.fixture(scope="module")
def spm_folder(tmp_path_factory):
    """A SentencePiece BPE model with byte fallback and a dummy prefix, as Llama's is."""
    folder = tmp_path_factory.mktemp("spm")
    rng = random.Random(1)
    words = ["the", "quick", "brown", "fox", "jumps", "naïve", "日本", "123", "return", "<b>", "  two"]
    sentences = [" ".join(rng.choices(words, k=8)) for _ in range(400)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=400, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        character_coverage=0.9995, user_defined_symbols=["<b>", "\n\n"], minloglevel=2,
        split_digits=True, allow_whitespace_only_pieces=True, hard_vocab_limit=False,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


def test_sentencepiece_model_and_its_gguf_twin(spm_folder, tmp_path):
    """tokenizer.model through the library, and the same vocabulary as GGUF metadata: the same ids."""
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(spm_folder / "tokenizer.model"))
    direct = tokenizer_from_folder(spm_folder)
    size = oracle.vocab_size()
    kinds = [
        6 if oracle.is_byte(i) else 3 if oracle.is_control(i) else 2 if oracle.is_unknown(i) else 1
        for i in range(size)
    ]
    pieces = [oracle.id_to_piece(i) for i in range(size)]
    for name in ("<b>", "\n\n"):
        kinds[pieces.index(name)] = 4
    path = tmp_path / "t.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([oracle.get_score(i) for i in range(size)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(oracle.bos_id())
    writer.add_eos_token_id(oracle.eos_id())
    writer.add_unk_token_id(oracle.unk_id())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    twin = tokenizer_from_gguf(read_gguf(path).metadata, path)
    for text in CORPUS:
        want = oracle.encode(text)
        assert direct.encode(text) == want, repr(text)
        assert twin.encode(text) == want, repr(text)
    assert direct.encode("the fox", prefix=True)[0] == oracle.bos_id()
    assert direct.decode(direct.encode("the fox")) == "the fox"


@pytest.fixture(scope="module")
def bpe_folder(tmp_path_factory):
    """A byte-level tokenizer.json with a post-processor that adds BOS, as Llama 3's does."""
    folder = tmp_path_factory.mktemp("bpe")
    tokenizer = HFTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|begin|>", "<|end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog " * 20], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": "<|begin|>",
        "eos_token": {"content": "<|end|>"},
        "chat_template": "{{ messages }}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    return folder


def test_tokenizer_json(bpe_folder):
    ours = tokenizer_from_folder(bpe_folder, [1])
    oracle = HFTokenizer.from_file(str(bpe_folder / "tokenizer.json"))
    for text in CORPUS:
        if "<|" not in text:
            assert ours.encode(text) == oracle.encode(text, add_special_tokens=False).ids
            assert ours.encode(text, prefix=True) == oracle.encode(text).ids
    assert ours.prefix == [0]
    assert ours.stop_ids == {1, 7}
    assert ours.chat_template == "{{ messages }}"
    assert not any(ours.is_special(i) for i in ours.encode("a<|end|>b"))


def test_lone_surrogates_and_bad_ids(smollm2_tokenizer):
    with pytest.raises(MalformedData, match="surrogate"):
        smollm2_tokenizer.encode("a\ud800")
    with pytest.raises(UsageError, match="outside the vocabulary"):
        smollm2_tokenizer.decode([10**9])


def test_control_tokens_that_the_file_does_not_flag(tmp_path):
    """Not made from a text, and they end an answer all the same."""
    state = {
        "version": "1.0", "added_tokens": [
            {"id": 12, "content": "<|im_end|>", "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": False}],
        "normalizer": None, "post_processor": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "merges": [],
                  "vocab": {c: n for n, c in enumerate("<|im_end>xyz")}},
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    tokenizer = tokenizer_from_folder(tmp_path)
    assert tokenizer.stop_ids == {12}
    text = "x<|im_end|>y<|im_end|>"
    ids = tokenizer.encode(text)
    assert 12 not in ids
    assert tokenizer.decode(ids) == text
