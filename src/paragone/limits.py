"""Every limit on what a file or a request may ask for, in one place.

Nothing here is a security boundary by itself: each limit is checked where the value is read, before
anything of that size is allocated.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# Checkpoints
SAFETENSORS_HEADER_BYTES: Final = 100_000_000  # the format's own limit
# Metadata entries cost memory beyond their bytes, so all of a file's are counted together.
GGUF_KEYS: Final = 1 << 16
GGUF_TENSORS: Final = 1 << 18
GGUF_STRINGS: Final = 1 << 22
GGUF_NESTED_ARRAYS: Final = 1 << 16
GGUF_ARRAY_DEPTH: Final = 4
GGUF_DIMENSIONS: Final = 4
CONFIG_BYTES: Final = 8 * MIB
CONFIG_DEPTH: Final = 32
CONFIG_DIGITS: Final = 32  # tokenizer_config.json files say "no limit" with int(1e30)
TENSOR_RANK: Final = 8

# Architectures: far above every released model, far below what exhausts a machine
LAYERS: Final = 1_024
HIDDEN_SIZE: Final = 1 << 20
VOCAB_SIZE: Final = 1 << 24
CONTEXT_LENGTH: Final = 1 << 30
HEADS: Final = 1 << 14

# Tokenizers
TOKENIZER_BYTES: Final = 256 * MIB
TOKEN_BYTES: Final = 64 * KIB
RANKED_FILE_BYTES: Final = 24 * MIB  # tekken.json, tiktoken's files
RANKED_CONTROL_TOKENS: Final = 1 << 14
RANKED_TOKENS_WORK: Final = 1 << 26  # sum of squared lengths of tokens whose merges have to be found
REPLACEMENT_CHARS: Final = 16  # what a normaliser may put in for a character without being tried first
TOKENIZER_PROBE_SECONDS: Final = 1.0
TOKENIZER_PROBE_LOAD_SECONDS: Final = 20.0
TOKENIZER_PROBE_MEMORY_BYTES: Final = 3 * GIB

# Chat templates
TEMPLATE_BYTES: Final = 256 * KIB
TEMPLATE_INPUT_BYTES: Final = 16 * MIB
TEMPLATE_OUTPUT_BYTES: Final = 32 * MIB
TEMPLATE_SEQUENCE: Final = 100_000  # items that range() or one repetition may make
TEMPLATE_SECONDS: Final = 2.0
TEMPLATE_PROCESS_SECONDS: Final = 60  # processor time of one rendering process, all templates together
TEMPLATE_MEMORY_BYTES: Final = 512 * MIB

# Between the server's processes
MESSAGE_BYTES: Final = 256 * MIB
ENGINE_RESTARTS: Final = 3  # within ENGINE_RESTART_WINDOW_S, before the server gives up
ENGINE_RESTART_WINDOW_S: Final = 60.0
# A stream's tokens that come within this go out together: thirty times a second where it is alone, and the
# more there are the less often, so that all of them have some 500 events a second.
GATHER_SECONDS: Final = 0.033
GATHER_SECONDS_A_STREAM: Final = 0.002
GATHER_SECONDS_AT_MOST: Final = 0.064
GATHER_PROMPT_TOKENS: Final = 128  # more of them to be read in the next step, and nothing waits for it
STEP_SECONDS: Final = 120.0  # of one step of the engine, before its process is killed

# What a server's clients may send
BODY_BYTES: Final = 10 * MIB
HEADER_BYTES: Final = 64 * KIB
HEADER_SECONDS: Final = 10.0
BODY_VALUES: Final = 1_000_000  # commas and brackets
BODY_SECONDS: Final = 30.0
UNREAD_SECONDS: Final = 30.0  # that an answer waits for a client that does not read it
CONNECTIONS: Final = 4_096
BODIES_BYTES: Final = 256 * MIB  # of all requests that are being read or answered
LOAD_SECONDS: Final = 900.0  # of a model, before those who wait for it are told
QUEUE: Final = 256  # requests that wait beside those that run
RETRY_SECONDS: Final = 5  # after which, at most, who was refused is to try again where nobody leaves
RETRY_SECONDS_AT_MOST: Final = 30  # the same where they leave slowly
REQUEST_SECONDS: Final = 600.0
DRAIN_SECONDS: Final = 30.0
MESSAGES: Final = 1_024  # of a conversation
TOOLS: Final = 128
PROMPTS: Final = 1_024  # of one completion request
PARALLEL_ANSWERS: Final = 16  # n
LOGIT_BIASES: Final = 1_024
NAME_CHARS: Final = 128

# Grammars of structured output
GRAMMAR_BYTES: Final = 128 * KIB
GRAMMAR_SECONDS: Final = 2.0
GRAMMAR_LIMIT_SECONDS: Final = 30.0  # for which it is remembered that one took too long
GRAMMAR_MEMORY_BYTES: Final = 768 * MIB
GRAMMARS: Final = 128  # that are kept
GRAMMARS_WAITING: Final = 32
GRAMMAR_CACHE_BYTES: Final = 64 * MIB
GRAMMAR_CHOICES: Final = 1_024
GRAMMAR_LEXER_STATES: Final = 20_000
GRAMMAR_STEP_FUEL: Final = 200_000

# Requests
LOGPROBS: Final = 20
ANSWERS: Final = 128  # to one prompt
STOP_STRINGS: Final = 16
STOP_STRING_CHARS: Final = 256
THREADS: Final = 1024  # of one process
