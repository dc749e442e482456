"""Checks for schemathesis, loaded by test_document.py, in place of two of its own that know less: a body that the
document allows is taken, or refused for one of the few reasons that no document can say; and no answer is 5xx but
where the request itself asked for less time than its answer took."""

import schemathesis

CODES = {
    "context_length_exceeded", "invalid_grammar", "grammar_too_complex", "chat_template_error", "chat_template_limit",
    "model_not_found",
}  # fmt: skip
WORDS = (
    "is outside the vocabulary", "is not in the vocabulary", "is not in tools", "there are no tools", "not both", "needs one of",
    "needs logprobs", "an integer of", "nested deeper than", "there is nothing to continue", "mixes token ids", "half of a surrogate", "arguments are no JSON",
    "give either prompt or messages", "leaves no room for a format", "content is missing", "temperature is",
    "answers to one request", "no token is allowed", "not a whole number from 0 to", "prompts, at most",
)  # fmt: skip


@schemathesis.check
def refused_only_for_what_no_document_can_say(ctx, response, case):
    meta = case.meta
    if meta is None or not meta.generation.mode.is_positive or not 400 <= response.status_code < 500:
        return
    error = response.json()["error"]
    known = error["code"] in CODES or any(word in error["message"] for word in WORDS)
    assert known, f"{response.status_code} {error}"


@schemathesis.check
def no_server_error_unasked(ctx, response, case):
    asked = isinstance(case.body, dict) and "timeout" in case.body and response.status_code == 504
    assert response.status_code < 500 or asked, f"{response.status_code} {response.content[:300]!r}"
