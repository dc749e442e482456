"""What one server is made of, for its handlers."""

from dataclasses import dataclass, field

from paragone import limits
from paragone.serve.call import Bodies, Call
from paragone.serve.grammar_check import GrammarCheck
from paragone.serve.keys import KeyRing
from paragone.serve.limiter import Limiter
from paragone.serve.link import EngineLink
from paragone.serve.logs import Log
from paragone.serve.metrics import Metrics
from paragone.serve.models import Models


@dataclass
class State:
    """The parts. `keys` is None where everybody on this machine may ask; `hosts` are the names by which
    such a server may be called (None: any)."""

    log: Log
    link: EngineLink
    models: Models
    limiter: Limiter
    metrics: Metrics
    grammars: GrammarCheck
    keys: KeyRing | None = None
    hosts: frozenset[str] | None = None
    cors: tuple[str, ...] = ()
    request_seconds: float = limits.REQUEST_SECONDS
    calls: set[Call] = field(default_factory=set)  # that are being answered
    bodies: Bodies = field(default_factory=Bodies)

    @property
    def ready(self) -> bool:
        """Whether a request would be taken now."""
        return self.link.alive and not self.limiter.draining
