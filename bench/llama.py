"""llama.cpp as a contender: a GGUF file, decoded through llama-cpp-python.

The package is built from source by `pip install llama-cpp-python gguf` (a C++ compiler, some minutes), so it is not
among the packages of the group `bench`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.race import Lap

FORMATS = ("q8_0", "q4_0")
MISSING = "llama.cpp is left out: it needs `pip install llama-cpp-python gguf`, which compiles for some minutes"


def installed() -> bool:
    """Whether llama.cpp can take part."""
    try:
        import gguf  # noqa: F401
        import llama_cpp  # noqa: F401
    except (ImportError, OSError, RuntimeError):  # the library may be there and not load
        return False
    return True


class Llama:
    """A GGUF model in llama.cpp: texts of equal length, greedy, one sequence each."""

    def __init__(self, path: Path, threads: int, rows: int, tokens: int) -> None:
        import llama_cpp as c

        self.c, self.rows = c, rows
        with silenced():
            c.llama_backend_init()
            self.model = c.llama_model_load_from_file(str(path).encode(), c.llama_model_default_params())
            options = c.llama_context_default_params()
            options.n_ctx, options.n_batch, options.n_ubatch = rows * tokens, rows * tokens, rows * tokens
            options.n_seq_max, options.n_threads, options.n_threads_batch = rows, threads, threads
            self.context = c.llama_init_from_model(self.model, options)
        assert self.context, "llama.cpp did not take the model"
        self.batch = c.llama_batch_init(rows * tokens, 0, rows)
        self.vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))

    def prefill(self, prompts: list[list[int]]) -> list[int]:
        """Forget all; the likeliest tokens after the prompts."""
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)
        self.position = 0
        return self.step(prompts)

    def step(self, texts: list[list[int]]) -> list[int]:
        """Append tokens to each text, the same number to all; the likeliest tokens after them."""
        batch, n = self.batch, 0
        for row, text in enumerate(texts):
            for i, token in enumerate(text):
                batch.token[n], batch.pos[n], batch.n_seq_id[n], batch.seq_id[n][0] = token, self.position + i, 1, row
                batch.logits[n] = i == len(text) - 1
                n += 1
        batch.n_tokens = n
        assert self.c.llama_decode(self.context, batch) == 0
        self.position += len(texts[0])
        ends = [(row + 1) * len(texts[0]) - 1 for row in range(len(texts))]
        return [int(self.logits(end).argmax()) for end in ends]

    def logits(self, index: int) -> np.ndarray:
        address = self.c.llama_get_logits_ith(self.context, index)
        return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), (self.vocab,))


def decode_lap(llama: Llama, prompts: list[list[int]], new: int) -> Lap:
    """Steps of one token, after the prompts' pass."""

    def lap() -> float:
        tokens = llama.prefill(prompts)
        begun = time.perf_counter()
        for _ in range(new):
            tokens = llama.step([[token] for token in tokens])
        return time.perf_counter() - begun

    return lap


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """llama.cpp writes some thirty lines to stderr while it loads a model."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
