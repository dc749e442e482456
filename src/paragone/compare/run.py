"""A whole comparison: candidates in, a measured result with a recommendation out."""

from datetime import UTC, datetime
from typing import Any

from paragone.compare.candidates import Candidate
from paragone.compare.measure import Report, Settings, measure
from paragone.compare.recommend import Constraints, recommend
from paragone.engine.resources import describe_machine
from paragone.errors import ParagoneError


def compare(
    candidates: list[Candidate], settings: Settings, constraints: Constraints, report: Report
) -> dict[str, Any]:
    """Measures the candidates and recommends one. The result is plain data: raw samples, settings, machine.

    Raises ParagoneError with the first candidate's reason where every one failed.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    measure(candidates, settings, report)
    failed = [c for c in candidates if c.error]
    if len(failed) == len(candidates):
        error = ParagoneError(f"every candidate failed; the first, {failed[0].label}: {failed[0].error}")
        error.exit_code = failed[0].exit_code
        raise error
    return {
        "started": started,
        "machine": describe_machine(),
        "settings": settings.as_dict(),
        "constraints": dict(constraints.__dict__),
        "candidates": [c.as_dict() for c in candidates],
        "recommendation": recommend(candidates, constraints),
    }
