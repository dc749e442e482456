"""Many requests at once: add them, step until they are done, take one out at any moment.

engine = Engine(model.decoder, model.tokenizer)
number = engine.add(Request(prompt_ids, SamplingParams(max_tokens=20)))
while engine.has_work():
    for chunk in engine.step():
        print(chunk.index, chunk.text)
"""

import time
import warnings
from collections.abc import Callable, Iterable

from torch import Tensor

from paragone.engine.answer import Answer, check_request
from paragone.engine.block_manager import BlockManager, root_hash
from paragone.engine.cache_size import num_blocks
from paragone.engine.config import EngineConfig
from paragone.engine.model_runner import ModelRunner
from paragone.engine.params import SamplingParams
from paragone.engine.request import Chunk, Completion, Request
from paragone.engine.sampler import Sampler
from paragone.engine.scheduler import Batch, Scheduled, Scheduler
from paragone.engine.sequence import Sequence, Status
from paragone.engine.speculate import DraftModel, PromptLookup, Speculation
from paragone.engine.stats import StepStats
from paragone.errors import ContextLengthExceeded
from paragone.model.decoder import Decoder
from paragone.model.paged import reaches_of
from paragone.text.stream import TextStream
from paragone.text.tokenizer import Tokenizer


class Engine:
    """Runs requests together: they join and leave at every step. `on_step` is called after each."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        config: EngineConfig | None = None,
        draft: Decoder | None = None,
    ) -> None:
        """`draft`: a smaller model with the same tokenizer, whose guesses are checked. Raises UsageError
        where the memory asked for does not hold one token's keys and values."""
        self.config = config = config or EngineConfig()
        self.decoder, self.tokenizer = decoder, tokenizer
        reaches = reaches_of(decoder.spec)
        counts = num_blocks(decoder, config, draft)
        self.blocks = BlockManager(reaches, counts, config.block_size, find_prefixes=config.find_prefixes)
        self.scheduler = Scheduler(self.blocks, config.max_num_seqs, config.max_num_batched_tokens)
        self.runner = ModelRunner(decoder, config, counts)
        self.speculation: Speculation | None = None
        if draft is not None:
            room = min(self.blocks.capacity(), max(counts) * config.block_size)
            guesser = DraftModel(draft, decoder.spec.vocab_size, room, config.block_size)
            self.speculation = Speculation(guesser)
        elif config.prompt_lookup:
            self.speculation = Speculation(PromptLookup())
        self.stats: StepStats | None = None
        self.on_step: Callable[[StepStats], None] | None = None
        self._answers: dict[int, Answer] = {}  # by their sequence's number
        # Until their prompt is computed, by the sequence that does it.
        self._held: dict[int, list[Answer]] = {}
        self.next_number = 0

    def describe(self) -> str:
        """What the cache holds, in words."""
        tokens, context = self.blocks.capacity(), self.decoder.spec.max_position_embeddings
        pools = " + ".join(f"{pool.num_blocks:,}" for pool in self.blocks.pools)
        return (
            f"cache: {pools} blocks of {self.config.block_size} tokens, up to "
            f"{self.runner.cache.nbytes / 1e9:.2f} GB: "
            f"{tokens:,} tokens, or {tokens / context:.1f} whole contexts of {context:,}"
        )

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values that running answers hold."""
        return sum(
            (pool.num_blocks - pool.num_free) * size
            for pool, size in zip(self.blocks.pools, self.runner.cache.block_bytes, strict=True)
        )

    def add(self, request: Request, *, priority: int = 0, tenant: str = "") -> int:
        """Puts a request in line and returns its number. Raises before any work where it can never run.
        Cached beginnings are shared only within a `tenant`."""
        limit = check_request(request, self.decoder.spec)
        room = self.blocks.capacity()
        prompt = len(request.prompt_ids)
        if prompt >= room:
            raise ContextLengthExceeded(
                f"the prompt has {prompt} tokens and the cache holds {room}: shorten it, or give more memory"
            )
        params = request.params.seeded()
        limit, number = min(limit, room - prompt), self.next_number
        answers = [
            self._new_answer(request, params.of_choice(choice), limit, priority, tenant, choice)
            for choice in range(params.n)
        ]
        first, others = answers[0], answers[1:]
        self.scheduler.add(first.sequence)
        for answer in answers:
            self._answers[answer.sequence.number] = answer
            answer.completion.prompt_logprobs = first.completion.prompt_logprobs
        if others:
            self._held[number] = others
        return number

    def _new_answer(
        self, request: Request, params: SamplingParams, limit: int, priority: int, tenant: str, choice: int
    ) -> Answer:
        tokenizer, ids = self.tokenizer, request.prompt_ids
        own, self.next_number = self.next_number, self.next_number + 1
        ends = {*params.stop_token_ids, *(() if params.ignore_eos else tokenizer.stop_ids)}
        sequence = Sequence(own, ids, params, limit, self.blocks.new_slots(), priority)
        sequence.root = self._root(tenant, len(ids))
        sequence.find_prefix = choice > 0 or params.prompt_logprobs is None
        adds_space = request.chat and tokenizer.backend.adds_space
        return Answer(
            own - choice,
            choice,
            request,
            sequence,
            tokenizer,
            tenant,
            Sampler(params, ids, self.decoder.spec.vocab_size, ends),
            TextStream((*params.stop, *request.stop), drop_first_space=adds_space),
            frozenset(ends),
            Completion("", [], "cancelled", len(ids), params),
            None if request.allowed is None else request.allowed(),
        )

    def has_work(self) -> bool:
        """Whether any request is not finished."""
        return bool(self._answers)

    def completions(self, number: int) -> list[Completion]:
        """A request's answers that have not ended, as they grow."""
        return [answer.completion for answer in self._answers.values() if answer.number == number]

    def abort(self, number: int) -> list[Chunk]:
        """Ends a request now and frees all that it holds: the last chunk of each answer that went on."""
        chunks = []
        self._held.pop(number, None)
        for answer in [a for a in self._answers.values() if a.number == number]:
            self._end(answer)
            chunks.append(answer.cancel())
        return chunks

    def step(self) -> list[Chunk]:
        """One step of all that runs: what became certain of each answer. A chunk with a finish reason is an
        answer's last, and brings its completion. What fails ends requests of its own step at most, with the
        reason "error"; the others go on as if nothing had been."""
        with self.runner.threads():
            return self._step()

    def _step(self) -> list[Chunk]:
        failed: list[Chunk] = []
        begin = time.perf_counter()
        if self.speculation is not None:
            self.speculation.guess(self.scheduler.running, self.decoder.regime)
        batch = self._plan(failed)
        planned = time.perf_counter()
        computed = self._compute(batch, failed)
        ready = time.perf_counter()
        chunks = failed if computed is None else failed + self._take_all(batch, *computed)
        if batch.scheduled:
            spent = planned - begin, ready - planned, time.perf_counter() - ready
            accepted, held = 0, sum(map(len, self._held.values()))
            if self.speculation is not None:
                accepted = self.speculation.accepted_in_step
                self.speculation.learn(batch.scheduled, sum(spent))
            self.stats = StepStats.of(batch, self.scheduler, held, spent, accepted)
            self._report()
        return chunks

    def _report(self) -> None:
        if self.on_step is None or self.stats is None:
            return
        try:
            self.on_step(self.stats)
        except Exception as err:  # the answers must not suffer from who watches
            self.on_step = None
            warnings.warn(f"on_step failed and is not called any more: {err}", stacklevel=3)

    def _plan(self, failed: list[Chunk]) -> Batch:
        """The next batch. Where planning fails twice, the newest request is given up for it."""
        for attempt in range(2):
            try:
                return self.scheduler.schedule()
            except Exception as err:
                self.scheduler.recover()
                if attempt and self._answers:
                    failed.append(self._fail(self._answers[max(self._answers)], err))
        return Batch()

    def _compute(self, batch: Batch, failed: list[Chunk]) -> tuple[Tensor, Tensor | None, list[int]] | None:
        """The batch's hidden states and logits, if somebody needs them, and the most likely token of every
        row: many requests want nothing else. Where it fails, it is tried once more without its newest
        request; where that fails as well, all of its requests end."""
        for attempt in range(2):
            if not batch.scheduled:
                return None
            try:
                return self.runner.forward(batch, with_logits=self._needs_logits(batch))
            except Exception as err:
                newest = max(batch.scheduled, key=lambda part: part.sequence.number)
                given_up = [newest] if attempt == 0 else list(batch.scheduled)
                batch.scheduled = [part for part in batch.scheduled if part not in given_up]
                failed += [self._fail(self._answers[part.sequence.number], err) for part in given_up]
        return None

    def _needs_logits(self, batch: Batch) -> bool:
        """Whether any choice of this step takes more than the most likely token."""
        for part in batch.scheduled:
            answer = self._answers.get(part.sequence.number) if part.num_logits else None
            if answer is not None and answer.needs_logits:
                return True
        return False

    def _fail(self, answer: Answer, err: Exception) -> Chunk:
        """Ends an answer that something happened to."""
        self._end(answer)
        return answer.fail(err)

    def _end(self, answer: Answer) -> None:
        del self._answers[answer.sequence.number]
        if self._held:
            self._release(answer)
        if self.speculation is not None:
            self.speculation.forget(answer.sequence.number)
        held = self._held.get(answer.number, [])
        if answer in held:  # given up before its turn
            held.remove(answer)
        self.scheduler.remove(answer.sequence)

    def _release(self, answer: Answer) -> None:
        """Puts the other answers to a prompt in line: what this one has computed of it is found again."""
        held = self._held.get(answer.sequence.number, [])
        while held:
            self.scheduler.add(held[0].sequence)
            held.pop(0)  # not before: who is in no line would wait for ever
        self._held.pop(answer.sequence.number, None)

    def _take_all(self, batch: Batch, hidden: Tensor, logits: Tensor | None, best: list[int]) -> list[Chunk]:
        """The choices of all requests; what fails in one concerns only that one."""
        chunks, next_row, next_token = [], 0, 0
        for part in batch.scheduled:
            row, token = next_row, next_token
            next_row, next_token = row + part.num_logits, token + part.count
            answer = self._answers.get(part.sequence.number)
            if answer is None:  # aborted since, by a callback
                continue
            try:
                if answer.wants_prompt_logprobs:
                    self._score_prompt(answer, part, hidden[token:next_token])
                chunk = self._take_one(answer, part, logits, best, row)
            except Exception as err:
                gone = part.sequence.number not in self._answers
                chunk = None if gone else self._fail(answer, err)
            if chunk is not None:
                chunks.append(chunk)
        return chunks

    def _take_one(
        self, answer: Answer, part: Scheduled, logits: Tensor | None, best: list[int], row: int
    ) -> Chunk | None:
        """Chooses a request's next tokens and says what became certain; None while its prompt is computed."""
        tokens, entries = answer.choose(part, logits, best, row)
        if part.sequence.number not in self._answers:  # its own callback has aborted it
            return None
        if part.draft and self.speculation is not None:
            self.speculation.checked(part, len(tokens) - 1)
        self.scheduler.commit(part, tokens)
        if not tokens:
            return None
        if self._held:
            self._release(answer)
        chunk = answer.take(tokens, entries)
        if part.draft:
            answer.completion.guessed_tokens += len(part.draft)
            answer.completion.accepted_tokens += min(len(tokens) - 1, len(chunk.token_ids))
        if chunk.finish_reason is not None:
            self._end(answer)
        elif self.decoder.turns_by_length:
            self._follow_regime(answer)
        return chunk

    def _score_prompt(self, answer: Answer, part: Scheduled, hidden: Tensor) -> None:
        """Log-probabilities of the prompt's tokens that follow those of this step."""
        done, ids = answer.completion.prompt_logprobs, answer.sequence.prompt_ids
        first = len(done)  # the position whose next token comes next
        wanted = ids[first + 1 : part.start + part.count + 1]
        at = first - part.start
        done += self.runner.logprobs(
            hidden[at : at + len(wanted)], wanted, answer.params.prompt_logprobs or 0
        )

    def _follow_regime(self, answer: Answer) -> None:
        """Where the ropes turn a longer text otherwise, what is computed does not count any more."""
        sequence = answer.sequence
        length = len(sequence.token_ids)
        if self.decoder.regime(length) != self.decoder.regime(length - 1):
            self.scheduler.restart(sequence)
            sequence.root = self._root(answer.tenant, length)

    def _root(self, tenant: str, length: int) -> bytes:
        return root_hash(tenant, self.decoder.regime(length))

    def run(self, requests: Iterable[Request]) -> list[Completion]:
        """All answers of a batch, in the order of the requests; the first of each where there are several."""
        numbers: list[int] = []
        done: dict[int, Completion] = {}
        try:
            for request in requests:
                numbers.append(self.add(request))
            while len(done) < len(numbers):
                for chunk in self.step():
                    if chunk.completion is not None and chunk.choice == 0:
                        done[chunk.index] = chunk.completion
            return [done[number] for number in numbers]
        finally:  # also of what is left of requests with several answers
            for number in numbers:
                self.abort(number)

    def check(self) -> None:
        """Raises AssertionError where the engine's state contradicts itself."""
        self.scheduler.check()
        held = (answer.sequence for answers in self._held.values() for answer in answers)
        live = {s.number for s in (*self.scheduler.waiting, *self.scheduler.running, *held)}
        ended = any(a.sequence.status is Status.FINISHED for a in self._answers.values())
        if live != self._answers.keys() or ended:
            raise AssertionError("answers and sequences differ")
