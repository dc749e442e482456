"""Tries a tokenizer.json in a process that can be killed, where it holds something that could run away.

A tokenizer's regular expressions and replacements come with the model. Most files have the few that are
known here; others are tried on texts that make bad expressions slow and bad replacements large.
"""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from paragone import limits
from paragone.errors import MalformedData
from paragone.text.pretokenizers import KNOWN_EXPRESSIONS

# Steps of a normaliser or pre-tokeniser that can neither run away nor blow a text up.
HARMLESS = {
    "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "Nmt", "BertNormalizer", "ByteLevel",
    "Metaspace", "Whitespace", "WhitespaceSplit", "Digits", "Punctuation", "BertPreTokenizer", "Sequence",
    "Split", "Prepend", "Replace", "UnicodeScripts", "CharDelimiterSplit", "FixedLength",
}  # fmt: skip
KNOWN = ""  # no expression at all
WORKER = """
import resource, sys
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
print("ready", flush=True)
for unit in ("a", " ", "\\n", "1", "aA", "a1", "a ", "!", "'s", "\u00e9", "\u4e2d", " \\n", "ab!", "Aa "):
    for end in ("", "!", "x", "\\0"):
        tokenizer.encode(unit * (4096 // len(unit)) + end, add_special_tokens=True)
"""


def is_harmless(steps: Any) -> bool:
    """Whether the steps of a tokenizer.json, with all that they hold, are known to end quickly."""
    return _is_known(steps) and _growth(steps) <= limits.REPLACEMENT_CHARS


def _is_known(step: Any) -> bool:
    if isinstance(step, list):
        return all(map(_is_known, step))
    if not isinstance(step, dict):
        return True
    pattern = step.get("pattern")
    if step.get("type", "Sequence") not in HARMLESS:
        return False
    if isinstance(pattern, dict) and pattern.get("Regex", KNOWN) not in KNOWN_EXPRESSIONS | {KNOWN}:
        return False
    return all(_is_known(value) for key, value in step.items() if key != "pattern")


def _growth(step: Any) -> int:
    """How many times longer the steps may make a text; replacements one after the other multiply."""
    product = 1
    if isinstance(step, dict):
        replaced = (step.get("pattern") or {}).get("String", "") if step.get("type") == "Replace" else "x"
        added = len(str(step.get("content", ""))) + len(str(step.get("prepend", "")))
        product = max(1, added) if replaced else limits.REPLACEMENT_CHARS + 1  # nothing is found everywhere
    for part in step.values() if isinstance(step, dict) else step if isinstance(step, list) else ():
        product *= _growth(part)
    return product


def probe(path: Path) -> None:
    """Raises MalformedData where the tokenizer takes too long or too much for a page of text."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", WORKER, str(path), str(limits.TOKENIZER_PROBE_MEMORY_BYTES)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout  # noqa: S101 -- opened as a pipe above
    with process:
        loading = threading.Timer(limits.TOKENIZER_PROBE_LOAD_SECONDS, process.kill)
        loading.start()
        process.stdout.readline()
        loading.cancel()
        try:
            failed = process.wait(limits.TOKENIZER_PROBE_SECONDS) != 0
        except subprocess.TimeoutExpired:
            process.kill()
            failed = True
    if failed:
        raise MalformedData(
            f"{path}: its expressions or replacements take too long or too much memory for a page of text"
        )
