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

# Requests
LOGPROBS: Final = 20
ANSWERS: Final = 128  # to one prompt
STOP_STRINGS: Final = 16
STOP_STRING_CHARS: Final = 256
THREADS: Final = 1024  # of one process
