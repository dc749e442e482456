"""Generation on real weights and tiny ones: equalities, ends, limits."""

import math
from dataclasses import replace

import pytest
import torch

import paragone
from paragone.checkpoint.checkpoint import open_checkpoint
from paragone.engine.config import EngineConfig
from paragone.engine.engine import Engine
from paragone.engine.generation import Front, Generation
from paragone.engine.load import load_model
from paragone.engine.params import SamplingParams
from paragone.engine.request import Request
from paragone.errors import ContextLengthExceeded, NotEnoughMemory, UsageError
from paragone.model.load import load_decoder
from paragone.text.formats import use_format
from tests.real import SMOLLM2, path_of
from tests.tiny import CASES

PROMPTS = [
    "The sky is",
    "Once upon a time there was a little girl who",
    "2 + 2 =",
    "def add(a, b):\n    return",
]


@pytest.fixture(scope="module")
def exact():
    return load_model(path_of(SMOLLM2), SMOLLM2, "fp32")


def test_batch_equals_alone(exact):
    together = exact.generate(PROMPTS, max_tokens=12, logprobs=1)
    for prompt, answer in zip(PROMPTS, together, strict=True):
        alone = exact.generate(prompt, max_tokens=12, logprobs=1)
        assert answer.token_ids == alone.token_ids
        assert answer.text == alone.text
        got, want = ([e.logprob for e in c.logprobs] for c in (answer, alone))
        assert got == pytest.approx(want, abs=1e-4)


def test_rows_that_end_early_leave_the_others_undisturbed(exact):
    stops = SamplingParams(max_tokens=24, stop=("blue", "girl"))
    together = exact.generate(PROMPTS, stops)
    alone = [exact.generate(p, stops) for p in PROMPTS]
    assert [c.text for c in together] == [c.text for c in alone]
    assert len({c.finish_reason for c in together}) >= 1


def test_seeded_sampling_does_not_depend_on_neighbours(exact):
    settings = {"max_tokens": 16, "temperature": 0.9, "top_p": 0.95, "seed": 11}
    alone = exact.generate(PROMPTS[1], **settings)
    together = exact.generate([PROMPTS[1], PROMPTS[0]], **settings)
    assert together[0].token_ids == alone.token_ids
    assert exact.generate(PROMPTS[1], **settings).token_ids == alone.token_ids


