"""`paragone inspect`: every family's files say what they are, and no weight is read."""

import json
import subprocess
import sys

import pytest

from paragone.checkpoint.tensors import StoredTensor
from paragone.cli.main import run
from paragone.engine.inspect import inspect_model
from paragone.engine.load import load_model
from paragone.engine.params import SamplingParams
from paragone.errors import BadConfiguration
from tests.real import GEMMA3, SMOLLM2, path_of
from tests.tiny import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_family(case, tmp_path, monkeypatch):
    model = case.save(tmp_path)

    def never(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(StoredTensor, "_raw_rows", never)
    found = inspect_model(tmp_path)
    stored = sum(p.numel() for p in model.parameters())  # tied ones count once
    assert found["parameters"] == stored
    assert sum(found["parameters_by_part"].values()) == stored, "every parameter belongs to a part"
    assert found["architecture"].startswith("decoder-only")
    assert "tokenizer" in found["text"]["missing"]
    json.dumps(found)


def test_what_is_left_aside_is_said(tmp_path):
    CASES[0].save(tmp_path)
    assert {"use_cache", "initializer_range"} <= set(inspect_model(tmp_path)["ignored_keys"])


def test_real_models(capsys):
    assert run(["inspect", str(path_of(SMOLLM2))]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for text in (
        "9 heads of 64 over 3 key/value heads (GQA)",
        "135 million",
        "<|im_end|> (2)",
        "8,192 tokens",
    ):
        assert text in printed
    assert run(["inspect", str(path_of(GEMMA3)), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["spec"]["sliding_window"] == 512
    assert found["text"]["stop_tokens"] == {"1": "<eos>", "106": "<end_of_turn>"}
    assert run(["inspect", str(path_of(SMOLLM2)), "--template"]) == 0
    assert "im_start" in capsys.readouterr().out
    assert run(["inspect", str(path_of(GEMMA3)), "--template"]) == 66


def test_torch_is_not_needed():
    code = (
        "import sys; from paragone.cli.main import run; run(sys.argv[1:]); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, "inspect", str(path_of(SMOLLM2))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_known_models_prompt_format(tmp_path, smollm2):
    """A file without a template, by the name of a model that the catalogue knows, is written as that one's."""
    folder = tmp_path / "vicuna-7b-v1.5"
    CASES[0].save(folder)
    (folder / "tokenizer.json").write_text(smollm2.tokenizer.backend.serialised())
    known, nameless = load_model(folder, "vicuna-7b-v1.5", "fp32"), load_model(folder, "mine", "fp32")
    assert "curious user" in known.tokenizer.chat_template
    assert len(known.chat_request([{"role": "user", "content": "Hello"}], SamplingParams()).prompt_ids) > 30
    with pytest.raises(BadConfiguration, match="no chat template"):
        nameless.chat("Hello", max_tokens=2)
    assert inspect_model(folder)["text"]["prompt_format"] == "vicuna"


def test_a_model_is_loaded_in_what_its_file_has(tmp_path, smollm2):
    CASES[0].save(tmp_path)
    (tmp_path / "tokenizer.json").write_text(smollm2.tokenizer.backend.serialised())
    assert load_model(tmp_path, "mine").precision == "bf16"
    quantised = load_model(path_of(GEMMA3), GEMMA3)
    assert quantised.precision == "int8"
    kinds = {part.packing.bits for part in quantised.decoder.blocks[0].mlp.up.parts}
    assert kinds == {5}, "Q5_0 is kept in five bits"
