"""The cache of token files: the same bytes every time, whole or absent, no damage unnoticed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from corpora import SPLITS, refused, write_bin, write_jsonl

from hectogpt import errors
from hectogpt.data import Batches, CorpusCache, open_corpus, token_files
from hectogpt.errors import UserError
from hectogpt.files import cache_dir

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
    monkeypatch.setattr(token_files, "BLOCK_TOKENS", 1000)
    monkeypatch.setattr("hectogpt.data.encode.TASK_CHARACTERS", 5000)
    write_jsonl(tmp_path / "x.jsonl", 2000)
    builds = []
    for workers in (1, 2, 1, 5):
        folder = CorpusCache(str(tmp_path / "x.jsonl")).build(workers=workers)
        builds.append(files_of(folder))
    assert builds[0] == builds[1] == builds[2] == builds[3]
    assert set(builds[0]) == {"train.bin", "dev.bin", "test.bin", "index.json"}
    index = json.loads(builds[0]["index.json"])
    assert len(index["splits"]["train"]["shards"]) > 10
    assert sum(s["tokens"] for s in index["splits"]["train"]["shards"]) == len(builds[0]["train.bin"]) // 2


def test_mapped_equals_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "x.jsonl", 300)
    read = open_corpus(str(tmp_path / "x.jsonl"))
    monkeypatch.setattr(token_files, "MEMORY_LIMIT", 1000)
    mapped = open_corpus(str(tmp_path / "x.jsonl"))
    assert isinstance(mapped.train, np.memmap)
    assert all(np.array_equal(read.tokens[split], mapped.tokens[split]) for split in SPLITS)
    assert np.array_equal(Batches(read.train, 64).at(3), Batches(mapped.train, 64).at(3))


def test_damaged_blocks_are_named_and_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_files, "BLOCK_TOKENS", 4096)
    source = str(tmp_path / "x.jsonl")
    write_jsonl(tmp_path / "x.jsonl", 2000)
    folder = open_corpus(source).folder
    good = files_of(folder)
    (folder / "dev.bin").write_bytes(bytes(len(good["dev.bin"])))
    assert not open_corpus(source, check=False).dev.any(), "another process of this machine compares the hashes"
    (folder / "dev.bin").write_bytes(good["dev.bin"])
    rng = random.Random(0)
    for trial in range(40):
        path = folder / f"{rng.choice(SPLITS)}.bin"
        raw = bytearray(good[path.name])
        at = rng.randrange(len(raw))
        if trial % 4 == 0:
            raw[at] ^= 1 << rng.randrange(8)
            number = at // 2 // 4096
            fragments: tuple[str, ...] = (f"block {number} (tokens {number * 4096:,} to ",)
        elif trial % 4 == 1:
            raw[at // 2 * 2 : at // 2 * 2 + 512] = b"\xff" * 512
            fragments = ("bytes" if len(raw) != len(good[path.name]) else "SHA-256 of block",)
        elif trial % 4 == 2:
            del raw[at:]
            fragments = (f"{at:,} bytes",)
        else:
            raw += bytes(1 + at % 3)
            fragments = ("bytes, the index says",)
        path.write_bytes(raw)
        error = refused(source, "damaged", path.name, *fragments)
        assert error.fix == f"hectogpt data repair {source}"
        path.write_bytes(good[path.name])
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
    for at in range(0, len(good), 5):
        (folder / "index.json").write_bytes(good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])
        with pytest.raises(UserError, match=r"index\.json"):
            token_files.read_index(folder, "repair")
    for bad in (b"", b"[]", b"{}", b"null", good[:-1], good + b"\n", b"[" * 100_000):
        (folder / "index.json").write_bytes(bad)
        refused(tmp_path / "x.jsonl", "index.json", "hectogpt data repair")
    assert CorpusCache(str(tmp_path / "x.jsonl")).repair()
    assert (folder / "index.json").read_bytes() == good


OPEN = "import sys; from hectogpt.data import open_corpus; print(open_corpus(sys.argv[1]).sha256['train'])"


def test_killed_while_building_leaves_nothing_half(tmp_path: Path) -> None:
    source = tmp_path / "big.jsonl"
    write_jsonl(source, 3000, n_words=300)
    cache = tmp_path / "cache"
    killed = 0
    for delay in (0.0, 0.03, 0.1):
        child = subprocess.Popen([sys.executable, "-c", OPEN, str(source)], cwd=CHECKOUT, stdout=subprocess.DEVNULL)
        while child.poll() is None and not list(cache.glob(".*.new-*")):
            time.sleep(0.002)
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
        assert all(
            sorted(files_of(done)) == sorted(["index.json", *(f"{s}.bin" for s in SPLITS)])
            for done in cache.glob("big*")
        )
        if list(cache.glob("[!.]*")):
            break  # it was quicker than us
    assert killed > 0
    corpus = open_corpus(str(source))
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == [corpus.folder.name]
    undisturbed = open_corpus(str(source), cache=tmp_path / "other")
    assert files_of(corpus.folder) == files_of(undisturbed.folder)


def test_two_processes_at_once(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.jsonl", 2000)
    command = [sys.executable, "-c", OPEN, str(tmp_path / "x.jsonl")]
    children = [subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert outputs[0] == outputs[1] == open_corpus(str(tmp_path / "x.jsonl")).sha256["train"] + "\n"


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


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir("x") == Path("x")
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("HECTOGPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/xdg/hectogpt")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert cache_dir() == Path.home() / ".cache" / "hectogpt"


def test_a_cache_folder_that_may_not_be_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D6. A name that is too long stands for a folder that one may not enter: root may enter all."""
    write_jsonl(tmp_path / "x.jsonl", 200)
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path / ("c" * 300)))
    refused(tmp_path / "x.jsonl", "cannot look into the cache folder", "HECTOGPT_CACHE", code=errors.STORAGE)


def test_a_user_without_a_home_is_told_to_name_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D6: HOME is unset and the user's number is unknown, as in some containers."""
    write_jsonl(tmp_path / "x.jsonl", 200)
    for name in ("HECTOGPT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(_: int) -> object:
        raise KeyError("no such user")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    refused(tmp_path / "x.jsonl", "no folder for the cache", "HECTOGPT_CACHE=FOLDER", code=errors.STORAGE)
    monkeypatch.setenv("HECTOGPT_CACHE", "~nosuchuser/x")
    refused(tmp_path / "x.jsonl", "no folder for the cache", code=errors.STORAGE)


def test_progress_shows_names_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """D6: what looks like rich's markup in a corpus's name is part of the name."""
    monkeypatch.chdir(tmp_path)
    Path("[b]x[").mkdir()
    write_jsonl(Path("[b]x[/no]\x1b[1m.jsonl"), 200)
    CorpusCache("[b]x[/no]\x1b[1m.jsonl").build(progress=True)
    err = capfd.readouterr().err
    assert r"[b]x[/no]\x1b[1m.jsonl" in err
    assert "\x1b[1m" not in err
