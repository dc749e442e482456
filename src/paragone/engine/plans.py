"""What runs where: a model's plan of kernels, operation by operation, with the time that each takes here."""

from typing import Any

from paragone.engine.config import EngineConfig
from paragone.engine.engine import Engine
from paragone.engine.model import Model
from paragone.engine.params import SamplingParams
from paragone.engine.request import Request
from paragone.model.plan import Plan, why_no_plan
from paragone.ops.choose import describe_kernels
from paragone.ops.threads import pinned, threads

PROMPT, STEPS = 16, 64  # tokens


def describe_plan(model: Model) -> dict[str, Any]:
    """The operations of a step in order, equal ones together: how many there are, and the microseconds of one
    of them when a single sequence is decoded. Plain values for JSON."""
    reason = why_no_plan(model.decoder)
    found: dict[str, Any] = {"kernels": describe_kernels(), "why_not": reason, "operations": []}
    if reason is not None:
        return found
    found["threads"], found["pinned"] = threads(), pinned()
    engine = Engine(model.decoder, model.tokenizer, EngineConfig(max_num_seqs=1))
    plan = engine.runner.run
    assert isinstance(plan, Plan)  # noqa: S101 -- there is no reason why not
    engine.add(Request([0] * PROMPT, SamplingParams(max_tokens=STEPS, ignore_eos=True)))
    engine.step()
    plan.watch()
    while engine.has_work():
        engine.step()
    together: dict[str, list[float]] = {}
    for operation, seconds in zip(plan.describe(), plan.seconds(), strict=True):
        together.setdefault(operation, []).append(seconds / (STEPS - 1))
    found["operations"] = [
        {"operation": operation, "count": len(each), "microseconds": round(1e6 * sum(each) / len(each), 1)}
        for operation, each in together.items()
    ]
    return found
