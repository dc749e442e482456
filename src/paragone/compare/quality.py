"""Quality: bits per byte of texts, and how far a precision strays from the same model's highest.

Bits per byte = - sum of log2 p(token | before) / UTF-8 bytes of the text; unlike perplexity it can be
compared between tokenizers. Each text is scored on its own after BOS; where the model has none, the first
token is not scored, and its bytes do not count either. Longer texts than fit the context are cut into
windows that each begin afresh.

KL(reference || candidate) = sum over the vocabulary of p (ln p - ln q), in nats, at positions spread
evenly over all texts; agreement is how often both have the same most likely token there.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paragone.engine.model import Model, chosen_logprobs
from paragone.errors import NotEnoughMemory, UsageError

SEGMENT_BYTES = 128  # texts are scored by segments, so that two models can be compared piece by piece
WINDOW = 2048
MAX_POSITIONS = 384
REFERENCE_BYTES = 1 << 30  # the most that reference log-probabilities may take on disk


@dataclass
class TextScore:
    """What a text cost: bits in all, and by segments of its bytes."""

    bytes: int = 0  # scored; the text's first token is not where the model has no BOS
    tokens: int = 0
    bits: float = 0.0
    segments: list[list[float]] = field(default_factory=list)  # [bits, bytes] of each segment
    position: int = 0  # bytes of the text so far

    def add(self, bits: float, size: int) -> None:
        """One token: it counts where it begins."""
        while len(self.segments) <= self.position // SEGMENT_BYTES:
            self.segments.append([0.0, 0.0])
        segment = self.segments[self.position // SEGMENT_BYTES]
        segment[0] += bits
        segment[1] += size
        self.bits += bits
        self.bytes += size
        self.tokens += 1
        self.position += size


def measure_quality(
    model: Model,
    texts: dict[str, str],
    reference: Path | None,
    is_reference: bool,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Scores texts. With `reference`, log-probabilities are written there (is_reference) or compared."""
    windows = {name: windows_of(model, text) for name, text in texts.items()}
    total = sum(len(ids) - 1 for runs in windows.values() for ids in runs)
    divergence = Divergence(reference, is_reference, total, model.decoder.spec.vocab_size)
    scores, done = {}, 0
    for name, runs in windows.items():
        score = scores[name] = TextScore()
        for ids in runs:
            if not model.tokenizer.prefix:
                score.position += len(model.tokenizer.token_bytes(ids[0]))
            targets = torch.tensor(ids[1:])
            for at, logits in model.position_logits(ids):
                chunk = targets[at : at + len(logits)]
                bits = chosen_logprobs(logits, chunk) / -math.log(2)
                for token, cost in zip(chunk.tolist(), bits.tolist(), strict=True):
                    score.add(cost, len(model.tokenizer.token_bytes(token)))
                divergence.add(done, logits)
                done += len(logits)
                progress(done, total)
    size, tokens = sum(s.bytes for s in scores.values()), sum(s.tokens for s in scores.values())
    if not size:
        raise UsageError("the texts are too short to score: at least two tokens are needed")
    return {
        "bits_per_byte": sum(s.bits for s in scores.values()) / size,
        "bytes_per_token": size / tokens,
        "bytes": size,
        "tokens": tokens,
        "texts": {n: asdict(s) | {"bits_per_byte": s.bits / max(s.bytes, 1)} for n, s in scores.items()},
        **divergence.summary(),
    }


def windows_of(model: Model, text: str, spare: int = 0) -> list[list[int]]:
    """Token ids of a text in runs that fit the context and leave `spare` tokens of it, each after BOS where
    the model has one."""
    prefix = model.tokenizer.prefix[-1:]
    ids = model.tokenizer.encode(text)
    limit = min(WINDOW, model.context - spare) - len(prefix)
    runs = [prefix + ids[at : at + limit] for at in range(0, len(ids), limit)]
    return [run for run in runs if len(run) > 1]


class Divergence:
    """KL divergence and agreement at positions spread evenly over all texts."""

    def __init__(self, path: Path | None, write: bool, total: int, vocab: int) -> None:
        count = min(MAX_POSITIONS, total, REFERENCE_BYTES // (4 * vocab)) if path else 0
        self.chosen = np.unique(np.linspace(0, total - 1, count, dtype=int)).tolist() if count else []
        self.write, self.row = write, 0
        self.kl: list[float] = []
        self.agree: list[bool] = []
        self.store: Any = None
        if path and self.chosen:
            shape = (len(self.chosen), vocab)
            try:
                if write:
                    self.store = np.memmap(path, dtype=np.float32, mode="w+", shape=shape)
                else:
                    self.store = np.memmap(path, dtype=np.float32, mode="r", shape=shape)
            except (OSError, ValueError) as err:
                raise NotEnoughMemory(f"the reference's log-probabilities: {err}") from None

    def add(self, first: int, logits_NV: Tensor) -> None:
        """Positions [first, first + N) with their logits."""
        while self.row < len(self.chosen) and self.chosen[self.row] < first + len(logits_NV):
            ours = logits_NV[self.chosen[self.row] - first].log_softmax(-1)
            if self.write:
                self.store[self.row] = ours.numpy()
            else:
                kl, same = _compare(torch.from_numpy(np.array(self.store[self.row])), ours)
                self.kl.append(kl)
                self.agree.append(same)
            self.row += 1

    def summary(self) -> dict[str, Any]:
        """Means and all samples, or nothing where there was no reference to compare with."""
        if not self.kl:
            return {}
        mean = sum(self.kl) / len(self.kl)
        return {"kl_mean": mean, "kl": self.kl, "top1_agreement": sum(self.agree) / len(self.agree)}


def _compare(p: Tensor, q: Tensor) -> tuple[float, bool]:
    """KL(p || q) in nats, and whether both have the same most likely token. Both are log-probabilities."""
    terms = p.exp() * (p - q)
    return max(float(terms.sum(dtype=torch.float64)), 0.0), bool(p.argmax() == q.argmax())
