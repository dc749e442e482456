"""Makes and tries grammars in a process of its own, which can be killed. Run by `grammar_check.py`.

One request and one answer a line, both JSON: {"kind", "source"} gives {"grammar"} or {"error"}.
"""

import json
import signal
import sys
from typing import Any

import llguidance as llg
from llguidance.gbnf_to_lark import any_to_lark

ALONE_SECONDS = 4
# Compact JSON: a small model that may write any white space often writes nothing else.
COMPACT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def grammar_of(kind: str, source: Any) -> str:
    """llguidance's own form of what a request asks for."""
    if kind == "json_schema":
        return llg.LLMatcher.grammar_from_json_schema(source, overrides=COMPACT)
    if kind == "regex":
        return llg.LLMatcher.grammar_from_regex(source)
    if kind == "choice":
        return llg.LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, source)))
    if kind == "lark":
        return llg.LLMatcher.grammar_from_lark(source)
    return llg.LLMatcher.grammar_from_lark(any_to_lark(source))


def check(request: dict[str, Any], tokenizer: llg.LLTokenizer, limits: llg.LLParserLimits) -> dict[str, str]:
    """One answer."""
    try:
        grammar = grammar_of(request["kind"], request["source"])
        matcher = llg.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            return {"error": " ".join(matcher.get_error().split())[:500]}
        return {"grammar": grammar}
    except (ValueError, TypeError, RecursionError, MemoryError, KeyError, IndexError) as err:
        return {"error": " ".join(str(err).split())[:500] or type(err).__name__}


def main() -> None:
    """Answers until the input ends."""
    bounds = json.loads(sys.argv[1])
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (bounds["memory"], bounds["memory"]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # no such limits here; the time stays bounded
    tokenizer = llg.LLTokenizer("byte")
    limits = llg.LLParserLimits(max_lexer_states=bounds["lexer_states"], step_lexer_fuel=bounds["step_fuel"])
    for line in sys.stdin.buffer:
        signal.alarm(ALONE_SECONDS)  # where nobody is left to kill it
        answer = check(json.loads(line), tokenizer, limits)
        signal.alarm(0)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
