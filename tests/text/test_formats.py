"""How conversations are written: the families' formats, letter by letter and id by id."""

import json
import random
from datetime import datetime

import jinja2.sandbox
import pytest
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from tokenizers import Tokenizer as HFTokenizer

from paragone.catalog.catalog import models
from paragone.errors import BadConfiguration, NotFound, TemplateError
from paragone.text.chat import encode_chat, render_chat
from paragone.text.formats import prompt_formats, use_format
from paragone.text.tokenizer import tokenizer_from_folder
from tests.packages import llama_models, npm
from tests.text.corpus import corpus
from tests.text.test_real_tokenizers import MISTRAL_FILES, mistral

S, U, A, V = "Be brief.", "What is 2+2?", "4", "And 3+3?"
TURNS = [{"role": "user", "content": U}, {"role": "assistant", "content": A}, {"role": "user", "content": V}]
WITH_SYSTEM = [{"role": "system", "content": S}, *TURNS]
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"

# What the model sees of both conversations, as the families' authors write it.
WRITTEN = {
    "alpaca": (
        f"<s>{ALPACA}\n\n### Instruction:\n{U}\n\n### Response:\n{A}</s>\n\n### Instruction:\n{V}\n\n### Response:\n",
        f"<s>{S}\n\n### Instruction:\n{U}\n\n### Response:\n{A}</s>\n\n### Instruction:\n{V}\n\n### Response:\n",
    ),
    "alpaca-stanford": (
        f"<s>{ALPACA}\n\n### Instruction:\n{U}\n\n### Response:{A}</s>\n\n### Instruction:\n{V}\n\n### Response:",
        f"<s>{S}\n\n### Instruction:\n{U}\n\n### Response:{A}</s>\n\n### Instruction:\n{V}\n\n### Response:",
    ),
    "vicuna": (
        f"<s>{VICUNA} USER: {U} ASSISTANT: {A}</s>USER: {V} ASSISTANT:",
        f"<s>{S} USER: {U} ASSISTANT: {A}</s>USER: {V} ASSISTANT:",
    ),
    "koala": (
        f"<s>BEGINNING OF CONVERSATION: USER: {U} GPT: {A}</s>USER: {V} GPT:",
        f"<s>{S} USER: {U} GPT: {A}</s>USER: {V} GPT:",
    ),
    "llama-2": (
        f"<s>[INST] {U} [/INST] {A} </s><s>[INST] {V} [/INST]",
        f"<s>[INST] <<SYS>>\n{S}\n<</SYS>>\n\n{U} [/INST] {A} </s><s>[INST] {V} [/INST]",
    ),
    "mistral-v1": (
        f"<s>[INST] {U} [/INST] {A}</s>[INST] {V} [/INST]",
        f"<s>[INST] {S}\n\n{U} [/INST] {A}</s>[INST] {V} [/INST]",
    ),
    "phi-2": (
        f"<s>Instruct: {U}\nOutput: {A}\nInstruct: {V}\nOutput:",
        f"<s>Instruct: {S}\n\n{U}\nOutput: {A}\nInstruct: {V}\nOutput:",
    ),
    "falcon": (
        f"<s>User: {U}\n\nAssistant: {A}\n\nUser: {V}\n\nAssistant:",
        f"<s>{S}\n\nUser: {U}\n\nAssistant: {A}\n\nUser: {V}\n\nAssistant:",
    ),
    "falcon-180b": (
        f"<s>User: {U}\nFalcon: {A}\nUser: {V}\nFalcon:",
        f"<s>System: {S}\nUser: {U}\nFalcon: {A}\nUser: {V}\nFalcon:",
    ),
    "zephyr": (
        f"<s><|user|>\n{U}</s>\n<|assistant|>\n{A}</s>\n<|user|>\n{V}</s>\n<|assistant|>\n",
        f"<s><|system|>\n{S}</s>\n<|user|>\n{U}</s>\n<|assistant|>\n{A}</s>\n<|user|>\n{V}</s>\n<|assistant|>\n",
    ),
    "plain": (f"<s>{U}\n{A}\n{V}", f"<s>{S}\n{U}\n{A}\n{V}"),
}  # fmt: skip
INSIDE = {  # those with control tokens of their own, on a vocabulary that has them
    "llama-3": (
        f"<|start_header_id|>user<|end_header_id|>\n\n{U}<|eot_id|>"
        f"<|start_header_id|>assistant<|end_header_id|>\n\n{A}<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{V}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "chatml": (
        f"<|im_start|>user\n{U}<|im_end|>\n<|im_start|>assistant\n{A}<|im_end|>\n"
        f"<|im_start|>user\n{V}<|im_end|>\n<|im_start|>assistant\n"
    ),
    "gemma": (
        f"<start_of_turn>user\n{U}<end_of_turn>\n<start_of_turn>model\n{A}<end_of_turn>\n"
        f"<start_of_turn>user\n{V}<end_of_turn>\n<start_of_turn>model\n"
    ),
    "phi-3": f"<|user|>\n{U}<|end|>\n<|assistant|>\n{A}<|end|>\n<|user|>\n{V}<|end|>\n<|assistant|>\n",
    "phi-4": (
        f"<|im_start|>user<|im_sep|>{U}<|im_end|><|im_start|>assistant<|im_sep|>{A}<|im_end|>"
        f"<|im_start|>user<|im_sep|>{V}<|im_end|><|im_start|>assistant<|im_sep|>"
    ),
    "phi-4-mini": f"<|user|>{U}<|end|><|assistant|>{A}<|end|><|user|>{V}<|end|><|assistant|>",
    "llama-4": (
        f"<|header_start|>user<|header_end|>\n\n{U}<|eot|><|header_start|>assistant<|header_end|>\n\n{A}<|eot|>"
        f"<|header_start|>user<|header_end|>\n\n{V}<|eot|><|header_start|>assistant<|header_end|>\n\n"
    ),
}


