"""Measures candidates: each task in a process of its own while this one blocks, rounds interleaved.

A round goes through all candidates once, so that a machine that slows down slows all of them. A candidate
whose speed cannot be measured keeps its samples in the result and says why, but is out; the others go on. One
whose quality or answers fail stays in, and says so.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from paragone.compare.candidates import Candidate
from paragone.engine.resources import available_memory_bytes
from paragone.errors import NotEnoughMemory, ParagoneError
from paragone.model.precision import PRECISIONS

Report = Callable[[str, int, int], None]  # (what is being done, steps done, steps in all)


@dataclass(frozen=True)
class Settings:
    """Everything that decides what is measured."""

    rounds: int = 3
    repetitions: int = 2
    prompt_tokens: int = 512
    decode_tokens: int = 32
    threads: int | None = None
    max_answer_tokens: int = 128
    quality: bool = True
    texts: dict[str, str] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For reports: texts as their sizes."""
        sizes = {name: len(text.encode()) for name, text in self.texts.items()}
        return asdict(self) | {"texts": sizes, "prompts": list(self.prompts)}


def bundled_texts() -> dict[str, str]:
    """The texts that come with Paragone: prose, code, dialogue and three more languages."""
    folder = files(__package__).joinpath("texts")
    names = ("prose", "code", "dialogue", "german", "spanish", "chinese")
    return {name: folder.joinpath(f"{name}.txt").read_text("utf-8") for name in names}


def measure(candidates: list[Candidate], settings: Settings, report: Report) -> None:
    """Fills in every candidate's samples, facts, quality and answers, or its error."""
    for candidate in candidates:
        need, have = candidate.estimate_bytes, available_memory_bytes()
        if not candidate.error and need > have:
            candidate.error = f"needs about {need / 1e9:.1f} GB of memory, {have / 1e9:.1f} GB are available"
            candidate.exit_code = NotEnoughMemory.exit_code
    tasks = len(candidates) * (settings.rounds + bool(settings.quality) + bool(settings.prompts))
    done = 0

    def run(candidate: Candidate, what: str, task: dict[str, Any]) -> dict[str, Any] | None:
        nonlocal done
        step = f"{candidate.label}: {what}"
        report(step, done, tasks)
        before = done
        done += 1
        if candidate.error:
            return None
        try:
            return _run(candidate, settings, task, lambda share: report(f"{step} {share:.0%}", before, tasks))
        except ParagoneError as err:
            if task["task"] == "speed":
                candidate.error, candidate.exit_code = str(err), err.exit_code
            else:
                candidate.problems.append(f"{task['task']} failed: {err}")
            return None

    text = settings.texts.get("prose") or next(iter(settings.texts.values()), "word " * 64)
    for number in range(1, settings.rounds + 1):
        for candidate in candidates:
            task = {
                "task": "speed",
                "text": text,
                "prompt_tokens": settings.prompt_tokens,
                "decode_tokens": settings.decode_tokens,
                "repetitions": settings.repetitions,
            }
            result = run(candidate, f"speed, round {number} of {settings.rounds}", task)
            if result:
                _add_speed(candidate, result)
    if settings.quality:
        _measure_quality(candidates, settings, run)
    if settings.prompts:
        for candidate in candidates:
            task = {
                "task": "answers",
                "prompts": settings.prompts,
                "max_tokens": settings.max_answer_tokens,
            }
            result = run(candidate, "answers", task)
            if result:
                candidate.answers = result["answers"]
    report("done", tasks, tasks)


def _measure_quality(candidates: list[Candidate], settings: Settings, run: Any) -> None:
    """Each model's highest precision first: the others of the same model are compared with it."""
    by_model: dict[Path, list[Candidate]] = {}
    for candidate in candidates:
        by_model.setdefault(candidate.path, []).append(candidate)
    for group in by_model.values():
        group.sort(key=lambda c: PRECISIONS.index(c.precision))
        with tempfile.TemporaryDirectory(prefix="paragone-") as folder:
            store = str(Path(folder) / "reference.f32") if len(group) > 1 else None
            reference: Candidate | None = None
            for candidate in group:
                task = {"task": "quality", "texts": settings.texts, "reference": store}
                result = run(candidate, "quality", task | {"is_reference": reference is None})
                if result is None:
                    continue
                candidate.quality = result
                if reference is None:
                    reference = candidate
                else:
                    candidate.quality["reference"] = reference.label


def _add_speed(candidate: Candidate, result: dict[str, Any]) -> None:
    samples = candidate.samples
    for key in ("load_s", "start_s", "peak_memory_bytes"):
        samples.setdefault(key, []).append(result[key])
    for run in result["runs"]:
        decode_s = sum(run["token_s"])
        samples.setdefault("ttft_s", []).append(run["ttft_s"])
        samples.setdefault("total_s", []).append(run["total_s"])
        samples.setdefault("prefill_tokens_per_s", []).append(result["prompt_tokens"] / run["ttft_s"])
        samples.setdefault("decode_tokens_per_s", []).append(len(run["token_s"]) / decode_s)
        samples.setdefault("token_s", []).append(run["token_s"])
    for key in ("prompt_tokens", "weight_bytes", "decode_bytes", "cache_bytes", "threads"):
        candidate.facts[key] = result[key]


def _run(
    candidate: Candidate, settings: Settings, task: dict[str, Any], progress: Callable[[float], None]
) -> dict[str, Any]:
    """One task in its own process. Raises ParagoneError with the reason and the code of its failure."""
    task = task | {
        "model": candidate.model,
        "path": str(candidate.path),
        "precision": candidate.precision,
        "threads": settings.threads,
        "spawned": time.monotonic(),
    }
    with tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(
            [sys.executable, "-m", "paragone.compare.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
        )
        last: dict[str, Any] = {}
        try:
            last = _exchange(process, task, progress)
            process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        complaints.seek(0)
        words = complaints.read().strip().splitlines()
    if last.get("event") == "result":
        return last
    if last.get("event") == "error":
        error = ParagoneError(last["message"])
        error.exit_code = last["exit_code"]
        raise error
    if process.returncode < 0:
        why = " (out of memory?)" if process.returncode == -9 else ""
        raise ParagoneError(f"the process was ended by signal {-process.returncode}{why}")
    raise ParagoneError(f"the process failed: {(words or ['no message'])[-1][:200]}")


def _exchange(
    process: "subprocess.Popen[str]", task: dict[str, Any], progress: Callable[[float], None]
) -> dict[str, Any]:
    """Sends the task and follows the worker to its end. Returns its result or error, if it gave one."""
    assert process.stdin  # noqa: S101 -- opened as a pipe above
    assert process.stdout  # noqa: S101
    last: dict[str, Any] = {}
    try:
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()  # and left open: its end would tell the worker that nobody waits
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "progress":
                progress(event["done"] / max(event["total"], 1))
            else:
                last = event
    except BrokenPipeError:
        pass  # it ended before it began; its exit status says how
    return last
