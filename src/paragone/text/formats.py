"""Prompt formats by name, for models that carry no chat template of their own.

What they write as plain text, such as Vicuna's "USER:", a message can write as well: only control tokens keep
turns apart for certain.
"""

import difflib
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from paragone.errors import BadConfiguration, NotFound
from paragone.text.tokenizer import Tokenizer

_SYSTEM = "{%- set system = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') "
_TURNS = "{%- set turns = messages | rejectattr('role', 'equalto', 'system') | list %}"
_CHECKS = (
    "{%- if not turns or turns[0].role != 'user' %}"
    "{{ raise_exception('a conversation begins with a user message, after any system message') }}{% endif %}"
    "{%- if turns | selectattr('role', 'equalto', 'tool') | list %}"
    "{{ raise_exception('this prompt format has no tool messages') }}{% endif %}"
)
PRELUDE = f"{_SYSTEM}| join('\\n\\n') %}}{_TURNS}{_CHECKS}"


@dataclass(frozen=True)
class PromptFormat:
    """How a family's conversations are written: `template` in Jinja, `stop` what else ends an answer,
    `tokens` the control tokens without which it is no such model."""

    name: str
    title: str
    source: str
    template: str
    stop: tuple[str, ...]
    tokens: tuple[str, ...] = ()


@cache
def prompt_formats() -> dict[str, PromptFormat]:
    """Every built-in format by name."""
    table = tomllib.loads(files(__package__).joinpath("formats.toml").read_text("utf-8"))
    return {
        name: PromptFormat(
            name,
            row["title"],
            row["source"],
            PRELUDE + row["template"],
            tuple(row["stop"]),
            tuple(row.get("tokens", ())),
        )
        for name, row in table.items()
    }


def use_format(tokenizer: Tokenizer, name: str) -> None:
    """Makes a format the tokenizer's template. Raises NotFound for a name that is not known, BadConfiguration
    where the vocabulary lacks the format's control tokens."""
    known = prompt_formats()
    if name not in known:
        near = difflib.get_close_matches(name[:64].lower(), known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise NotFound(f"no prompt format {name[:64]!r}.{hint} Known: {', '.join(known)}.")
    chosen = known[name]
    missing = [token for token in chosen.tokens if token not in tokenizer.special]
    if missing:
        raise BadConfiguration(
            f"the prompt format {name} needs control tokens that this vocabulary lacks: {', '.join(missing)}"
        )
    tokenizer.chat_template, tokenizer.chat_stop = chosen.template, chosen.stop
