"""llama.cpp through its C interface; run by cpu_kernels.py with the peer's own Python.

    python peer_llamacpp.py turns FILE
    python peer_llamacpp.py start FILE
    python peer_llamacpp.py quantize FILE TARGET TYPE
    python peer_llamacpp.py bits FILE IDS

`turns` answers with the tokens/s of a prompt or of decoding when it is asked for prefill512 or decode16;
`start` prints a line when the first token is there. Agrees with llama-bench and llama-batched-bench of the
same build to within noise.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp as lib  # type: ignore[import-not-found]
import numpy as np

from benchmarks.turns import PROMPTS, STEPS, Measured, answer

THREADS = 2
TYPES = {"BF16": "BF16", "Q8_0": "Q8_0", "Q4_0": "Q4_0"}
Token = tuple[int, int, int, bool]  # id, position, sequence, whether its logits are wanted


class Session:
    """A model with a context for so many sequences."""

    def __init__(self, path: str, sequences: int, tokens: int) -> None:
        lib.llama_backend_init()
        self.model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = tokens * sequences, 4096, 512
        params.n_threads = params.n_threads_batch = THREADS
        params.n_seq_max = sequences
        params.kv_unified = False  # a stream for each sequence, as llama-batched-bench has it
        self.context = lib.llama_init_from_model(self.model, params)
        self.batch = lib.llama_batch_init(4096, 0, 1)

    def decode(self, tokens: list[Token]) -> None:
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wanted
        if lib.llama_decode(self.context, batch):
            sys.exit("llama_decode failed")
        lib.llama_synchronize(self.context)

    def clear(self) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)

    def close(self) -> None:
        lib.llama_free(self.context)
        lib.llama_model_free(self.model)


def prefill(session: Session, length: int) -> float:
    tokens: list[Token] = [(100 + i % 900, i, 0, i == length - 1) for i in range(length)]
    begin = time.perf_counter()
    for _ in range(PROMPTS[length]):
        session.clear()
        session.decode(tokens)
    return PROMPTS[length] * length / (time.perf_counter() - begin)


def decode(session: Session, sequences: int) -> float:
    steps = STEPS[sequences]
    session.decode([(100 + s * 7 + i, i, s, i == 15) for s in range(sequences) for i in range(16)])
    begin = time.perf_counter()
    for k in range(steps):
        session.decode([(200 + k, 16 + k, s, True) for s in range(sequences)])
    return sequences * steps / (time.perf_counter() - begin)


def turns(path: str) -> None:
    sessions: dict[tuple[str, int], Session] = {}

    def measure(kind: str, number: int) -> Measured:
        if (kind, number) not in sessions:
            sessions[kind, number] = Session(
                path, *((1, number + 64) if kind == "prefill" else (number, 256))
            )
        session = sessions[kind, number]
        session.clear()
        return {"rate": (prefill if kind == "prefill" else decode)(session, number)}

    answer(measure)


def bits(path: str, ids_file: str) -> float:
    """Bits of all tokens but the first of each window, in windows of token ids."""
    windows = json.loads(Path(ids_file).read_text())
    longest = max(map(len, windows))
    session, total = Session(path, 1, longest + 64), 0.0
    size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(session.model))
    for ids in windows:
        session.clear()
        session.decode([(token, i, 0, True) for i, token in enumerate(ids)])
        for i, token in enumerate(ids[1:]):
            row = np.ctypeslib.as_array(lib.llama_get_logits_ith(session.context, i), (size,)).astype(float)
            total += (np.logaddexp.reduce(row) - row[token]) / np.log(2)
    session.close()
    return total


def main(mode: str, path: str, *more: str) -> None:
    if mode == "quantize":
        params = lib.llama_model_quantize_default_params()
        params.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{TYPES[more[1]]}")
        params.allow_requantize, params.nthread = True, THREADS
        if lib.llama_model_quantize(path.encode(), more[0].encode(), params):
            sys.exit(f"llama.cpp could not write {more[0]}")
        print("done")
    elif mode == "bits":
        print(bits(path, more[0]))
    elif mode == "start":
        session: Any = Session(path, 1, 576)
        session.decode([(1, 0, 0, False), (504, 1, 0, True)])
        print("first token", flush=True)
    else:
        turns(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
