"""Tokens that go out together: nothing is lost, nobody waits who would notice."""

from hypothesis import given
from hypothesis import strategies as st

from paragone import limits
from paragone.serve.gather import Gathered
from paragone.serve.messages import Delta

SOON, LATE = limits.GATHER_SECONDS / 4, limits.GATHER_SECONDS


def delta(request=1, text="a", reason=None, choice=0):
    token = ord(text)
    return Delta(request, choice, text, (token,), ((token, -0.5, ()),), reason)


def after_a_message(*requests):
    gathered = Gathered()
    gathered.put(delta(request) for request in requests)
    gathered.take(0.0)
    return gathered


def test_the_first_token_of_an_answer_waits_for_nothing():
    gathered = Gathered()
    gathered.put([delta()])
    assert gathered.due(0.0)
    gathered = after_a_message(1)
    gathered.put([delta(1), delta(2)])
    assert gathered.due(SOON)
    gathered = after_a_message(1)
    gathered.put([delta(1), delta(1, choice=1)])
    assert gathered.due(SOON)


def test_tokens_that_follow_at_once_go_out_together():
    gathered = after_a_message(1, 2)
    gathered.put([delta(1, "b"), delta(2, "c")])
    assert not gathered.due(SOON)
    gathered.put([delta(1, "d")])
    assert not gathered.due(2 * SOON) and gathered.due(LATE)
    first, second = gathered.take(LATE)
    assert (first.text, first.token_ids, len(first.logprobs)) == ("bd", (98, 100), 2)
    assert second == delta(2, "c")
    assert not gathered


def test_the_end_of_an_answer_waits_for_nothing():
    gathered = after_a_message(1, 2)
    gathered.put([delta(1, "b")])
    end = Delta(1, 0, "", (), (), "error", "why", 7, 9)
    gathered.put([end])
    assert gathered.due(SOON)
    (last,) = gathered.take(SOON)
    assert (last.text, last.reason, last.error, last.cached_tokens, last.seed) == ("b", "error", "why", 7, 9)


def test_prompt_logprobs_stay():
    scores = ((5, -1.0, ()),)
    gathered = Gathered()
    gathered.put([Delta(1, 0, "a", (97,), prompt_logprobs=scores)])
    gathered.put([delta(1, "b")])
    assert gathered.take(0.0)[0].prompt_logprobs == scores


STEPS = st.lists(
    st.tuples(
        st.floats(0.0, 0.02),
        st.lists(st.builds(delta, st.integers(1, 3), st.sampled_from("abcé")), max_size=4),
    )
)


@given(steps=STEPS)
def test_whatever_comes_goes_out_in_order_and_in_time(steps):
    gathered, now, sent, given_in, since = Gathered(), 0.0, {}, {}, None
    for seconds, deltas in steps:
        now += seconds
        for each in deltas:
            given_in[each.request] = given_in.get(each.request, "") + each.text
        gathered.put(deltas)
        since = now if gathered and since is None else since
        if gathered.due(now):
            for each in gathered.take(now):
                sent[each.request] = sent.get(each.request, "") + each.text
            since = None
        assert since is None or now - since < limits.GATHER_SECONDS
    for each in gathered.take(now):
        sent[each.request] = sent.get(each.request, "") + each.text
    assert sent == given_in
