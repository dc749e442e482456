"""Grammars in the engine's process: compiled once, a matcher for each answer (llguidance)."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import llguidance as llg
import llguidance.numpy as llg_numpy
import numpy as np
import torch
from torch import Tensor

from paragone import limits
from paragone.errors import MalformedData, UsageError
from paragone.serve.messages import TOO_COMPLEX
from paragone.text.tokenizer import Tokenizer

LIMITS = llg.LLParserLimits(
    max_lexer_states=limits.GRAMMAR_LEXER_STATES, step_lexer_fuel=limits.GRAMMAR_STEP_FUEL
)
Matcher = Callable[[Sequence[int]], "Tensor | None"]


class GrammarTooComplex(UsageError):
    """A grammar that was tried, and is too much for this vocabulary."""


class Grammars:
    """The grammars of one model's requests. The least used are forgotten."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._ll: llg.LLTokenizer | None = None
        self._known: OrderedDict[str, Grammar] = OrderedDict()

    def compiled(self, text: str) -> "Grammar":
        """A grammar in llguidance's own form. Raises UsageError where it is none."""
        found = self._known.get(text)
        if found is None:
            if self._ll is None:
                self._ll = ll_tokenizer(self._tokenizer)
            matcher = llg.LLMatcher(self._ll, text, log_level=0, limits=LIMITS)
            tried = matcher.deep_copy()
            if not tried.is_error():
                tried.compute_bitmask()  # what is too much shows here, beside the steps
            if tried.is_error():
                raise GrammarTooComplex(f"the grammar cannot be used: {tried.get_error()[:300]}")
            found = self._known[text] = Grammar(matcher, self._ll.vocab_size, self._tokenizer.stop_ids)
            if len(self._known) > limits.GRAMMARS:
                self._known.popitem(last=False)
        self._known.move_to_end(text)
        return found


class Grammar:
    """A compiled grammar."""

    def __init__(self, matcher: llg.LLMatcher, size: int, stop_ids: frozenset[int]) -> None:
        self._matcher, self._size = matcher, size
        self._stops = torch.tensor(sorted(i for i in stop_ids if i < size), dtype=torch.int64)

    def matcher(self) -> Matcher:
        """For one answer: the tokens that may come after what it has, as (V,) booleans."""
        matcher, size, stops = self._matcher.deep_copy(), self._size, self._stops
        consumed: list[int] = []
        bits = llg_numpy.allocate_token_bitmask(1, size)

        def allowed(answer: Sequence[int]) -> Tensor | None:
            same = 0
            while same < len(consumed) and same < len(answer) and consumed[same] == answer[same]:
                same += 1
            if same < len(consumed):  # guesses that were wrong
                matcher.rollback(len(consumed) - same)
                del consumed[same:]
            for token in answer[same:]:
                if matcher.is_stopped() or not matcher.consume_token(token):
                    break
                consumed.append(token)
            if matcher.is_error():
                raise MalformedData(f"{TOO_COMPLEX}: {matcher.get_error()[:200]}")
            ends = matcher.is_accepting()
            if matcher.is_stopped():
                mask = torch.zeros(size, dtype=torch.bool)
            else:
                llg_numpy.fill_next_token_bitmask(matcher, bits, 0)
                if matcher.is_error():
                    raise MalformedData(f"{TOO_COMPLEX}: {matcher.get_error()[:200]}")
                unpacked = np.unpackbits(bits[0].view(np.uint8), bitorder="little")[:size]
                mask = torch.from_numpy(unpacked.view(np.bool_))
            mask[stops] = ends
            return mask

        return allowed


def ll_tokenizer(tokenizer: Tokenizer) -> llg.LLTokenizer:
    """llguidance's view of a vocabulary. Ids that stand for nothing get no bytes."""
    size = tokenizer.vocab_size
    stops = sorted(i for i in tokenizer.stop_ids if i < size)
    if not stops:
        raise UsageError("this model has no token that ends an answer: structured output cannot end")
    known = [i for i in range(size) if tokenizer.knows(i)]
    tokens = [b""] * size
    for i in known:
        tokens[i] = tokenizer.token_bytes(i)
    described = SimpleNamespace(
        eos_token_id=stops[0],
        bos_token_id=tokenizer.bos_id,
        tokens=tokens,
        special_token_ids=[i for i in known if tokenizer.is_special(i)],
    )
    encode = lambda text: tokenizer.encode(text.decode("utf-8", "replace"), first=False)  # noqa: E731
    wrapper = llg.TokenizerWrapper(_Callable(described, encode))
    return llg.LLTokenizer(wrapper, n_vocab=size, eos_token=stops)


class _Callable:
    """What llguidance expects of a tokenizer: attributes, and a call that encodes bytes."""

    def __init__(self, described: SimpleNamespace, encode: Callable[[bytes], list[int]]) -> None:
        self.__dict__.update(vars(described))
        self._encode = encode

    def __call__(self, data: bytes) -> list[int]:
        return self._encode(data)
