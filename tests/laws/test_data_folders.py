"""Folders of text: what links lead outside is left out, and a change of any file is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpora import all_documents, prose, refused

from hectogpt.data import folders, open_corpus


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


def test_a_large_folder_is_recognised_without_reading_it(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above HASHED_BYTES sizes and times stand for the contents."""
    monkeypatch.setattr(folders, "HASHED_BYTES", 0)
    first = open_corpus(str(texts))
    built = (first.folder / "index.json").stat().st_mtime_ns
    assert open_corpus(str(texts)).sha256 == first.sha256
    assert (first.folder / "index.json").stat().st_mtime_ns == built
    (texts / "d1" / "7.txt").write_text(prose(7, 30).swapcase(), encoding="utf-8")
    assert prose(7, 30).swapcase().encode() in all_documents(open_corpus(str(texts)))


def test_whether_a_file_is_text_depends_on_the_encoding(texts: Path) -> None:
    (texts / "latin.txt").write_bytes("é".encode("latin-1") * 300)
    refused(texts, "latin.txt", "set encoding to latin-1")
    assert sum(open_corpus(str(texts), encoding="latin-1").n_documents.values()) == 121
