"""Generates for a batch of prompts of different lengths, and yields every piece of text as it is certain."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from paragone.engine.request import Chunk, Completion, FinishReason, SamplingParams, TokenLogprobs
from paragone.engine.sampler import Sampler
from paragone.errors import ContextLengthExceeded, UsageError
from paragone.model.cache import KVCache
from paragone.model.decoder import Decoder
from paragone.text.stream import TextStream
from paragone.text.tokenizer import Tokenizer

PREFILL_CHUNK = 512  # prompt tokens a pass: more gain no speed and cost memory


@dataclass(frozen=True)
class Request:
    """One prompt, as token ids, and how to answer it. `chat` drops the space that SentencePiece adds; `stop`
    are texts that end the answer beside those of the parameters."""

    prompt_ids: list[int]
    params: SamplingParams
    chat: bool = False
    stop: tuple[str, ...] = ()


@dataclass
class _Sequence:
    index: int
    request: Request
    sampler: Sampler
    stream: TextStream
    max_tokens: int
    token_ids: list[int] = field(default_factory=list)


def check_request(request: Request, decoder: Decoder) -> int:
    """The most tokens that the answer may have. Raises before any work where the prompt does not fit."""
    context = decoder.spec.max_position_embeddings
    prompt, asked = len(request.prompt_ids), request.params.max_tokens
    if not prompt:
        raise UsageError("the prompt is empty: there is nothing to continue")
    if max(request.prompt_ids) >= decoder.spec.vocab_size or min(request.prompt_ids) < 0:
        raise UsageError(f"the prompt has token ids outside the vocabulary of {decoder.spec.vocab_size}")
    if prompt >= context:
        raise ContextLengthExceeded(
            f"the prompt has {prompt} tokens and the model's context is {context}: "
            f"shorten it by {prompt - context + 1} tokens or more"
        )
    room = context - prompt
    return room if asked is None else min(asked, room)


class Generation:
    """One batch on its way. Iterating yields chunks; `cancel` ends it after the current step.

    `previous`, of one sequence and finished, hands its cache on: of a conversation that goes on, only what is
    new is computed.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        requests: list[Request],
        previous: "Generation | None" = None,
    ) -> None:
        limits = [check_request(r, decoder) for r in requests]
        requests = [replace(r, params=r.params.seeded()) for r in requests]
        self.decoder, self.tokenizer = decoder, tokenizer
        self.start = time.perf_counter()
        self.cancelled = False
        self._cache: KVCache | None = None
        self._previous = previous if len(requests) == 1 else None
        self.completions = [Completion("", [], "cancelled", len(r.prompt_ids), r.params) for r in requests]
        self._live = [
            _Sequence(
                i,
                request,
                Sampler(request.params, request.prompt_ids, decoder.spec.vocab_size),
                TextStream(
                    (*request.params.stop, *request.stop),
                    drop_first_space=request.chat and tokenizer.backend.adds_space,
                ),
                limit,
            )
            for i, (request, limit) in enumerate(zip(requests, limits, strict=True))
        ]

    def cancel(self) -> None:
        """Ends the generation: sequences that are not finished get the reason "cancelled"."""
        self.cancelled = True

    @torch.inference_mode()
    def __iter__(self) -> Iterator[Chunk]:
        live, decoder = self._live, self.decoder
        if not live:
            return
        longest = max(len(s.request.prompt_ids) for s in live)
        padding = [longest - len(s.request.prompt_ids) for s in live]
        cache = self._cache_of_previous(live[0].request.prompt_ids)
        if cache is None:
            cache = decoder.new_cache(len(live), longest + min(max(s.max_tokens for s in live), 256))
        self._cache = cache
        ids = torch.tensor(
            [[0] * pad + s.request.prompt_ids for pad, s in zip(padding, live, strict=True)],
            device=decoder.device,
        )
        left = torch.tensor(padding, device=decoder.device) if any(padding) else None
        hidden = self._prefill(ids, cache, left)
        while True:
            if hidden is None:
                yield from self._end(live)
                return
            logits = decoder.logits(hidden[:, -1])
            keep: list[int] = []
            tokens: list[int] = []
            for row, sequence in enumerate(live):
                token, logprobs = sequence.sampler.choose(logits[row])
                chunk = self._take(sequence, token, logprobs)
                yield chunk
                if chunk.finish_reason is None:
                    keep.append(row)
                    tokens.append(token)
            if not keep or self.cancelled:
                yield from self._end([live[row] for row in keep])
                return
            if len(keep) < len(live):
                rows = torch.tensor(keep, device=decoder.device)
                cache.keep_rows(rows)
                left = None if left is None else left[rows]
                live = [live[row] for row in keep]
                ids = ids[rows]
            next_ids = torch.tensor(tokens, device=decoder.device)[:, None]
            ids = torch.cat((ids, next_ids), dim=1)
            if decoder.regime(ids.shape[1]) != decoder.regime(ids.shape[1] - 1):
                cache.truncate(0)  # the keys so far are turned as those of a shorter text
                hidden = self._prefill(ids, cache, left)
            else:
                hidden = decoder.hidden(next_ids, cache, left)

    def _prefill(self, ids_BT: Tensor, cache: KVCache, left: Tensor | None) -> Tensor | None:
        """Computes what the cache does not have yet, a bounded number of tokens at a time. Returns the last
        hidden states, or None where the generation was cancelled."""
        hidden = None
        longest = ids_BT.shape[1]
        for at in range(cache.length, longest, PREFILL_CHUNK):
            if self.cancelled:
                return None
            hidden = self.decoder.hidden(ids_BT[:, at : at + PREFILL_CHUNK], cache, left, longest=longest)
        return hidden

    def _cache_of_previous(self, prompt_ids: list[int]) -> KVCache | None:
        """The previous run's cache, cut to what both have in common; the last token is always computed."""
        previous, self._previous = self._previous, None
        if previous is None or previous._cache is None or len(previous._live) != 1:
            return None
        cache, previous._cache = previous._cache, None
        if self.decoder.regime(cache.length) != self.decoder.regime(len(prompt_ids)):
            return None
        sequence = previous._live[0]
        seen = (sequence.request.prompt_ids + sequence.token_ids)[: cache.length]
        pairs = enumerate(zip(seen, prompt_ids[:-1], strict=False))
        cache.truncate(next((n for n, (a, b) in pairs if a != b), min(len(seen), len(prompt_ids) - 1)))
        return cache

    def _take(self, sequence: _Sequence, token: int, logprobs: TokenLogprobs | None) -> Chunk:
        """Adds a token to its sequence and says what became certain, and whether it is the last."""
        completion = self.completions[sequence.index]
        now = time.perf_counter() - self.start
        if not sequence.token_ids:
            completion.ttft_s = now
        completion.total_s = now
        sequence.token_ids.append(token)
        ends = token in self.tokenizer.stop_ids and not sequence.request.params.ignore_eos
        # Special tokens are the model's punctuation between turns, not part of a text.
        known = self.tokenizer.knows(token)
        data = self.tokenizer.token_bytes(token) if known and not self.tokenizer.is_special(token) else b""
        text = "" if ends else sequence.stream.push(data)
        reason: FinishReason | None = None
        if ends or sequence.stream.stopped:
            reason = "stop"
        elif len(sequence.token_ids) >= sequence.max_tokens:
            reason = "length"
        if reason is not None:
            text += sequence.stream.finish()
            if sequence.stream.stopped:  # what was held back may itself complete a stop string
                reason = "stop"
            completion.finish_reason = reason
        entries = (logprobs,) if logprobs else ()
        completion.text += text
        completion.token_ids.append(token)
        completion.logprobs += entries
        return Chunk(sequence.index, text, (token,), entries, reason)

    def _end(self, sequences: list[_Sequence]) -> Iterator[Chunk]:
        for sequence in sequences:
            text = sequence.stream.finish()
            self.completions[sequence.index].text += text
            yield Chunk(sequence.index, text, (), (), "cancelled")
