"""One request on its way through the engine: its tokens, what of them is computed, its place in the line."""

from dataclasses import dataclass, field
from enum import Enum

from paragone.engine.block_manager import Slots
from paragone.engine.params import SamplingParams


class Status(Enum):
    """Where a sequence is. A preempted one is waiting again."""

    HELD = "held"  # not in line yet
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class Sequence:
    """A prompt with its answer so far. `computed` counts the tokens whose keys and values are in the cache;
    lower `priority` goes first, and among equals what came first."""

    number: int
    prompt_ids: list[int]
    params: SamplingParams
    max_tokens: int
    slots: Slots
    priority: int = 0
    root: bytes = b""  # where its chain of block hashes begins
    find_prefix: bool = True  # whether its beginning may come from the cache
    token_ids: list[int] = field(default_factory=list)  # prompt and answer
    computed: int = 0
    cached: int = 0  # tokens of the prompt that were found in the cache
    draft: list[int] = field(default_factory=list)  # guessed to come next; checked in the next step
    status: Status = Status.HELD
    preemptions: int = 0

    def __post_init__(self) -> None:
        self.token_ids = self.token_ids or list(self.prompt_ids)

    @property
    def order(self) -> tuple[int, int]:
        """Its place in the line."""
        return self.priority, self.number

    @property
    def answer_ids(self) -> list[int]:
        return self.token_ids[len(self.prompt_ids) :]

    @property
    def num_answer(self) -> int:
        return len(self.token_ids) - len(self.prompt_ids)

    @property
    def is_prefill(self) -> bool:
        """Whether more than its last token is still to be computed."""
        return len(self.token_ids) - self.computed > 1
