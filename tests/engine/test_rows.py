"""A step's rows: where embeddings come from, and that they hold in any of PyTorch's modes."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from paragone.checkpoint.checkpoint import open_checkpoint
from paragone.errors import MalformedData
from paragone.model.forward import Reader
from paragone.model.linear import Rows, StoredEmbedding
from paragone.model.load import load_decoder
from tests.tiny import CASES


@pytest.fixture
def decoder(tmp_path):
    """One whose embeddings stay in its file."""
    next(case for case in CASES if case.name == "llama1").save(tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    decoder = load_decoder(open_checkpoint(tmp_path), "bf16")
    assert isinstance(decoder.embed, StoredEmbedding)
    assert decoder.embed.tensor.type.name == "BF16"
    return decoder


def test_embeddings_of_a_file(decoder):
    ids = [5, 0, 5, decoder.spec.vocab_size - 1]
    rows = Rows.empty(len(ids), decoder.spec.hidden_size)
    decoder.embed.put_rows(ids, rows)
    assert torch.equal(rows.tensor, decoder.embed(torch.tensor(ids)).float())
    assert rows.tensor.std() > 0
    for wrong in (-1, decoder.spec.vocab_size):
        with pytest.raises(IndexError):
            decoder.embed.put_rows([0, wrong], rows)


def test_a_file_that_becomes_shorter_is_named(decoder):
    tensor = decoder.embed.tensor
    os.truncate(tensor.file.path, tensor.offset + tensor.nbytes - 2)
    rows = Rows.empty(1, decoder.spec.hidden_size)
    decoder.embed.put_rows([0], rows)
    with pytest.raises(MalformedData, match=f"{tensor.file.path.name}: the file has become shorter"):
        decoder.embed.put_rows([tensor.num_rows - 1], rows)


def test_steps_in_and_out_of_inference_mode(tmp_path):
    """What one step keeps for the next may be made in either. This model scales its embeddings."""
    next(case for case in CASES if case.name == "gemma3_untied").save(tmp_path)
    decoder = load_decoder(open_checkpoint(tmp_path), "bf16")
    found = []
    for mode in (True, False):
        text = Reader(decoder, 8)
        with torch.inference_mode(mode=mode):
            first = text.read([1, 2, 3], 8).clone()
        with torch.inference_mode(mode=not mode):
            found.append([first, text.read([4, 5, 6], 8).clone(), text.logits(text.read([7], 8))[0]])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
