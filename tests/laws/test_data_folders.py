"""Folders of text: what links lead outside is left out, and an unchanged folder is recognised without reading it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from corpora import all_documents, prose, refused

from hectogpt.data import CorpusCache, SourceOptions, folders, open_corpus


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """120 files in two folders, which count as many."""
    folder = tmp_path / "texts"
    for i in range(120):
        (folder / f"d{i % 2}").mkdir(parents=True, exist_ok=True)
        (folder / f"d{i % 2}" / f"{i}.txt").write_text(prose(i, 30), encoding="utf-8")
    return folder


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files need not have been at rest for two seconds, and few are worth remembering."""
    monkeypatch.setattr(folders, "SETTLED_NS", -(10**12))
    monkeypatch.setattr(folders, "WORTH_FILES", 100)


# --- links ------------------------------------------------------------------------------------------------------------


def test_links_out_of_the_folder_are_left_out_and_listed(texts: Path, tmp_path: Path) -> None:
    """D13: who publishes a model trained on a folder from elsewhere must not publish a file of their own with it."""
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret of this machine " * 100, encoding="utf-8")
    (tmp_path / "texts-beside").mkdir()
    (tmp_path / "texts-beside" / "a.txt").write_text("beside " * 100, encoding="utf-8")
    (texts / "plain.txt").symlink_to(secret)
    (texts / "d0" / "relative.txt").symlink_to("../../secret.txt")
    (texts / "chain.txt").symlink_to(texts / "plain.txt")
    (texts / "beside.txt").symlink_to(tmp_path / "texts-beside" / "a.txt")
    (texts / "folder").symlink_to(tmp_path / "texts-beside")
    (texts / "inside.txt").symlink_to(texts / "d0" / "0.txt")
    corpus = open_corpus(str(texts))
    assert not any(b"secret" in text or b"beside" in text for text in all_documents(corpus))
    assert sum(corpus.n_documents.values()) == 121
    outside = ["beside.txt", "chain.txt", "d0/relative.txt", "plain.txt"]
    listed = [f"left out {name}: a link to a file outside the folder" for name in outside]
    assert sorted(corpus.problems) == sorted([*listed, "left out folder: a link to a folder"])


def test_a_folder_may_be_named_by_a_link(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(texts)
    assert open_corpus(str(tmp_path / "link")).sha256 == open_corpus(str(texts)).sha256


@pytest.mark.parametrize("name", ["hf:../../x", "hf:/etc", "hf:..", "hf:a/../b", "hf:texts", "hf:./texts", "hf:~"])
def test_a_data_set_s_name_is_no_path(name: str, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D13: `datasets` reads what is a path here, and takes it for the hub's."""
    monkeypatch.chdir(texts.parent)
    refused(name, "set corpus to hf:OWNER/NAME")


# --- unchanged folders (D21) ------------------------------------------------------------------------------------------

opened: list[str] = []
watching = False


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if watching and event == "open" and isinstance(arguments[0], (str, Path)):
        opened.append(str(arguments[0]))


sys.addaudithook(watch)


def files_read(texts: Path) -> list[str]:
    """The names of the files that looking at the corpus reads."""
    global watching
    opened.clear()
    watching = True
    try:
        CorpusCache(str(texts), SourceOptions())
    finally:
        watching = False
    return sorted({Path(name).name for name in opened if name.startswith(str(texts))})


def seen_file(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache").glob(".seen-*")
    return path


@pytest.mark.usefixtures("settled")
def test_an_unchanged_folder_is_not_read_again(texts: Path) -> None:
    """D21."""
    open_corpus(str(texts))
    assert files_read(texts) == []
    changed = texts / "d1" / "7.txt"
    status = changed.stat()
    changed.write_text(prose(7, 30).swapcase(), encoding="utf-8")
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))  # as old as before, and as long
    assert files_read(texts) == ["7.txt"]
    assert prose(7, 30).swapcase().encode() in all_documents(open_corpus(str(texts)))
    (texts / "d0" / "0.txt").rename(texts / "d0" / "other.txt")
    assert files_read(texts) == ["7.txt", "other.txt"]  # two are too few to write them down
    assert len(all_documents(open_corpus(str(texts)))) == 120


@pytest.mark.usefixtures("settled")
def test_an_unchanged_folder_is_recognised_as_a_whole(texts: Path, tmp_path: Path) -> None:
    """A walk and one hash give what looking at each file gave: for text, binary files, links and empty ones."""
    (texts / "binary").write_bytes(bytes(range(256)) * 9)
    (texts / "d0" / "empty.txt").touch()
    (texts / "link.txt").symlink_to(tmp_path / "nowhere")
    (texts / "\u00e9.txt").write_text("accent", encoding="utf-8")
    first, again, cold = (
        folders.open_folder("texts", texts, SourceOptions(), path) for path in (tmp_path / "m", tmp_path / "m", None)
    )
    walk = folders._walk(texts)
    assert folders.SeenFiles(tmp_path / "m", f"{texts.resolve()}\0utf-8").recall(walk.digest())
    assert first == again == cold
    assert [item.label for item in again.left_out] == ["binary", "d0/empty.txt", "link.txt"]
    for change in (lambda: (texts / "d0" / "empty.txt").unlink(), lambda: (texts / "new.txt").write_text("new")):
        change()
        found = [folders.open_folder("texts", texts, SourceOptions(), path) for path in (tmp_path / "m", None)]
        assert found[0] == found[1] != again


def test_files_that_have_just_changed_are_read_again(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D21: within two seconds of a change a file may change again and keep its times."""
    monkeypatch.setattr(folders, "WORTH_FILES", 1)
    assert len(files_read(texts)) == len(files_read(texts)) == 120
    assert not list((texts.parent / "cache").glob(".seen-*"))


@pytest.mark.usefixtures("settled")
def test_a_damaged_memory_counts_as_none(texts: Path, tmp_path: Path) -> None:
    """D21."""
    files_read(texts)
    path = seen_file(tmp_path)
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole.replace(b"txt", b"tyt", 1), b"\0" * len(whole), whole + b" "):
        path.write_bytes(content)
        assert len(files_read(texts)) == 120
    for damage in ({"labels": []}, {"sizes": None}, {"format": "other"}, {"whys": 5}):
        body = json.dumps(json.loads(whole.split(b"\n", 1)[1]) | damage).encode()
        path.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        assert len(files_read(texts)) == 120


@pytest.mark.usefixtures("settled")
def test_another_encoding_has_a_memory_of_its_own(texts: Path) -> None:
    """D21: whether a file is text depends on the encoding."""
    (texts / "latin.txt").write_bytes("é".encode("latin-1") * 300)
    refused(texts, "latin.txt", "set encoding to latin-1")
    assert sum(open_corpus(str(texts), encoding="latin-1").n_documents.values()) == 121
    refused(texts, "latin.txt", "set encoding to latin-1")


@pytest.mark.usefixtures("settled")
def test_a_cache_that_keeps_no_memory_stops_nothing(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D21. What cannot be written is the memory alone here: the tokens are elsewhere already."""
    open_corpus(str(texts))
    path = seen_file(texts.parent)
    path.unlink()
    path.mkdir()
    assert len(files_read(texts)) == 120
