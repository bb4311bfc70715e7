"""Large corpora: Parquet, several builders at once, bounded memory, batches of a mapped file that are read ahead."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from corpora import SPLITS, all_documents, prose, refused, write_jsonl
from helpers import ROOT
from test_data_cache import files_of

from hectogpt import errors
from hectogpt.data import open_corpus, token_files
from hectogpt.data.batches import Batches
from hectogpt.data.token_files import partial_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path / "cache"))


def test_an_error_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hectogpt.data.encode.TASK_CHARACTERS", 1 << 12)
    write_jsonl(tmp_path / "x.jsonl", 2000)
    with (tmp_path / "x.jsonl").open("a") as file:
        file.write("no record\n")
    refused(tmp_path / "x.jsonl", "line 2001")
    assert [path.name for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock")] == []


# --- several builders -------------------------------------------------------------------------------------------------


def test_a_builder_that_writes_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The patience is for one that does nothing: a large corpus takes longer."""
    monkeypatch.setattr(token_files, "LOCK_PATIENCE_S", 0.2)
    folder, held, ended = tmp_path / "corpus", threading.Event(), threading.Event()

    def build() -> None:
        with token_files.lock_folder(folder):
            partial_folder(folder).mkdir()
            held.set()
            for number in range(20):
                (partial_folder(folder) / "train.bin").write_bytes(b"ab" * (number + 1))
                if ended.wait(0.05):
                    return
            (partial_folder(folder) / "train.bin").unlink()

    builder = threading.Thread(target=build)
    builder.start()
    held.wait(10)
    with token_files.lock_folder(folder):
        builder.join(0.1)
        assert not builder.is_alive()


# --- Parquet ----------------------------------------------------------------------------------------------------------


def test_parquet_is_read_row_by_row(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = [f"{i} {prose(i, 12)}" for i in range(700)]
    texts[3] = " "
    columns = {"id": list(range(700)), "text": texts, "title": [f"title {i}" for i in range(700)]}
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "set" / "a.parquet", row_group_size=100)
    corpus = open_corpus(str(tmp_path / "set" / "a.parquet"))
    assert sorted(all_documents(corpus)) == sorted(text.encode() for text in texts if text.strip())
    assert corpus.problems == (f"left out {tmp_path}/set/a.parquet row 3: empty or whitespace only",)
    titles = open_corpus(f"{tmp_path}/set/a.parquet:title")
    assert len(all_documents(titles)) == 700
    write_jsonl(tmp_path / "set" / "b.jsonl", 50)
    assert len(all_documents(open_corpus(str(tmp_path / "set")))) == 749
    refused(f"{tmp_path}/set/a.parquet:none", "its text columns are text, title")
    pq.write_table(pa.table({"a": ["x"], "b": ["y"]}), tmp_path / "two.parquet")
    refused(tmp_path / "two.parquet", "its text columns are a, b", "two.parquet:a")
    pq.write_table(pa.table({"n": [1]}), tmp_path / "none.parquet")
    refused(tmp_path / "none.parquet", "its text columns are none")
    whole = (tmp_path / "set" / "a.parquet").read_bytes()
    for broken in (b"", b"PAR1", whole[:-9], b"PAR1" + bytes(500) + b"PAR1"):
        (tmp_path / "broken.parquet").write_bytes(broken)
        refused(tmp_path / "broken.parquet", "Parquet", code=errors.DATA)


def test_parquet_files_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    """Equal cells are stored once: 5 KB of file can stand for gigabytes of text. Categories of pandas are text."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"text": ["x" * (2 << 20)] * 60}), tmp_path / "cells.parquet", compression="zstd")
    refused(tmp_path / "cells.parquet", "would unpack to more than")
    pq.write_table(pa.table({"text": ["x" * (80 << 20)]}), tmp_path / "declared.parquet", compression="zstd")
    refused(tmp_path / "declared.parquet", "would unpack to more than")
    words = pa.array([prose(i, 50) for i in range(200)]).dictionary_encode()
    pq.write_table(pa.table({"text": words}), tmp_path / "words.parquet")
    assert len(all_documents(open_corpus(str(tmp_path / "words.parquet")))) == 200


# --- memory -----------------------------------------------------------------------------------------------------------

PEAK = """
import sys
from hectogpt import hardware
from hectogpt.data import CorpusCache, SourceOptions
CorpusCache(sys.argv[1], SourceOptions()).build(progress=False, workers=2)
print(hardware.peak_memory_mb())
"""


@pytest.mark.thorough
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    peaks = []
    line = json.dumps({"text": prose(1, 900)}) + "\n"
    for megabytes in (8, 64):
        path = tmp_path / f"{megabytes}.jsonl"
        with path.open("w") as file:
            for number in range((megabytes << 20) // len(line)):
                file.write(line.replace('"text": "', f'"text": "{number} ', 1))
        done = subprocess.run([sys.executable, "-c", PEAK, str(path)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(float(done.stdout))
    assert peaks[1] < peaks[0] + 30


@pytest.mark.parametrize("n", [300, 999, 1000, 1001, 1500])
def test_large_documents_are_not_held(n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the first documents are kept or read twice, the files are the same, and what is left out is told once."""
    path = tmp_path / "x.jsonl"
    write_jsonl(path, n - 1, n_words=5)
    with path.open("a") as file:
        file.write(json.dumps({"text": " "}) + "\n" + json.dumps({"text": "last"}) + "\n")
    kept = open_corpus(str(path), cache=tmp_path / "kept")
    monkeypatch.setattr("hectogpt.data.corpus.HELD_CHARACTERS", 500)
    again = open_corpus(str(path), cache=tmp_path / "again")
    assert files_of(again.folder) == files_of(kept.folder)
    assert again.problems == (f"left out {path} line {n}: empty or whitespace only",)


# --- batches ----------------------------------------------------------------------------------------------------------


def test_mapped_batches_are_read_ahead(tmp_path: Path) -> None:
    """The same rows as without, in any order of asking, one batch ahead and no more."""
    ids = np.random.default_rng(0).integers(0, 50_000, 5000).astype(np.uint16)
    ids.tofile(tmp_path / "x.bin")
    mapped = Batches(np.memmap(tmp_path / "x.bin", dtype=np.uint16, mode="r"), 16, 8, seed=3)
    plain = Batches(ids, 16, 8, seed=3)
    assert (mapped.reads_ahead, plain.reads_ahead) == (True, False)
    for step in [0, 1, 2, 3, 7, 8, 2, 60, 61, 0]:
        for lo, hi in ((0, 8), (4, 8)) if step % 3 else ((0, 8),):
            assert np.array_equal(mapped.rows(step, lo, hi), plain.rows(step, lo, hi))
    assert all(np.array_equal(mapped.at(step), plain.at(step)) for step in range(100))
    assert SPLITS == token_files.SPLITS
