"""llama.cpp as a contender: a GGUF file, decoded through llama-cpp-python, which `pip install` builds from source."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bench.race import Lap, Row
from hectogpt.interop import gguf_file, open_model


class Llama:
    """A context of a model in llama.cpp: texts of equal length, greedy, one sequence each."""

    def __init__(self, model: object, rows: int, tokens: int) -> None:
        import llama_cpp as c

        self.c, threads = c, torch.get_num_threads()
        options = c.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = rows * tokens, rows * tokens, rows * tokens
        options.n_seq_max, options.n_threads, options.n_threads_batch = rows, threads, threads
        self.context = c.llama_init_from_model(model, options)
        assert self.context, "llama.cpp did not take the model"
        self.batch = c.llama_batch_init(rows * tokens, 0, rows)
        self.vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))

    def prefill(self, prompts: list[list[int]]) -> list[int]:
        """Start again with these prompts, and return the most likely token after each."""
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)
        self.position = 0
        return self.step(prompts)

    def step(self, texts: list[list[int]]) -> list[int]:
        """Append tokens to each text, equally many to all, and return the most likely token after each."""
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


def prepare(saved: Path, path: Path, form: str) -> Callable[[list[list[int]], int], Lap]:
    """Write the saved model as GGUF and load it. Returns a function of prompts and a number of new tokens, which makes
    a lap of the steps of one token after the prompts' pass, or of that pass if the number is 0."""
    import llama_cpp as c

    gguf_file.write(*open_model(saved), path, form, form)
    c.llama_backend_init()
    model = c.llama_model_load_from_file(str(path).encode(), c.llama_model_default_params())

    def make_lap(prompts: list[list[int]], new: int) -> Lap:
        llama = Llama(model, len(prompts), len(prompts[0]) + new)

        def lap() -> Row:
            begun = time.perf_counter()
            tokens = llama.prefill(prompts)
            if new:
                begun = time.perf_counter()
            for _ in range(new):
                tokens = llama.step([[token] for token in tokens])
            return {"seconds": time.perf_counter() - begun}

        return lap

    return make_lap