@pytest.fixture(scope="module")
def llama_tokenizer(tmp_path_factory):
    return mistral("v1", tmp_path_factory.mktemp("spm"))[1]


@pytest.mark.parametrize("name", WRITTEN)
def test_formats_in_plain_text(name, llama_tokenizer):
    use_format(llama_tokenizer, name)
    for messages, want in zip((TURNS, WITH_SYSTEM), WRITTEN[name], strict=True):
        ids = encode_chat(llama_tokenizer, messages)
        assert ids.count(1) == want.count("<s>")  # a BOS where it belongs, and none twice
        assert ids.count(2) == want.count("</s>")
        pieces = "".join(llama_tokenizer.token_bytes(i).decode() for i in ids)
        # SentencePiece puts a space before every text that follows a control token.
        assert pieces.replace("<s> ", "<s>").replace("</s> ", "</s>") == want
        assert not want.endswith(" ")


@pytest.mark.parametrize("name", INSIDE)
def test_formats_with_control_tokens(name, llama_tokenizer):
    tokens = prompt_formats()[name].tokens
    with pytest.raises(BadConfiguration, match=r"lacks: <"):
        use_format(llama_tokenizer, name)
    plain = dict(llama_tokenizer.special)
    llama_tokenizer.special.update({token: 31_000 + i for i, token in enumerate(tokens)})
    try:
        use_format(llama_tokenizer, name)
        assert render_chat(llama_tokenizer, TURNS).removeprefix("<s>") == INSIDE[name]
    finally:
        llama_tokenizer.special.clear()
        llama_tokenizer.special.update(plain)


def test_the_system_message_of_llama_3_1_is_always_there():
    tokenizer = tokenizer_from_folder(llama_models(3)[1])
    use_format(tokenizer, "llama-3.1")
    begin = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n" + DATES
    assert render_chat(tokenizer, TURNS).startswith(begin + "<|eot_id|>")
    assert render_chat(tokenizer, WITH_SYSTEM).startswith(begin + S + "<|eot_id|>")


@pytest.mark.parametrize("name", prompt_formats())
def test_what_a_format_cannot_say_is_refused(name, llama_tokenizer):
    """Messages are written or refused, never dropped, and no role is taken for another."""
    llama_tokenizer.chat_template = prompt_formats()[name].template
    user, system = {"role": "user", "content": U}, {"role": "system", "content": S}
    for messages, message in (
        ([system], "begins with a user message"),
        ([system, {"role": "assistant", "content": A}, user], "begins with a user message"),
        ([user, {"role": "tool", "content": "5"}], "no tool messages"),
    ):
        with pytest.raises(TemplateError, match=message):
            render_chat(llama_tokenizer, messages)
    assert S in render_chat(llama_tokenizer, WITH_SYSTEM)


