"""What a step was, for whoever watches an engine."""

from dataclasses import dataclass

from paragone.engine.scheduler import Batch, Scheduler


@dataclass(slots=True)
class StepStats:
    """What one step was: sequences and tokens, and the state after it. Seconds are those of planning, of the
    decoder and of choosing tokens."""

    running: int
    waiting: int
    prefill_tokens: int
    decode_tokens: int
    blocks_used: int
    blocks: int
    preempted: int
    prefix_hit_rate: float
    schedule_s: float
    compute_s: float
    sample_s: float
    guessed: int = 0  # tokens that were checked as guesses, and those that were right
    accepted: int = 0

    @classmethod
    def of(
        cls, batch: Batch, scheduler: Scheduler, held: int, spent: tuple[float, float, float], accepted: int
    ) -> "StepStats":
        """Of a batch that has been computed; `held` answers wait for another's prompt, `spent` are the three
        times."""
        prefill = decode = guessed = 0
        for part in batch.scheduled:
            if part.num_logits and part.count == part.num_logits:
                decode += part.count
            else:
                prefill += part.count
            guessed += len(part.draft)
        blocks, pool = scheduler.blocks, scheduler.blocks.pools[0]
        return cls(
            len(scheduler.running),
            len(scheduler.waiting) + held,
            prefill,
            decode,
            pool.num_blocks - pool.num_free,
            pool.num_blocks,
            len(batch.preempted),
            blocks.hits / blocks.queries if blocks.queries else 0.0,
            *spent,
            guessed,
            accepted,
        )
