"""Renders chat templates in a process of its own, which can be killed. Run by `chat.py`, never imported.

Templates come with models, so they are foreign code. The process has no more memory and processor time
than it is given, runs Jinja's immutable sandbox with bounded repetition and output, and once a template
is compiled, an audit hook refuses files, sockets, processes and further code.

One request and one answer a line, both JSON.
"""

import json
import sys
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

LIMITS: dict[str, int] = {}
_rendering = False
REFUSED_EVENTS = (
    "open",
    "os.",
    "subprocess.",
    "socket.",
    "ctypes.",
    "exec",
    "compile",
    "pickle.",
    "import",
)


class LimitError(Exception):
    """A template wanted more than it may have."""


class Generation(Extension):
    """`{% generation %}` marks the assistant's text for trainers; here it renders what it holds."""

    tags = {"generation"}  # noqa: RUF012 -- Jinja's interface

    def parse(self, parser: Any) -> Any:
        """Reads to `{% endgeneration %}`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with the operators that can make large things out of small ones bounded."""

    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Runs an intercepted operator, or refuses it."""
        limit = LIMITS["sequence"]
        if operator == "*":
            for sized, count in ((left, right), (right, left)):
                if hasattr(sized, "__len__") and isinstance(count, int) and len(sized) * count > limit:
                    raise LimitError("a repetition is too long")
            numbers = isinstance(left, int) and isinstance(right, int)
            if numbers and left.bit_length() + right.bit_length() > 256:
                raise LimitError("a number is too large")
        elif operator == "**":
            small = isinstance(left, int | float) and isinstance(right, int | float) and abs(right) <= 64
            if not small or (isinstance(left, int) and left.bit_length() > 32):
                raise LimitError("a power is too large")
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            if len(left) + len(right) > LIMITS["output"]:
                raise LimitError("a sum is too long")
        elif operator == "%" and isinstance(left, str):
            raise SecurityError("formatting with % is not allowed")
        return super().call_binop(context, operator, left, right)


def make_environment() -> Sandbox:
    """The environment that Hugging Face renders chat templates in, but bounded."""
    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation], cache_size=0
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now, range=_range)
    for name in ("lipsum", "cycler"):
        environment.globals.pop(name, None)
    return environment


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    allowed = {k: v for k, v in options.items() if k in ("separators", "sort_keys")}
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **allowed)


def _raise_exception(message: Any = "") -> None:
    raise jinja2.TemplateError(str(message)[:500])


def _strftime_now(form: Any) -> str:
    return datetime.now().strftime(str(form)[:100])


def _range(*bounds: int) -> range:
    made = range(*bounds)
    if len(made) > LIMITS["sequence"]:
        raise LimitError("a range is too long")
    return made


def refuse(event: str, _: Any) -> None:
    """The audit hook: nothing but arithmetic and text while a template renders."""
    if _rendering and event.startswith(REFUSED_EVENTS):
        raise SecurityError(f"a template tried {event}")


def render(request: dict[str, Any]) -> dict[str, str]:
    """One rendering: {"text": ...}, or {"error": ..., "kind": "limit" | "template"}."""
    global _rendering  # noqa: PLW0603 -- read by the audit hook
    try:
        template = make_environment().from_string(request["template"])
        context = template.new_context(request["values"])
        pieces, size = [], 0
        try:
            _rendering = True
            # Not template.generate(): on an error that compiles code, for the sake of its traceback.
            for piece in template.root_render_func(context):
                size += len(piece)
                if size > LIMITS["output"]:
                    raise LimitError("the output is too long")
                pieces.append(piece)
        finally:
            _rendering = False
        return {"text": "".join(pieces)}
    except (LimitError, MemoryError, RecursionError, OverflowError) as err:
        return {"kind": "limit", "error": str(err) or type(err).__name__}
    except SecurityError as err:
        return {"kind": "template", "error": f"refused: {err}"}
    except jinja2.TemplateSyntaxError as err:
        return {"kind": "template", "error": f"line {err.lineno}: {err.message}"}
    except Exception as err:  # whatever a template provokes is the template's failure, not ours
        return {"kind": "template", "error": str(err) or type(err).__name__}


def main() -> None:
    """Answers requests until standard input ends."""
    LIMITS.update(json.loads(sys.argv[1]))
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (LIMITS["memory"], LIMITS["memory"]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (LIMITS["cpu_seconds"], LIMITS["cpu_seconds"]))
    except (ImportError, ValueError, OSError):
        pass  # no such limits here; time and output stay bounded
    make_environment().from_string("{{ x | tojson }} {{ strftime_now('%d %b %Y') }}").render(x="é")
    sys.addaudithook(refuse)
    for line in sys.stdin.buffer:
        answer = render(json.loads(line))
        data = json.dumps(answer).encode()
        sys.stdout.buffer.write(data + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
