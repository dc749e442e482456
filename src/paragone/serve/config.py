"""How a server runs, which models it serves, and its limits in print: all of it without what is installed for
serving alone."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from paragone import limits
from paragone.engine.resolve import Located
from paragone.errors import UsageError
from paragone.serve.logs import Level

if TYPE_CHECKING:
    from paragone.serve.models import ServedModel

NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{limits.NAME_CHARS}}}")


@dataclass(frozen=True)
class ServeConfig:
    """The command line's flags."""

    host: str = "127.0.0.1"
    port: int = 8000
    keys: bool = False
    key_file: Path | None = None
    certificate: Path | None = None
    certificate_key: Path | None = None
    cors: tuple[str, ...] = ()
    queue: int = limits.QUEUE
    request_seconds: float = limits.REQUEST_SECONDS
    drain_seconds: float = limits.DRAIN_SECONDS
    step_seconds: float = limits.STEP_SECONDS
    max_model_len: int | None = None
    memory_bytes: int | None = None
    keep_packed: bool = False
    load_all: bool = False
    log_format: Literal["json", "text"] = "text"
    log_level: Level = "info"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def served_models(found: list[tuple[str | None, Located, str | None]]) -> "list[ServedModel]":
    """From (name given, model on disk, precision). Raises UsageError where two would have one name."""
    from paragone.serve.models import ServedModel

    models: dict[str, ServedModel] = {}
    for given, located, precision in found:
        name = given or "".join(
            c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in located.name
        )
        if not NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} is no name for a model: letters, digits, '.', '_' and '-', at most 128"
            )
        if name in models:
            raise UsageError(f"two models are called {name}: name one with NAME=MODEL")
        models[name] = ServedModel(name, located.path, located.name, precision)
    return list(models.values())


def print_limits() -> str:
    """Every limit of limits.py, a line each."""
    rows: list[tuple[str, Any]] = [
        (n, v) for n, v in vars(limits).items() if n.isupper() and not n.startswith("_")
    ]
    wide = max(len(name) for name, _ in rows)
    return "\n".join(
        f"{name:<{wide}}  {value:,}" for name, value in rows if name not in ("KIB", "MIB", "GIB")
    )
