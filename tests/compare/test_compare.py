"""The comparison on tiny and real models: measured, compared, recommended, reported, remembered."""

import json

import pytest

from paragone.cli.main import run
from paragone.compare import measure as measure_module
from paragone.compare.cache import cache_quality
from paragone.compare.candidates import Candidate, parse_candidates
from paragone.compare.history import list_runs, load_run
from paragone.compare.measure import bundled_texts
from paragone.compare.quality import measure_quality
from paragone.compare.recommend import Constraints, recommend
from paragone.compare.report import html
from paragone.compare.statistics import differ, paired_interval, spread
from paragone.errors import NotEnoughMemory, NotFound, UsageError
from tests.real import SMOLLM2, path_of

SMOL = str(path_of(SMOLLM2))
LICENCES = {
    kind: {"name": kind, "url": "u", "commercial": kind, "asks": []} for kind in ("yes", "conditions", "no")
}


def candidate(name, speed, memory, bits, commercial="yes", context=2048, jitter=0.02, kind="instruct"):
    from pathlib import Path

    spread_of = [1 - jitter, 1.0, 1 + jitter]
    segments = [[bits * 128 * (1 + 0.1 * (i % 3)), 128] for i in range(30)]
    return Candidate(
        name, "bf16", Path(name),
        known={"context": context, "licence": LICENCES.get(commercial), "kind": kind, "parameters": 1, "family": "f",
               "languages": [], "disk_bytes": 1, "stored_as": "BF16"},
        samples={"decode_tokens_per_s": [speed * s for s in spread_of],
                 "prefill_tokens_per_s": [1000.0] * 3, "ttft_s": [0.5] * 3, "start_s": [1.0] * 3, "load_s": [0.5] * 3,
                 "total_s": [1.0] * 3, "token_s": [[0.01] * 5] * 3,
                 "peak_memory_bytes": [memory * 1e6 * s for s in (0.999, 1.0, 1.001)]},
        facts={"weight_bytes": 1, "decode_bytes": 1e8, "cache_bytes": 1, "prompt_tokens": 8},
        quality={"bits_per_byte": bits, "bytes_per_token": 4.0,
                 "texts": {"prose": {"segments": segments, "bits_per_byte": bits}}},
    )  # fmt: skip


def choice(candidates, **constraints):
    return recommend(candidates, Constraints(**constraints))


FAST, SMALL, GOOD = (
    candidate("fast", 100, 900, 1.2),
    candidate("small", 50, 300, 1.3),
    candidate("good", 20, 1500, 0.9),
)


@pytest.mark.parametrize(("prefer", "want"), [("speed", "fast"), ("memory", "small"), ("quality", "good")])
def test_preferences(prefer, want):
    result = choice([FAST, SMALL, GOOD], prefer=prefer)
    assert result["choice"] == f"{want} bf16"
    assert result["else"]


def test_constraints_and_why():
    result = choice([FAST, SMALL, GOOD], prefer="quality", max_memory_bytes=1_000_000_000)
    assert result["choice"] == "fast bf16"
    assert "1500 MB, more than 1000 MB" in result["rejected"]["good bf16"]
    closed, unknown = candidate("closed", 500, 100, 0.5, "no"), candidate("unknown", 400, 100, 0.5, "?")
    result = choice([FAST, closed, unknown], prefer="speed", commercial=True)
    assert result["choice"] == "fast bf16"
    assert set(result["rejected"]) == {"closed bf16", "unknown bf16"}
    result = choice([FAST], min_context=4096)
    assert result["choice"] is None
    assert "context 2048, less than 4096" in result["rejected"]["fast bf16"]


def test_differences_within_the_noise_are_called_none():
    a, b = candidate("a", 100, 900, 1.2, jitter=0.05), candidate("b", 103, 500, 1.0, jitter=0.05)
    result = choice([a, b], prefer="speed")
    assert result["choice"] == "b bf16"  # equal in speed, better in quality
    assert result["no_difference"] == ["a bf16"]
    assert "no difference" in result["reason"]
    twins = [candidate("x", 100, 900, 1.2), candidate("y", 100, 900, 1.2)]
    assert choice(twins, prefer="balance")["no_difference"] == ["y bf16"]


