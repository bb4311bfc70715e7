"""From text to token files: ours against tiktoken alone and Hugging Face's tokenizers, CPU seconds on one core.

Ours reads the corpus's files, hashes, tokenises, splits, writes, syncs and checks; the others only tokenise strings
that are already in memory.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.race import Lap, Race, Row, Work, timed
from bench.record import ROOT
from hectogpt import data
from hectogpt.data.sources import find_source
from hectogpt.data.tokenizer import PATTERN

PACKAGES = ("tiktoken", "tokenizers", "transformers")
SETTINGS = {"sotu": "sotu", "tiny": str(ROOT / "answers" / "attention.md")}  # name: corpus
CONTENDERS = ("ours, files to shards", "tiktoken alone", "tokenizers alone")


def ours_to_shards(corpus: str, folder: str) -> Work:
    """Into a new cache each time."""
    return lambda: data.open_corpus(corpus, cache=tempfile.mkdtemp(dir=folder), progress=False)


def tiktoken_alone(texts: list[str]) -> Work:
    """tiktoken's own GPT-2, without its download."""
    import tiktoken

    tokenizer = data.load_tokenizer()
    ranks = {tokenizer.decode_bytes([i]): i for i in range(tokenizer.n_vocab - 1)}
    plain = tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    return lambda: [plain.encode_ordinary(text) for text in texts]


def tokenizers_alone(texts: list[str], folder: Path) -> Work:
    """transformers' tokenizer, which is that of tokenizers, from files of the same vocabulary."""
    from transformers import GPT2Tokenizer

    tokenizer = data.load_tokenizer()
    (folder / "vocab.json").write_text(json.dumps(tokenizer.vocabulary()), encoding="utf-8")
    (folder / "merges.txt").write_bytes(tokenizer.merges)
    theirs = GPT2Tokenizer.from_pretrained(folder)
    return lambda: theirs(texts)


def prepare(setting: str, contender: str, folder: str) -> dict[str, Lap]:
    """All of the corpus."""
    corpus = SETTINGS[setting]
    texts = [document.text for document in find_source(corpus).documents()]
    ours, tiktoken, _ = CONTENDERS
    if contender == ours:
        work = ours_to_shards(corpus, folder)
    else:
        work = tiktoken_alone(texts) if contender == tiktoken else tokenizers_alone(texts, Path(folder))
    return {"step": timed(work, clock=time.process_time)}


def measure(setting: str, race: Race) -> Iterator[tuple[str, list[Row]]]:
    """Median CPU seconds."""
    (laps,) = race.run(__name__, setting, CONTENDERS)

    def figures(name: str) -> dict[str, Any]:
        return {
            "cpu_seconds": round(laps.median(name), 3),
            "speed_over_tiktoken": laps.ratio("tiktoken alone", name),
        }

    yield "tokenising and sharding", laps.rows(figures)
