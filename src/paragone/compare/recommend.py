"""Which candidate to take: constraints first, then taste; differences within the noise decide nothing."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from paragone.compare.candidates import Candidate
from paragone.compare.statistics import differ, paired_interval, spread

Preference = Literal["speed", "quality", "memory", "balance"]
PREFERENCES: tuple[Preference, ...] = ("balance", "speed", "quality", "memory")
# In a balance, one doubling of speed is worth one halving of memory and this share of bits per byte.
QUALITY_SHARE_OF_A_DOUBLING = 0.10


@dataclass(frozen=True)
class Constraints:
    """What a candidate must meet, and what is preferred among those that do."""

    prefer: Preference = "balance"
    max_memory_bytes: int | None = None
    min_context: int | None = None
    commercial: bool = False


def speed(candidate: Candidate) -> float:
    """Bytes of text a second when decoding: tokens a second alone do not compare between tokenizers."""
    tokens = spread(candidate.samples["decode_tokens_per_s"]).median
    return tokens * float(candidate.quality.get("bytes_per_token", 1.0))


def memory(candidate: Candidate) -> float:
    """Peak bytes of the process."""
    return spread(candidate.samples["peak_memory_bytes"]).median


def bits_per_byte(candidate: Candidate) -> float:
    """Quality, less is better; infinite where it was not measured."""
    return float(candidate.quality.get("bits_per_byte", math.inf))


def rejection(candidate: Candidate, constraints: Constraints) -> str | None:
    """Why a candidate is out of the question, or None."""
    if candidate.error:
        return f"failed: {candidate.error}"
    limit = constraints.max_memory_bytes
    if limit is not None and memory(candidate) > limit:
        return f"takes {memory(candidate) / 1e6:.0f} MB, more than {limit / 1e6:.0f} MB"
    context = candidate.known.get("context", 0)
    if constraints.min_context and context < constraints.min_context:
        return f"context {context}, less than {constraints.min_context}"
    if constraints.commercial:
        licence = candidate.known.get("licence")
        if licence is None:
            return "its licence is not known, so commercial use may not be allowed"
        if licence["commercial"] == "no":
            return f"{licence['name']} forbids commercial use"
    return None


def recommend(candidates: Sequence[Candidate], constraints: Constraints) -> dict[str, Any]:
    """The choice, its reason in a sentence, why others are out, and what would change it."""
    rejected = {c.label: why for c in candidates if (why := rejection(c, constraints))}
    left = [c for c in candidates if c.label not in rejected]
    if not left:
        return {
            "choice": None,
            "reason": "no candidate meets the constraints",
            "rejected": rejected,
            "else": [],
        }
    best, close = _choose(left, constraints.prefer)
    return {
        "choice": best.label,
        "prefer": constraints.prefer,
        "reason": _reason(best, left, constraints.prefer, close),
        "no_difference": [c.label for c in close],
        "rejected": rejected,
        "else": _alternatives(best, left, constraints.prefer),
    }


def _choose(left: Sequence[Candidate], prefer: Preference) -> tuple[Candidate, list[Candidate]]:
    """The best by a preference, and those that differ from it by no more than the noise. Among equals the
    one with the better quality, then the smaller, is taken."""
    if prefer == "balance":
        first = min(left, key=lambda c: _balance(c, left))
        equals = [c for c in left if c is not first and _same_balance(first, c)]
        best = min([first, *equals], key=lambda c: (round(bits_per_byte(c), 4), memory(c)))
        return best, [c for c in (first, *equals) if c is not best]
    key, same = _MEASURES[prefer]
    first = min(left, key=key)
    equals = [c for c in left if c is not first and same(first, c)]
    best = min([first, *equals], key=lambda c: (round(bits_per_byte(c), 4), memory(c)))
    return best, [c for c in (first, *equals) if c is not best]


def _balance(candidate: Candidate, left: Sequence[Candidate]) -> float:
    """Doublings lost against the best of each: of speed, of memory, and of quality in its own measure."""
    doublings = math.log2(max(map(speed, left)) / speed(candidate))
    doublings += math.log2(memory(candidate) / min(map(memory, left)))
    best = min(map(bits_per_byte, left))
    if math.isfinite(best):
        doublings += (bits_per_byte(candidate) / best - 1) / QUALITY_SHARE_OF_A_DOUBLING
    return doublings


def _same_balance(a: Candidate, b: Candidate) -> bool:
    """Whether nothing that a balance weighs differs by more than the noise."""
    quality = same_quality(a, b) if a.quality and b.quality else True
    return same_speed(a, b) and same_memory(a, b) and quality


def same_speed(a: Candidate, b: Candidate) -> bool:
    """Whether decode speeds, in bytes of text, differ by no more than their repetitions do."""

    def samples(c: Candidate) -> list[float]:
        size = c.quality.get("bytes_per_token", 1.0)
        return [s * size for s in c.samples["decode_tokens_per_s"]]

    return not differ(samples(a), samples(b))


def same_memory(a: Candidate, b: Candidate) -> bool:
    """Whether peaks differ by no more than their repetitions do."""
    return not differ(a.samples["peak_memory_bytes"], b.samples["peak_memory_bytes"])


def same_quality(a: Candidate, b: Candidate) -> bool:
    """Whether the 95% interval of the difference in bits per byte, over segments, includes zero."""
    return bool(a.quality and b.quality) and same_scores(a.quality["texts"], b.quality["texts"])


def same_scores(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """The same for the scores of texts by name."""
    pairs = [
        (x, y)
        for name in ours.keys() & theirs.keys()  # segment by segment: texts may have one more in one model
        for x, y in zip(ours[name]["segments"], theirs[name]["segments"], strict=False)
    ]
    low, high = paired_interval(pairs)
    return low <= 0 <= high


_Key = Callable[[Candidate], float]
_Same = Callable[[Candidate, Candidate], bool]
_MEASURES: dict[str, tuple[_Key, _Same]] = {
    "speed": (lambda c: -speed(c), same_speed),
    "memory": (memory, same_memory),
    "quality": (bits_per_byte, same_quality),
}


def _reason(best: Candidate, left: Sequence[Candidate], prefer: str, close: Sequence[Candidate]) -> str:
    tokens = spread(best.samples["decode_tokens_per_s"]).median
    facts = [f"{tokens:.0f} tokens/s", f"{memory(best) / 1e6:.0f} MB"]
    if best.quality:
        facts.append(f"{bits_per_byte(best):.3f} bits per byte")
    what = {
        "speed": "writes text fastest",
        "memory": "takes the least memory",
        "quality": "predicts the texts best",
        "balance": "loses least, taking speed, memory and quality together",
    }[prefer]
    text = f"{best.label} {what} of {len(left)} ({', '.join(facts)})"
    if close:
        text = f"{best.label} is among the best in {prefer} of {len(left)} ({', '.join(facts)})"
        names = ", ".join(c.label for c in close)
        text += f"; {names} shows no difference beyond the noise, so quality and size decided"
    if best.known.get("kind") == "base":
        text += ". It is a base model: it continues text and was not trained to follow instructions"
    return text


def _alternatives(best: Candidate, left: Sequence[Candidate], prefer: str) -> list[str]:
    """What would change the choice."""
    out = []
    for other in PREFERENCES:
        if other != prefer and (other != "quality" or all(c.quality for c in left)):
            choice, _ = _choose(left, other)
            if choice is not best:
                out.append(f"--prefer {other} would take {choice.label}")
    smaller = [c for c in left if memory(c) < memory(best) and not same_memory(c, best)]
    if smaller:
        choice, _ = _choose(smaller, prefer)  # type: ignore[arg-type]
        out.append(f"with less than {memory(best) / 1e6:.0f} MB it would be {choice.label}")
    instruct = [c for c in left if c.known.get("kind") == "instruct"]
    if best.known.get("kind") == "base" and instruct:
        choice, _ = _choose(instruct, prefer)  # type: ignore[arg-type]
        out.append(f"for following instructions it would be {choice.label}")
    return out