def test_failed_candidates_are_out_and_say_why():
    broken = candidate("broken", 1, 1, 1)
    broken.error = "the process was ended by signal 9"
    result = choice([broken, FAST])
    assert result["choice"] == "fast bf16"
    assert "signal 9" in result["rejected"]["broken bf16"]


def test_statistics():
    assert spread([3.0, 1.0, 2.0]).median == 2.0
    assert differ([1.0, 1.1], [1.2, 1.3])
    assert not differ([1.0, 1.25], [1.2, 1.3])
    assert not differ([100.0], [101.0])
    assert differ([100.0], [150.0])
    low, high = paired_interval([((110, 100), (100, 100))] * 20)
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1)


FAST_FLAGS = ["--rounds", "1", "--repetitions", "2", "--prompt-tokens", "32", "--decode-tokens", "4"]


def test_a_whole_comparison(home, tmp_path, monkeypatch, capsys):
    """Two precisions, one broken file, the user's text and prompts: table, JSON, HTML, history. A fourth of
    each bundled text."""
    bundled = {name: text[: len(text) // 4] for name, text in measure_module.bundled_texts().items()}
    monkeypatch.setattr(measure_module, "bundled_texts", lambda: bundled)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(path_of(SMOLLM2).read_bytes()[:90_000_000])
    (tmp_path / "mine.txt").write_text("A text of mine, about [brackets] & <tags>. " * 8)
    (tmp_path / "prompts.txt").write_text("Say [/bold] hi\n" + "word " * 9000 + "\n")
    out = tmp_path / "out"
    arguments = ["compare", f"{SMOL}:bf16", f"{SMOL}:int4", f"{broken}:int8", "--text", str(tmp_path / "mine.txt"),
                 "--prompts", str(tmp_path / "prompts.txt"), "--max-tokens", "6", "--output", str(out), *FAST_FLAGS]  # fmt: skip
    assert run(arguments) == 0
    printed = capsys.readouterr().out
    assert "Take " in printed
    assert "[/bold]" in printed
    result = json.loads((out / "compare.json").read_text())
    assert "truncated?" in result["candidates"][2]["error"]
    assert "truncated?" in printed.replace("\n", " ")
    good = [c for c in result["candidates"] if not c["error"]]
    assert [c["precision"] for c in good] == ["bf16", "int4"]
    assert len(good[0]["samples"]["decode_tokens_per_s"]) == 2
    assert "mine.txt" in good[0]["quality"]["texts"]
    assert 0 < good[1]["quality"]["kl_mean"] < 0.1
    assert good[1]["quality"]["top1_agreement"] > 0.8
    assert "no answer" in good[0]["answers"][1]["text"]
    page = (out / "compare.html").read_text()
    assert "<svg" in page
    assert "src=" not in page  # nothing is loaded from anywhere
    assert "@import" not in page
    assert "<tags>" not in page
    assert [r["id"] for r in list_runs()] == [1]
    assert run(["runs"]) == 0
    assert run(["runs", "show"]) == 0
    assert run(["runs", "diff", "1", "1"]) == 0
    difference = capsys.readouterr().out
    assert "no difference" in difference
    assert "bits per byte" in difference
    assert "failed in run 1" in difference
    assert load_run(None)["id"] == 1
    with pytest.raises(NotFound, match="no run 7"):
        load_run(7)


def test_what_fails_beside_speed_does_not_cost_the_speed(home, monkeypatch, capsys):
    real = measure_module._run

    def run_but_quality(candidate, settings, task, progress):
        if task["task"] == "quality" and candidate.precision == "int4":
            raise NotEnoughMemory("no room for log-probabilities")
        return real(candidate, settings, task, progress)

    monkeypatch.setattr(measure_module, "_run", run_but_quality)
    monkeypatch.setattr(measure_module, "bundled_texts", lambda: {"short": "The ferry was late again. " * 8})
    assert run(["compare", f"{SMOL}:bf16", f"{SMOL}:int4", "--prefer", "speed", *FAST_FLAGS]) == 0
    printed = capsys.readouterr().out
    assert "quality failed: no room for log-probabilities" in printed
    result = load_run(None)
    assert result["candidates"][1]["samples"]["decode_tokens_per_s"]
    assert result["recommendation"]["rejected"] == {}


def test_when_all_fail_the_code_says_why(home, monkeypatch, capsys):
    monkeypatch.setattr(measure_module, "available_memory_bytes", lambda: 10**8)
    assert run(["compare", f"{SMOL}:bf16", *FAST_FLAGS]) == 71
    assert "every candidate failed" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_said_first(home, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(["compare", f"{SMOL}:bf16", "--output", str(tmp_path / "file" / "x"), *FAST_FLAGS]) == 74
    assert "cannot be written" in capsys.readouterr().err


def test_a_plot_that_fails_costs_only_the_plot(monkeypatch):
    import paragone.compare.plots

    def fail(_):
        raise ValueError("a glyph is missing")

    monkeypatch.setattr(paragone.compare.plots, "plots", fail)
    assert "No plots: ValueError: a glyph is missing" in html(REPORT)


REPORT = {
    "started": "now", "machine": {"cpu": "c", "cores": 1, "memory_bytes": 1}, "settings": {"rounds": 1,
    "repetitions": 1, "prompt_tokens": 1, "decode_tokens": 1, "prompts": []},
    "candidates": [FAST.as_dict()], "recommendation": choice([FAST]),
}  # fmt: skip


def test_the_report_escapes_what_models_write():
    answer = {"text": "<script>alert(1)</script>", "tokens": 1, "total_s": 1, "finish_reason": "stop"}
    candidate = FAST.as_dict() | {"answers": [answer]}
    prompts = REPORT["settings"] | {"prompts": ["<script>p</script>"]}
    result = REPORT | {"candidates": [candidate], "settings": prompts}
    assert "<script>" not in html(result)


def test_candidates():
    parsed = parse_candidates([f"{SMOL}:int4", SMOL], ["bf16", "int4"], lambda *_: None)
    assert [c.precision for c in parsed] == ["int4", "bf16"]
    assert parsed[0].known["parameters"] == 134_515_008
    with pytest.raises(UsageError, match="int5"):
        parse_candidates([SMOL], ["int5"], lambda *_: None)
    with pytest.raises(NotFound):
        parse_candidates(["nope"], ["bf16"], lambda *_: None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prefer", "quality", "--no-quality"], "needs quality"),
        (["--prompt-tokens", "9000"], "exceed its context of 8192"),
        (["--max-memory", "0.5"], "not a size|less than"),
        (["--max-memory", "0.5B"], "less than one byte"),
    ],
)
def test_flags_that_cannot_be_honoured(flags, message, home, capsys):
    assert run(["compare", f"{SMOL}:bf16", *flags]) == 2
    import re

    assert re.search(message, capsys.readouterr().err)


def test_a_cache_in_eight_bits_costs_next_to_nothing(smollm2):
    plain, eight = cache_quality(smollm2, bundled_texts()["prose"])
    assert eight.bits_per_byte == pytest.approx(plain.bits_per_byte, rel=0.01)
    assert eight.bits_per_byte != plain.bits_per_byte
    assert eight.bytes_per_token < 0.52 * plain.bytes_per_token
    # The same text scored as a whole, without a cache.
    score = measure_quality(smollm2, {"prose": bundled_texts()["prose"]}, None, False, lambda *_: None)
    assert plain.bits_per_byte == pytest.approx(score["bits_per_byte"], rel=0.005)
