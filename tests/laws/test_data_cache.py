"""The cache of token files: the same bytes every time, whole or absent, no damage unnoticed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from corpora import SPLITS, refused, write_bin, write_jsonl

from hectogpt import errors
from hectogpt.data import Batches, CorpusCache, open_corpus, token_files
from hectogpt.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path / "cache"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_given_splits_are_used_as_they_are(tmp_path: Path) -> None:
    for n, name in enumerate(SPLITS, start=1):
        write_bin(tmp_path / f"{name}.bin", [[n, n]] * n)
    for source in (tmp_path, tmp_path / "train.bin"):
        corpus = open_corpus(str(source))
        assert corpus.dev.tolist() == [2, 2, 50_256] * 2
        assert corpus.n_documents == {"train": 1, "dev": 2, "test": 3}
        assert corpus.sha256["test"] == hashlib.sha256((tmp_path / "test.bin").read_bytes()).hexdigest()
        assert CorpusCache(str(source)).verify() == []
    assert not (tmp_path / "cache").exists()
    (tmp_path / "dev.bin").write_bytes(b"\x01")
    refused(tmp_path, "dev.bin", "1 bytes are no uint16 tokens")
    assert "dev.bin" in CorpusCache(str(tmp_path)).verify()[0]
    with pytest.raises(UserError, match="cannot repair"):
        CorpusCache(str(tmp_path)).repair()


def test_a_cache_folder_is_a_source_and_checked(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.jsonl", 200)
    corpus = open_corpus(str(tmp_path / "x.jsonl"))
    copy = tmp_path / "copy"
    shutil.copytree(corpus.folder, copy)
    assert open_corpus(str(copy)).sha256 == corpus.sha256
    index = json.loads((copy / "index.json").read_bytes())
    index["tokenizer"]["sha256"] = "0" * 64
    del index["sha256"]
    (copy / "index.json").write_bytes(token_files.render_index(index))
    refused(copy, "made with another vocabulary")


def test_rebuilt_byte_for_byte_with_any_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hectogpt.data.corpus.TASK_CHARACTERS", 5000)
    write_jsonl(tmp_path / "x.jsonl", 2000)
    builds = []
    for workers in (1, 2, 5):
        folder = CorpusCache(str(tmp_path / "x.jsonl")).build(workers=workers)
        builds.append(files_of(folder))
    assert builds[0] == builds[1] == builds[2]
    assert set(builds[0]) == {"train.bin", "dev.bin", "test.bin", "index.json"}


def test_mapped_equals_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "x.jsonl", 300)
    read = open_corpus(str(tmp_path / "x.jsonl"))
    monkeypatch.setattr(token_files, "MEMORY_LIMIT", 1000)
    mapped = open_corpus(str(tmp_path / "x.jsonl"))
    assert isinstance(mapped.train, np.memmap)
    assert all(np.array_equal(read.tokens[split], mapped.tokens[split]) for split in SPLITS)
    assert np.array_equal(Batches(read.train, 64).at(3), Batches(mapped.train, 64).at(3))


def test_damaged_files_are_named_and_repaired(tmp_path: Path) -> None:
    source = str(tmp_path / "x.jsonl")
    write_jsonl(tmp_path / "x.jsonl", 2000)
    folder = open_corpus(source).folder
    good = files_of(folder)
    raw = good["dev.bin"]
    (folder / "dev.bin").write_bytes(bytes(len(raw)))
    assert not open_corpus(source, check=False).dev.any(), "another process of this machine compares the hashes"
    damages = {
        "its SHA-256 differs": raw[:7] + bytes([raw[7] ^ 4]) + raw[8:],
        f"{len(raw) - 3:,} bytes, the index says": raw[:-3],
        f"{len(raw) + 1:,} bytes, the index says": raw + b"\0",
    }
    for words, damaged in damages.items():
        (folder / "dev.bin").write_bytes(damaged)
        assert refused(source, "damaged", "dev.bin", words).fix == f"hectogpt data repair {source}"
    (folder / "dev.bin").unlink()
    refused(source, "dev.bin", "cannot be read")
    assert "dev.bin" in CorpusCache(source).verify()[0]
    assert len(CorpusCache(source).repair()) == 1
    assert files_of(folder) == good
    assert CorpusCache(source).verify() == CorpusCache(source).repair() == []


def test_every_change_of_the_index_is_noticed(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.jsonl", 200)
    folder = open_corpus(str(tmp_path / "x.jsonl")).folder
    good = (folder / "index.json").read_bytes()
    for at in range(0, len(good), 13):
        (folder / "index.json").write_bytes(good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])
        with pytest.raises(UserError, match=r"index\.json"):
            token_files.read_index(folder, "repair")
    for bad in (b"", b"[]", b"{}", b"null", good[:-1], good + b"\n", b"[" * 100_000):
        (folder / "index.json").write_bytes(bad)
        refused(tmp_path / "x.jsonl", "index.json", "hectogpt data repair")
    assert CorpusCache(str(tmp_path / "x.jsonl")).repair()
    assert (folder / "index.json").read_bytes() == good


OPEN = "import sys; from hectogpt.data import open_corpus; print(open_corpus(sys.argv[1]).sha256['train'])"


def test_waits_for_another_builder_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(tmp_path / "x.jsonl")
    write_jsonl(tmp_path / "x.jsonl", 200)
    folder = open_corpus(source).folder
    shutil.rmtree(folder)
    with (folder.parent / f".{folder.name}.lock").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        monkeypatch.setattr(token_files, "LOCK_PATIENCE_S", 0.1)
        refused(source, "is locked", code=errors.LOCKED)
        monkeypatch.setattr(token_files, "LOCK_PATIENCE_S", 30.0)
        threading.Timer(0.2, fcntl.flock, (other, fcntl.LOCK_UN)).start()
        assert open_corpus(source).folder == folder


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "x.jsonl", 200)
    (tmp_path / "file").touch()
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path / "file" / "cache"))
    refused(tmp_path / "x.jsonl", "cannot write token files", "HECTOGPT_CACHE", code=errors.STORAGE)


def test_a_disk_that_refuses_keeps_the_older_files(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk."""
    source = tmp_path / "x.jsonl"
    write_jsonl(source, 200)
    folder = open_corpus(str(source)).folder
    before = files_of(folder)
    write_jsonl(source, 300)
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); " + OPEN
    child = subprocess.run([sys.executable, "-c", limited, str(source)], cwd=CHECKOUT, capture_output=True, text=True)
    assert "cannot write token files" in child.stderr
    assert "why: File too large" in child.stderr
    assert files_of(folder) == before
    assert [path.name for path in folder.parent.iterdir() if not path.name.endswith(".lock")] == [folder.name]


def test_an_error_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hectogpt.data.corpus.TASK_CHARACTERS", 1 << 12)
    write_jsonl(tmp_path / "x.jsonl", 2000)
    with (tmp_path / "x.jsonl").open("a") as file:
        file.write("no record\n")
    refused(tmp_path / "x.jsonl", "line 2001")
    assert [path.name for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock")] == []
