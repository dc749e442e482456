"""Medians, spreads, and whether a difference is one."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing."""

    median: float
    low: float
    high: float
    count: int

    @property
    def half_width(self) -> float:
        """Half the range over the median: how much the repetitions differ, as a share."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0


def spread(samples: Sequence[float]) -> Spread:
    """Median and range. Raises statistics.StatisticsError for no samples."""
    return Spread(statistics.median(samples), min(samples), max(samples), len(samples))


def differ(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two sets of repetitions differ by more than their own spread: their ranges do not overlap.

    For n independent repetitions each without a true difference, that happens by chance in
    2 n!² / (2n)! of cases: 10% for three. With one repetition there is no spread to compare with, and
    only a difference of more than a tenth counts.
    """
    if len(a) < 2 or len(b) < 2:
        low, high = sorted((a[0], b[0]))
        return high > 1.1 * low
    return min(a) > max(b) or max(a) < min(b)


def paired_interval(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95% bootstrap interval of the first's bits per byte less the second's, over shared segments of
    texts; each segment is (bits, bytes)."""
    if not pairs:
        return 0.0, 0.0
    rng = random.Random(seed)  # noqa: S311 -- resampling, not secrets
    differences = []
    for _ in range(resamples):
        drawn = rng.choices(pairs, k=len(pairs))
        ours = sum(x[0] for x, _ in drawn) / max(sum(x[1] for x, _ in drawn), 1)
        theirs = sum(y[0] for _, y in drawn) / max(sum(y[1] for _, y in drawn), 1)
        differences.append(ours - theirs)
    differences.sort()
    return differences[int(0.025 * resamples)], differences[int(0.975 * resamples) - 1]
