"""Reads the JSON files beside weights, with bounds on size, depth and numbers."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paragone import limits
from paragone.errors import MalformedData, NotFound, Refused

REMOTE_CODE = ("auto_map", "trust_remote_code", "custom_pipelines")


def read_json(path: Path, max_bytes: int = limits.CONFIG_BYTES) -> dict[str, Any]:
    """The object in a JSON file. Raises NotFound or MalformedData with the reason and the place."""
    try:
        size = path.stat().st_size
    except OSError:
        raise NotFound(f"{path}: no such file") from None
    if size > max_bytes:
        raise MalformedData(f"{path}: {size} bytes, more than the {max_bytes} that this file may have")
    try:
        value = parse_json(path.read_bytes())
    except OSError as err:
        raise NotFound(f"{path}: cannot be read: {err.strerror}") from None
    except json.JSONDecodeError as err:
        raise MalformedData(f"{path}: not JSON: {err.msg} (line {err.lineno})") from None
    except (ValueError, RecursionError) as err:
        reason = "nested too deeply" if isinstance(err, RecursionError) else str(err)
        raise MalformedData(f"{path}: {reason}") from None
    if not isinstance(value, dict):
        raise MalformedData(f"{path}: holds a {type(value).__name__}, not an object")
    return value


def parse_json(data: bytes, parse_float: Callable[[str], Any] = float) -> Any:
    """A JSON text. Raises ValueError or RecursionError where it is none, has a key twice, is nested too
    deeply or holds a number that is not finite or has too many digits."""
    value = json.loads(
        data.decode("utf-8-sig"), object_pairs_hook=_unique, parse_int=_integer, parse_float=parse_float
    )
    check_plain(value)
    return value


def check_plain(value: Any, depth: int = 0) -> None:
    """Raises ValueError where a value is nested too deeply or holds a number that is not finite."""
    if depth > limits.CONFIG_DEPTH:
        raise ValueError(f"nested deeper than {limits.CONFIG_DEPTH} levels")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    if isinstance(value, dict):
        for item in value.values():
            check_plain(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            check_plain(item, depth + 1)


def _integer(digits: str) -> int:
    if len(digits) > limits.CONFIG_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"key {name[:80]!r} is there twice")
            seen.add(name)
    return out


def refuse_remote_code(value: Any, path: Path) -> None:
    """Raises Refused where a configuration, at any depth, asks for code from its repository."""
    if isinstance(value, dict):
        for key in REMOTE_CODE:
            if key in value:
                raise Refused(
                    f"{path}: {path.name} asks for remote code ({key}); it is never run. If `paragone "
                    "families` has the architecture, none is needed: take the key out of a copy of the file"
                )
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        refuse_remote_code(item, path)
