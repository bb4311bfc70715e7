"""get_chunked_tinystories: a stream of tokens cut into chunks."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from checking import check, check_error, check_tokens
from train import get_chunked_tinystories

TOKENS = (np.arange(29) * 1733 + 40000) % 50257  # above 32,767 too: they fit uint16, not int16


def chunked(chunk_size, tokens=TOKENS):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokens.bin"
        file.write_bytes(tokens.astype("<u2").tobytes())
        return get_chunked_tinystories(chunk_size, data=str(file))


def test_values():
    for size, count in ((8, 3), (29, 1), (1, 29), (10, 2)):
        expected = torch.from_numpy(TOKENS[: size * count].reshape(count, size))
        check_tokens(chunked(size), expected, f"29 tokens in chunks of {size}")


def test_can_index_an_embedding():
    chunks = chunked(8)
    check(chunks.dtype == torch.int64, f"the chunks are {chunks.dtype}, which cannot index an embedding; int64 can")


def test_too_short():
    check_error(ValueError, lambda: chunked(30), "29 tokens in chunks of 30")
    check_error(ValueError, lambda: chunked(4, TOKENS[:0]), "no tokens at all")
