"""Requests that arrive one by one, and what their senders see. Imports nothing of the engines that it
measures.

A request's time to first token begins when it arrives, also where the engine is busy with a step just then.
"""

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import quantiles

PROMPTS, ANSWERS = (16, 1000), (16, 256)  # tokens
FIRST_ID, LAST_ID = 5, 40000


@dataclass(frozen=True)
class Arrival:
    """A request of random tokens, which no cache has seen."""

    at_s: float
    prompt_ids: list[int]
    answer_tokens: int


def poisson(count: int, rate: float, seed: int = 0) -> list[Arrival]:
    """`count` arrivals, `rate` a second on the average, lengths drawn evenly."""
    rng, at, out = random.Random(seed), 0.0, []
    for _ in range(count):
        at += rng.expovariate(rate)
        ids = [rng.randint(FIRST_ID, LAST_ID) for _ in range(rng.randint(*PROMPTS))]
        out.append(Arrival(at, ids, rng.randint(*ANSWERS)))
    return out


def serve(
    arrivals: list[Arrival],
    add: Callable[[int, Arrival], None],
    step: Callable[[], Iterable[tuple[int, int]]],
) -> dict[str, float]:
    """Adds every request when it arrives and steps until all have ended. `step` gives requests' numbers and
    how many tokens each got. Tokens/s of answers from the first arrival to the last token; seconds to the
    first token and between tokens at three percentiles."""
    firsts: list[float] = []
    gaps: list[float] = []
    last: dict[int, float] = {}
    left = {n: arrival.answer_tokens for n, arrival in enumerate(arrivals)}
    begin, sent = time.perf_counter() - arrivals[0].at_s, 0
    while left:
        now = time.perf_counter() - begin
        while sent < len(arrivals) and arrivals[sent].at_s <= now:
            add(sent, arrivals[sent])
            sent += 1
        if len(arrivals) - len(left) == sent:  # all that came have gone
            time.sleep(max(0.0, arrivals[sent].at_s - now))
            continue
        got = list(step())
        now = time.perf_counter() - begin
        for number, tokens in got:
            if number not in last:
                firsts.append(now - arrivals[number].at_s)
            else:
                gaps.append(now - last[number])
            gaps += [0.0] * (tokens - 1)
            last[number] = now
            left[number] -= tokens
            if left[number] <= 0:
                del left[number]
    out = {"tokens_per_s": sum(a.answer_tokens for a in arrivals) / (now - arrivals[0].at_s)}
    for name, values in (("first", firsts), ("gap", gaps)):
        cuts = quantiles(values, n=100)
        out |= {f"{name}_p{p}_s": cuts[p - 1] for p in (50, 95, 99)}
    return out
