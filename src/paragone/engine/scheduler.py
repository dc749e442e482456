"""Who runs in the next step, and with how many tokens. Decides; touches no tensor.

Every step has a budget of tokens. Running answers go first, one token each, so that long prompts do not hold
them up; what is left of the budget goes to prompts, in pieces if need be. Where blocks run out, the youngest
of the least important gives its own back and is computed anew later, without a change in what it says: its
tokens are kept.
"""

from bisect import insort
from dataclasses import dataclass, field
from operator import attrgetter

from paragone.engine.block_manager import BlockManager, require
from paragone.engine.sequence import Sequence, Status

RUNNING = Status.RUNNING  # asked of every sequence in every step, and an Enum takes long to answer


@dataclass(slots=True)
class Scheduled:
    """A sequence's part of a step: `count` tokens from `start` on, the last `num_logits` of which are asked
    for their logits."""

    sequence: Sequence
    start: int
    count: int
    num_logits: int
    draft: tuple[int, ...] = ()


@dataclass
class Batch:
    """One step. Sequences with few tokens come first."""

    scheduled: list[Scheduled] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(s.count for s in self.scheduled)


class Scheduler:
    """The line of waiting sequences, and those that run."""

    def __init__(self, blocks: BlockManager, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.blocks = blocks
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self.waiting: list[Sequence] = []  # both in their order
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Puts a sequence in line."""
        sequence.status = Status.WAITING
        insort(self.waiting, sequence, key=lambda s: s.order)

    @property
    def prompt_tokens_left(self) -> int:
        """Tokens that are still to be read before answers go on one by one."""
        left = (len(s.token_ids) - s.computed for line in (self.running, self.waiting) for s in line)
        return sum(count for count in left if count > 1)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and gives its blocks back at once."""
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
        elif sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        self.blocks.free(sequence.slots)
        sequence.status = Status.FINISHED

    def schedule(self) -> Batch:
        """The next step. Empty only where nothing is in line or running."""
        batch, budget = Batch(), self.max_num_batched_tokens
        chosen: dict[int, Scheduled] = {}
        # Answers before prompts; each group in its order. A sequence may be preempted by one before it.
        in_order = sorted(self.running, key=attrgetter("is_prefill"))
        behind = len(in_order)
        for sequence in in_order:
            behind -= 1
            if sequence.status is RUNNING and budget > 0:
                # A guess takes nobody's token.
                budget -= self._take(sequence, budget, budget - behind, chosen, batch)
        while self.waiting and budget > 0 and not batch.preempted:
            sequence = self.waiting[0]
            if len(self.running) >= self.max_num_seqs and not self._make_way(sequence, chosen, batch):
                break
            taken = self._admit(sequence, budget, chosen, batch)
            if not taken:
                break
            budget -= taken
        batch.scheduled = sorted(chosen.values(), key=attrgetter("count"))
        return batch

    def _take(
        self, sequence: Sequence, budget: int, spare: int, chosen: dict[int, Scheduled], batch: Batch
    ) -> int:
        """Schedules a running sequence, preempting others if need be; returns how many tokens it got."""
        computed = sequence.computed
        missing = len(sequence.token_ids) - computed
        draft = tuple(sequence.draft[: max(0, spare - missing)]) if sequence.draft and missing == 1 else ()
        wanted = computed + min(missing + len(draft), budget)
        # A prompt takes what there is; a guess is not worth anybody's place.
        while not (length := self.blocks.reserve(sequence.slots, computed, wanted, computed + 1)):
            victim = max(self.running, key=lambda s: s.order)
            self._preempt(victim, chosen, batch)
            if victim is sequence:
                return 0
        return self._choose(sequence, length - computed, draft, chosen)

    def _admit(self, sequence: Sequence, budget: int, chosen: dict[int, Scheduled], batch: Batch) -> int:
        """Starts the first of the line where there is room; returns how many tokens it got."""
        found = 0
        if sequence.find_prefix:
            found = self.blocks.match(sequence.slots, sequence.token_ids, sequence.root)
        wanted = found + min(len(sequence.token_ids) - found, budget)
        least = wanted if self.running else found + 1
        while not (length := self.blocks.reserve(sequence.slots, found, wanted, least)):
            if not self._make_way(sequence, chosen, batch):
                self.blocks.free(sequence.slots)
                return 0
        self.waiting.pop(0)
        if sequence.find_prefix:
            self.blocks.count(len(sequence.token_ids), found)
        sequence.computed, sequence.status = found, Status.RUNNING
        if not sequence.num_answer:
            sequence.cached = found
        insort(self.running, sequence, key=lambda s: s.order)
        return self._choose(sequence, length - found, (), chosen)

    @staticmethod
    def _choose(sequence: Sequence, count: int, draft: tuple[int, ...], chosen: dict[int, Scheduled]) -> int:
        """Puts a sequence's part into the step; logits are wanted of its last token, and of a draft's."""
        missing = len(sequence.token_ids) - sequence.computed
        draft = draft[: max(0, count - missing)] if draft else draft
        num_logits = 1 + len(draft) if count >= missing else 0
        chosen[sequence.number] = Scheduled(sequence, sequence.computed, count, num_logits, draft)
        return count

    def _make_way(self, sequence: Sequence, chosen: dict[int, Scheduled], batch: Batch) -> bool:
        """Preempts a running sequence that is less important than this one; False where there is none."""
        victim = max(self.running, key=lambda s: s.order, default=None)
        if victim is None or victim.priority <= sequence.priority:
            return False
        self._preempt(victim, chosen, batch)
        return True

    def _preempt(self, sequence: Sequence, chosen: dict[int, Scheduled], batch: Batch) -> None:
        """Back in line, with its tokens but without its blocks."""
        chosen.pop(sequence.number, None)
        self.restart(sequence)
        self.running.remove(sequence)
        self.add(sequence)
        sequence.preemptions += 1
        self.num_preemptions += 1
        batch.preempted.append(sequence)

    def restart(self, sequence: Sequence) -> None:
        """Makes a sequence's tokens be computed anew."""
        self.blocks.free(sequence.slots)
        sequence.computed, sequence.draft = 0, []

    def recover(self) -> None:
        """After planning has failed halfway: what waits holds nothing."""
        for sequence in self.waiting:
            self.blocks.free(sequence.slots)

    def commit(self, scheduled: Scheduled, new_ids: list[int]) -> None:
        """After a step: what was computed is in the cache, and these tokens were chosen. Of a draft only what
        agreed with the choice stays."""
        sequence = scheduled.sequence
        sequence.token_ids += new_ids
        if scheduled.draft:
            sequence.computed = len(sequence.token_ids) - 1
            self.blocks.shorten(sequence.slots, sequence.computed)
        else:
            sequence.computed = scheduled.start + scheduled.count
        self.blocks.computed(sequence.slots, sequence.token_ids, sequence.computed, sequence.root)

    def check(self) -> None:
        """Raises AssertionError where the state contradicts itself."""
        for line, status in ((self.waiting, Status.WAITING), (self.running, Status.RUNNING)):
            require(line == sorted(line, key=lambda s: s.order), f"the {status.value} are out of order")
            require(all(s.status is status for s in line), f"not all are {status.value}")
        require(not any(t for s in self.waiting for t in s.slots.tables), "a waiting one holds blocks")
        require(all(0 <= s.computed <= len(s.token_ids) for s in self.running), "computed more than there is")
        require(len(self.running) <= self.max_num_seqs, "too many run")
        self.blocks.check(s.slots for s in self.running)
