"""Which tokens are a model's own punctuation: never made from a text, some of them end an answer."""

import re

# Tokens that end an answer in the families' chat formats, where the vocabulary has them.
END_OF_TURN = (
    "<|im_end|>",
    "<end_of_turn>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|eom|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<eos>",
    "</s>",
)
# Files often forget to flag control tokens as such. What is spelled like one is taken for one; not <s> and
# </s>, which some vocabularies also have as HTML.
CONTROL_NAMES = frozenset(END_OF_TURN) - {"</s>"} | {
    "<bos>",
    "<pad>",
    "<start_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
}
_CONTROL_LIKE = re.compile(r"<\|[^|<>\s]{1,64}\|>")


def is_control(token: str) -> bool:
    """Whether a token is spelled like a control token."""
    return token in CONTROL_NAMES or (token[:2] == "<|" and _CONTROL_LIKE.fullmatch(token) is not None)
