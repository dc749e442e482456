"""Tokens that go out together: nothing is lost, nobody waits who would notice."""

from hypothesis import given
from hypothesis import strategies as st

from paragone import limits
from paragone.serve.gather import Gathered, interval
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
    assert gathered.take(0.0, LATE) == (delta(),)
    gathered.put([delta(1, "b"), delta(2), delta(1, choice=1)])
    assert gathered.take(SOON, LATE) == (delta(2), delta(1, choice=1))
    assert gathered.take(LATE, LATE) == (delta(1, "b"),)


def test_tokens_that_follow_at_once_go_out_together():
    gathered = after_a_message(1, 2)
    gathered.put([delta(1, "b"), delta(2, "c")])
    assert not gathered.take(SOON, LATE)
    gathered.put([delta(1, "d")])
    assert not gathered.take(2 * SOON, LATE)
    first, second = gathered.take(LATE, LATE)
    assert (first.text, first.token_ids, len(first.logprobs)) == ("bd", (98, 100), 2)
    assert second == delta(2, "c")
    assert not gathered


def test_the_end_of_an_answer_waits_for_nothing_and_for_nobody():
    gathered = after_a_message(1, 2)
    gathered.put([delta(1, "b"), delta(2, "c")])
    end = Delta(1, 0, "", (), (), "error", "why", 7, 9)
    gathered.put([end])
    (last,) = gathered.take(SOON, LATE)
    assert (last.text, last.reason, last.error, last.cached_tokens, last.seed) == ("b", "error", "why", 7, 9)
    assert gathered.take(SOON) == (delta(2, "c"),)


def test_who_has_gone_is_forgotten():
    gathered = after_a_message(1, 2)
    gathered.put([delta(1, "b"), delta(2, "c"), delta(1, "d", choice=1)])
    gathered.drop(1)
    assert gathered.take(LATE, LATE) == (delta(2, "c"),)
    gathered.put([delta(1, "e")])
    assert gathered.take(LATE, LATE) == (delta(1, "e"),), "nothing is remembered of it"


def test_prompt_logprobs_stay():
    scores = ((5, -1.0, ()),)
    gathered = Gathered()
    gathered.put([Delta(1, 0, "a", (97,), prompt_logprobs=scores)])
    gathered.put([delta(1, "b")])
    assert gathered.take(0.0)[0].prompt_logprobs == scores


def test_the_more_streams_the_longer_but_within_bounds():
    intervals = [interval(streams) for streams in range(300)]
    assert intervals == sorted(intervals)
    assert (intervals[0], intervals[-1]) == (limits.GATHER_SECONDS, limits.GATHER_SECONDS_AT_MOST)
    assert intervals[20] == 20 * limits.GATHER_SECONDS_A_STREAM


STEPS = st.lists(
    st.tuples(
        st.floats(0.0, 0.02),
        st.lists(st.builds(delta, st.integers(1, 3), st.sampled_from("abcé")), max_size=4),
    )
)


@given(steps=STEPS)
def test_whatever_comes_goes_out_in_order_and_in_time(steps):
    gathered, now, sent, given_in, since = Gathered(), 0.0, {}, {}, {}
    for seconds, deltas in steps:
        now += seconds
        for each in deltas:
            given_in[each.request] = given_in.get(each.request, "") + each.text
            since.setdefault(each.request, now)
        gathered.put(deltas)
        for each in gathered.take(now, LATE):
            sent[each.request] = sent.get(each.request, "") + each.text
            del since[each.request]
        assert all(now - then < LATE for then in since.values())
    for each in gathered.take(now):
        sent[each.request] = sent.get(each.request, "") + each.text
    assert sent == given_in