def test_llama_3_2_knows_the_day():
    tokenizer = tokenizer_from_folder(llama_models(3)[1])
    use_format(tokenizer, "llama-3.2")
    today = datetime.now().strftime("%d %b %Y")
    assert f"Today Date: {today}\n\n{S}<|eot_id|>" in render_chat(tokenizer, WITH_SYSTEM)


def test_control_tokens_that_swallow_white_space(tmp_path):
    """Phi-3's: what its template writes after them is not there for the model. Ids are the library's."""
    state = json.loads((npm("mistral") / "tokenizer.json").read_text())
    names = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    like = state["added_tokens"][-1]
    state["added_tokens"] += [
        like | {"id": 32_000 + i, "content": n, "rstrip": True, "special": True} for i, n in enumerate(names)
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    ours = tokenizer_from_folder(tmp_path)
    use_format(ours, "phi-3")
    ours.prefix = []  # Phi-3 begins without BOS
    library = HFTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for messages in [TURNS, WITH_SYSTEM]:
        text = render_chat(ours, messages)
        assert encode_chat(ours, messages) == library.encode(text, add_special_tokens=False).ids
    assert 13 not in encode_chat(ours, TURNS)  # no line break is left


FORMAT_OF = {"v1": "mistral-v1", "v2": "mistral-v3", "v3": "mistral-v3", "v7": "mistral-v7"}


def conversations(count):
    """Conversations with awkward texts, in the order that the reference takes."""
    rng = random.Random(3)
    texts = [t for t in corpus(400, seed=9) if t.strip() and "▁" not in t and "\x00" not in t]
    for _ in range(count):
        messages = [{"role": "system", "content": rng.choice(texts)}] if rng.random() < 0.5 else []
        for turn in range(rng.choice([1, 3, 5])):
            messages.append({"role": ("user", "assistant")[turn % 2], "content": rng.choice(texts)})
        yield messages


@pytest.mark.parametrize("version", MISTRAL_FILES)
def test_mistral_ids_equal_mistral_common(version, tmp_path):
    reference, ours = mistral(version, tmp_path)
    use_format(ours, FORMAT_OF.get(version, "mistral-v3"))
    kinds = {"user": UserMessage, "assistant": AssistantMessage, "system": SystemMessage}
    for messages in [TURNS, WITH_SYSTEM, *conversations(150)]:
        request = ChatCompletionRequest(messages=[kinds[m["role"]](content=m["content"]) for m in messages])
        want = reference.encode_chat_completion(request).tokens
        assert encode_chat(ours, messages) == want, messages


# Packages that carry an original template with its tokenizer, and the built-in format that means the same.
# Qwen 3's says more (thinking), Nemo's keeps spaces after an answer that Mistral's own code drops.
ORIGINAL = {"llama3": "llama-3", "qwen3": None, "gemma3": "gemma", "nemo": None}


@pytest.mark.parametrize("name", ORIGINAL)
def test_ids_equal_jinja_of_the_original_template(name):
    folder = npm(name)
    ours = tokenizer_from_folder(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    library = HFTokenizer.from_file(str(folder / "tokenizer.json"))
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = pytest.fail
    template = environment.from_string(settings["chat_template"])
    values = {"bos_token": settings["bos_token"], "eos_token": settings["eos_token"]}
    cases = [TURNS, WITH_SYSTEM, *conversations(100)]
    special = set(ours.special)
    ids = []
    for messages in cases:
        ids.append(encode_chat(ours, messages))
        if not any(name in m["content"] for m in messages for name in special):
            text = template.render(messages=messages, add_generation_prompt=True, **values)
            assert ids[-1] == library.encode(text, add_special_tokens=False).ids, text
    assert all(i[: len(ours.prefix)] == ours.prefix and i[1:2] != ours.prefix for i in ids)
    if ORIGINAL[name]:
        use_format(ours, ORIGINAL[name])
        assert [encode_chat(ours, messages) for messages in cases] == ids


def test_names(llama_tokenizer):
    with pytest.raises(NotFound, match="Did you mean vicuna"):
        use_format(llama_tokenizer, "vicunia")
    used = {m.prompt_format for m in models().values()} - {None}
    assert used <= prompt_formats().keys()
