"""What clients send, in OpenAI's words (and vLLM's for what OpenAI has no word for). Each type is at once the
check and the OpenAPI document; a field that is not here is refused by name.

Sampling fields that are None are taken from the model's file or from the defaults (`settings.py`).
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from paragone import limits

# Python's $ also stands before a line end; openapi.py gives the document the $ of JSON Schema.
Name = Annotated[str, Meta(min_length=1, max_length=limits.NAME_CHARS, pattern=r"^[A-Za-z0-9._-]+\Z")]
FunctionName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+\Z")]
Text = str  # as long as a body may be
TokenId = Annotated[int, Meta(ge=0, le=limits.VOCAB_SIZE)]
TokenIds = Annotated[list[TokenId], Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1, le=limits.CONTEXT_LENGTH)]
StopText = Annotated[str, Meta(min_length=1, max_length=limits.STOP_STRING_CHARS)]
StopTexts = Annotated[list[StopText], Meta(max_length=limits.STOP_STRINGS)]
LogprobCount = Annotated[int, Meta(ge=0, le=limits.LOGPROBS)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Priority = Annotated[int, Meta(ge=0, le=1000)]  # who asks can let others go first, not go before them
Seconds = Annotated[float, Meta(gt=0, le=24 * 3600.0)]
Label = Annotated[str, Meta(max_length=512)]
BiasKey = Annotated[str, Meta(pattern=r"^[0-9]{1,9}\Z")]
Biases = Annotated[
    dict[BiasKey, Annotated[float, Meta(ge=-100.0, le=100.0)]], Meta(max_length=limits.LOGIT_BIASES)
]


class StreamOptions(Struct, forbid_unknown_fields=True):
    """What a stream tells beside the answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchema(Struct, forbid_unknown_fields=True, kw_only=True):
    """A schema that the answer has to keep."""

    name: Annotated[str, Meta(min_length=1, max_length=64)] = "schema"
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: Text | None = None


class TextFormat(Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Any text."""


class JsonObjectFormat(Struct, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    """Any JSON object."""


class JsonSchemaFormat(Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """A JSON text that keeps a schema."""

    json_schema: JsonSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class StructuredOutputs(Struct, forbid_unknown_fields=True):
    """vLLM's way to say what the answer has to be: one of these. `grammar` is in Lark's or llama.cpp's
    form."""

    json: dict[str, Any] | None = None
    regex: Annotated[str, Meta(min_length=1)] | None = None
    choice: (
        Annotated[
            list[Annotated[str, Meta(min_length=1, max_length=4096)]],
            Meta(min_length=1, max_length=limits.GRAMMAR_CHOICES),
        ]
        | None
    ) = None
    grammar: Annotated[str, Meta(min_length=1)] | None = None
    json_object: bool | None = None


class Sampling(Struct, kw_only=True, forbid_unknown_fields=True):
    """What both ways of asking have."""

    model: Name
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=limits.VOCAB_SIZE)] | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    n: Annotated[int, Meta(ge=1, le=limits.PARALLEL_ANSWERS)] | None = None
    stop: StopText | StopTexts | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=256)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=limits.CONTEXT_LENGTH)] | None = None
    ignore_eos: bool | None = None
    logit_bias: Biases | None = None
    allowed_token_ids: Annotated[list[TokenId], Meta(min_length=1, max_length=1 << 16)] | None = None
    skip_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    priority: Priority | None = None
    timeout: Seconds | None = None
    return_settings: bool | None = None
    user: Label | None = None  # taken and not used: the key says who asks
    metadata: dict[str, Label] | None = None  # taken and not used


class TextPart(Struct, forbid_unknown_fields=True):
    """A piece of a message."""

    type: Literal["text"]
    text: Text


class FunctionCall(Struct, forbid_unknown_fields=True):
    """A call that the model made; `arguments` is a JSON text."""

    name: FunctionName
    arguments: Text


class ToolCall(Struct, forbid_unknown_fields=True, kw_only=True):
    """A call of a tool in an assistant's message."""

    id: Label
    type: Literal["function"] = "function"
    function: FunctionCall
    index: Annotated[int, Meta(ge=0, le=limits.TOOLS)] | None = None


Content = Text | Annotated[list[TextPart], Meta(min_length=1, max_length=limits.MESSAGES)]


class ChatMessage(Struct, forbid_unknown_fields=True, kw_only=True):
    """A turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: Label | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=limits.TOOLS)] | None = None
    tool_call_id: Label | None = None
    # What an answer brought may be sent back, with the fields that OpenAI's package adds to it.
    refusal: Text | None = None
    annotations: None = None
    audio: None = None
    function_call: None = None


class Function(Struct, forbid_unknown_fields=True, kw_only=True):
    """What a tool is called, and the schema of its arguments."""

    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, forbid_unknown_fields=True, kw_only=True):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class ChosenFunction(Struct, forbid_unknown_fields=True):
    """The name of the tool to call."""

    name: FunctionName


class ChosenTool(Struct, forbid_unknown_fields=True):
    """The one tool to call."""

    type: Literal["function"]
    function: ChosenFunction


class ChatRequest(Sampling, kw_only=True, forbid_unknown_fields=True):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=limits.MESSAGES)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: LogprobCount | None = None
    tools: Annotated[list[Tool], Meta(max_length=limits.TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None


Prompt = Text | Annotated[list[Text | TokenId | TokenIds], Meta(min_length=1)]


class CompletionRequest(Sampling, kw_only=True, forbid_unknown_fields=True):
    """The body of /v1/completions. `prompt`: a text, texts, token ids, or lists of them."""

    prompt: Prompt
    max_tokens: Annotated[int, Meta(ge=0, le=limits.CONTEXT_LENGTH)] | None = None
    logprobs: LogprobCount | None = None
    echo: bool | None = None


class RenderRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of /v1/chat/completions/render and /apply-template: what would the model see?"""

    model: Name
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=limits.MESSAGES)]
    tools: Annotated[list[Tool], Meta(max_length=limits.TOOLS)] | None = None


class TokenizeRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of /tokenize: a text or a conversation."""

    model: Name
    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=limits.MESSAGES)] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of /detokenize."""

    model: Name
    tokens: list[TokenId]