def test_streamed_equals_whole(smollm2):
    whole = smollm2.generate("Emoji: 😀", max_tokens=30)
    pieces = list(smollm2.stream("Emoji: 😀", max_tokens=30))
    assert "".join(c.text for c in pieces) == whole.text
    assert [i for c in pieces for i in c.token_ids] == whole.token_ids
    assert [c.finish_reason for c in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == whole.finish_reason
    assert all("\ufffd" not in c.text for c in pieces)


def test_finish_reasons_are_truthful(smollm2):
    # Not "What is": its first token is a near tie, which rounding decides.
    ended = smollm2.chat("Name the capital of France.", max_tokens=64)
    assert ended.finish_reason == "stop"
    assert "Paris" in ended.text
    assert ended.token_ids[-1] in smollm2.tokenizer.stop_ids
    cut = smollm2.chat("Tell me a long story.", max_tokens=5)
    assert (cut.finish_reason, len(cut.token_ids)) == ("length", 5)
    stopped = smollm2.chat("Name the capital of France.", max_tokens=64, stop="Paris")
    assert stopped.finish_reason == "stop"
    assert "Paris" not in stopped.text
    assert stopped.text == ended.text.split("Paris")[0]
    going_on = smollm2.chat("What is the capital of France?", max_tokens=30, ignore_eos=True)
    assert (going_on.finish_reason, len(going_on.token_ids)) == ("length", 30)


def test_one_setting_for_many_prompts_draws_for_each(exact):
    done = exact.generate([PROMPTS[0]] * 3, max_tokens=12, temperature=1.0)
    assert len({c.text for c in done}) > 1
    assert len({c.params.seed for c in done}) == 3
    # Repeated alone: beside others logits differ in the last bit, and a draw may fall on an edge.
    one = exact.generate(PROMPTS[0], max_tokens=12, temperature=1.0)
    again = exact.generate(PROMPTS[0], max_tokens=12, temperature=1.0, seed=one.params.seed)
    assert again.token_ids == one.token_ids


@pytest.mark.parametrize("stop_after", [0, 3, 100])
def test_a_conversation_goes_on_where_it_was(exact, stop_after):
    """What earlier answers have left in the cache changes nothing of the next, also after a Ctrl-C."""
    messages = [{"role": "user", "content": "Name three colours."}]
    first = exact.start_chat(messages, max_tokens=12)
    for number, _ in enumerate(first):
        if number == stop_after:
            first.cancel()
    for content in ("And three more.", "Nothing like before: name an animal."):
        messages = [
            *messages,
            {"role": "assistant", "content": "Red, green."},
            {"role": "user", "content": content},
        ]
        going_on = exact.chat(messages, max_tokens=12)
        fresh = replace(exact).chat(messages, max_tokens=12)
        assert going_on.token_ids == fresh.token_ids
        assert going_on.cached_tokens > fresh.cached_tokens == 0


def test_cancelling(smollm2):
    run = smollm2.start(PROMPTS, max_tokens=50)
    count = 0
    for _ in run:
        count += 1
        if count == 8:
            run.cancel()
    assert count < 8 + 2 * len(PROMPTS)
    assert {c.finish_reason for c in run.completions} == {"cancelled"}


def tiny(tmp_path, name="llama3.1", context=40):
    case = next(c for c in CASES if c.name == name)
    case.options["max_position_embeddings"] = context
    try:
        case.save(tmp_path)
    finally:
        case.options["max_position_embeddings"] = 256
    return load_decoder(open_checkpoint(tmp_path), "fp32")


def generation(decoder, tokenizer, ids, **settings):
    front = Front(lambda: Engine(decoder, tokenizer))
    return Generation(front, [Request(ids, SamplingParams(**settings))])


def test_the_context_is_the_end(tmp_path, smollm2_tokenizer):
    decoder = tiny(tmp_path)
    run = generation(decoder, smollm2_tokenizer, list(range(30)), ignore_eos=True)
    list(run)
    assert len(run.completions[0].token_ids) == 10
    assert run.completions[0].finish_reason == "length"


@pytest.mark.parametrize("length", [40, 41, 400])
def test_a_prompt_that_does_not_fit_is_refused_before_any_work(tmp_path, smollm2_tokenizer, length):
    decoder = tiny(tmp_path)
    with pytest.raises(ContextLengthExceeded, match=rf"{length} tokens.*context is 40"):
        generation(decoder, smollm2_tokenizer, [1] * length)
    generation(decoder, smollm2_tokenizer, [1] * 39)


@pytest.mark.parametrize("ids", [[], [128], [-1], [1, 2, 10**9]])
def test_unusable_prompts(tmp_path, smollm2_tokenizer, ids):
    with pytest.raises(UsageError, match="prompt"):
        generation(tiny(tmp_path), smollm2_tokenizer, ids)


def test_settings_are_honoured_or_refused(smollm2):
    with pytest.raises(UsageError, match="unknown setting temprature"):
        smollm2.generate("x", temprature=1.0)
    with pytest.raises(UsageError, match="not both"):
        smollm2.generate("x", SamplingParams(), max_tokens=3)


def test_logprobs_of_a_text_equal_those_of_generating_it(exact):
    prompt = exact.encode("The capital of France is")
    answer = exact.generate(prompt, max_tokens=12, logprobs=0)
    scored = exact.logprobs(prompt + answer.token_ids)
    assert scored[len(prompt) - 1 :] == pytest.approx([e.logprob for e in answer.logprobs], abs=1e-4)
    assert math.isfinite(sum(scored))


def test_prompt_in_chunks_equals_prompt_at_once(exact):
    ids = exact.encode("A long sentence about ferries and fog. " * 12)
    whole = exact.generate(ids, max_tokens=8, logprobs=0)
    small = EngineConfig(max_num_batched_tokens=7)
    chunked = replace(exact, engine_config=small).generate(ids, max_tokens=8, logprobs=0)
    assert chunked.token_ids == whole.token_ids
    assert [e.logprob for e in chunked.logprobs] == pytest.approx(
        [e.logprob for e in whole.logprobs], abs=1e-4
    )


def test_python_interface(monkeypatch):
    model = paragone.load(path_of(SMOLLM2), precision="int4")
    assert model.generate("The sky is", max_tokens=3).prompt_tokens == 3
    answers = model.generate([[1, 2, 3], "x"], max_tokens=2)
    assert len(answers) == 2
    with pytest.raises(UsageError, match="int5"):
        paragone.load(str(path_of(SMOLLM2)), precision="int5")
    monkeypatch.setattr("paragone.engine.load.available_memory_bytes", lambda: 10**8)
    with pytest.raises(NotEnoughMemory, match=r"needs about 0\.\d GB.*0\.1 GB"):
        paragone.load(str(path_of(SMOLLM2)), precision="fp32")


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_precisions_stay_close_to_fp32(exact, precision):
    """Mean KL over a text's positions: what each precision costs here, with room for other processors."""
    model = load_model(path_of(SMOLLM2), SMOLLM2, precision)
    ids = exact.encode(
        "The ferry had been late every morning that week, and on Thursday it did not come at all."
    )
    with torch.inference_mode():
        p = exact.decoder(torch.tensor([ids])).float().log_softmax(-1)
        q = model.decoder(torch.tensor([ids])).float().log_softmax(-1)
    kl = float((p.exp() * (p - q)).sum(-1).mean())
    assert kl < {"bf16": 0.002, "int8": 0.03, "int4": 0.03}[precision]


def test_a_prompt_format_brings_its_stop_strings(smollm2):
    model = replace(smollm2, tokenizer=replace(smollm2.tokenizer))
    use_format(model.tokenizer, "falcon")
    model.tokenizer.chat_stop = ("e",)
    own = tuple(f"no such text {i}" for i in range(16))  # as many as may be given
    answer = model.chat("What is the capital of France?", max_tokens=30, stop=own)
    assert answer.finish_reason == "stop"
    assert "e" not in answer.text
    assert answer.params.stop == own
    assert "e" in smollm2.chat("What is the capital of France?", max_tokens=30).text
