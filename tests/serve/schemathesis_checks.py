"""A check for schemathesis: a body that the document allows is taken, or refused for one of the few reasons that
no document can say. Loaded by test_document.py."""

import schemathesis

CODES = {
    "context_length_exceeded", "invalid_grammar", "grammar_too_complex", "chat_template_error", "chat_template_limit",
    "model_not_found",
}  # fmt: skip
WORDS = (
    "is outside the vocabulary", "is not in the vocabulary", "is not in tools", "there are no tools", "not both", "needs one of",
    "needs logprobs", "there is nothing to continue", "mixes token ids", "half of a surrogate", "arguments are no JSON",
    "give either prompt or messages", "leaves no room for a format", "content is missing", "temperature is",
    "at most 1024 answers", "not a whole number from 0 to", "prompts, at most",
)  # fmt: skip


@schemathesis.check
def refused_only_for_what_no_document_can_say(ctx, response, case):
    meta = case.meta
    if meta is None or not meta.generation.mode.is_positive or response.status_code < 400:
        return
    error = response.json()["error"]
    known = error["code"] in CODES or any(word in error["message"] for word in WORDS)
    assert known, f"{response.status_code} {error}"
