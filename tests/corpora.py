"""Small corpora for tests of the data layer, and what their token streams must look like."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from hectogpt.data import Corpus, load_tokenizer, open_corpus
from hectogpt.errors import UserError

TOK = load_tokenizer()
SPLITS = ("train", "dev", "test")
WORDS = ["the", "union", "of", "states", "has", "met", "debated", "peace,", "war", "&", "1790", "liberty;", "é", "😀"]


def prose(seed: int, n_words: int) -> str:
    rng = random.Random(seed)
    return "".join(rng.choice(WORDS) + rng.choice([" ", " ", " ", " ", "\n", "\n\n"]) for _ in range(n_words))


def write_jsonl(path: Path, n: int, n_words: int = 12) -> list[str]:
    texts = [f"{i} {prose(i, n_words)}" for i in range(n)]
    path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts)), encoding="utf-8")
    return texts


def write_bin(path: Path, docs: list[list[int]], last: bool = True) -> None:
    ids = [i for doc in docs for i in [*doc, 50_256]]
    np.array(ids if last else ids[:-1], dtype="<u2").tofile(path)


def documents(tokens: np.ndarray) -> list[bytes]:
    """The documents of a token stream, which must end with a separator."""
    assert tokens.dtype == np.uint16
    assert not tokens.flags.writeable
    ends = np.flatnonzero(tokens == 50_256)
    assert ends[-1] == len(tokens) - 1
    return [TOK.decode_bytes(part[part != 50_256]) for part in np.split(tokens, ends[:-1] + 1)]


def all_documents(corpus: Corpus) -> list[bytes]:
    return [d for name in SPLITS for d in documents(corpus.tokens[name])]


def refused(source: str | Path, *fragments: str, **options: object) -> UserError:
    with pytest.raises(UserError) as caught:
        open_corpus(str(source), **options)  # type: ignore[arg-type]
    for fragment in fragments:
        assert fragment in str(caught.value), str(caught.value)
    assert caught.value.fix
    return caught.value
