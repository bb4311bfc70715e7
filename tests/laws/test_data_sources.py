"""Sources: documents in a fixed order, their bytes kept; what cannot be read without loss is refused or reported."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from corpora import SPLITS, all_documents, documents, prose, refused, write_jsonl

from hectogpt import errors
from hectogpt.data import open_corpus, sources
from hectogpt.data.documents import decode


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path / "cache"))


SOTU_SHA256 = {  # as they have been since the first version: records of old runs stay comparable
    "train": "193c3ce78199d7fed741cd89d49a2338c8d52d8e0c34cef8439a9773a32713f7",
    "dev": "401228a158cdb8dad1ade6a323464ab6b34c6030951c767f3ba27e2a176f98ba",
    "test": "04389ad03b02266634c6a4f361e916e6dc8fa223181c9144c5afeb1655f64d7d",
}


def test_the_embedded_corpus_never_changes() -> None:
    sotu = open_corpus("sotu")
    assert sotu.sha256 == SOTU_SHA256
    assert sotu.folder.name == "sotu-bb643094395d"  # so that existing caches stay valid
    assert sum(sotu.n_documents.values()) == 249
    assert sum(len(d) for d in all_documents(sotu)) == 12_185_751
    assert sum(len(sotu.tokens[name]) for name in SPLITS) == 2_388_908 + 249
    assert len(sotu.dev) > 100_000
    assert len(sotu.test) > 100_000
    assert sotu.n_vocab == 50_257
    assert sotu.tokens == {"train": sotu.train, "dev": sotu.dev, "test": sotu.test}


def test_folder_is_read_by_the_bytes_of_its_paths(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    names = ["b.txt", "a/z.txt", "a.txt", "B.md", "ä.txt", "a-b.txt", "sub/noending"]
    names += [f"n{i}.txt" for i in range(120)]
    shuffled = random.Random(1).sample(names, len(names))
    for name in shuffled:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name}: {prose(len(name), 30)}", encoding="utf-8")
    (folder / ".hidden").write_bytes(b"\xff")
    (folder / "empty.txt").touch()
    (folder / "blank.txt").write_text(" \n")
    (folder / "image").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (folder / "loop").symlink_to(folder)
    (folder / "broken").symlink_to(folder / "nowhere")
    corpus = open_corpus(str(folder))
    for name in SPLITS:
        order = [d.split(b":")[0] for d in documents(corpus.tokens[name])]
        assert order == sorted(order)
    assert {d.split(b":")[0].decode() for d in all_documents(corpus)} == set(names)
    listed = " ".join(corpus.problems)
    assert all(f"left out {word}: " in listed for word in ("empty.txt", "blank.txt", "image", "broken"))
    assert ".hidden" not in listed
    (folder / "latin.txt").write_bytes("é".encode("latin-1") * 3)
    (folder / "utf16.txt").write_bytes("words".encode("utf-16"))
    refused(folder, "2 of", "latin.txt", "offset 0", "utf16.txt", "set force to True")
    assert len(all_documents(open_corpus(str(folder), force=True))) == len(names)
    (folder / "utf16.txt").unlink()
    assert len(all_documents(open_corpus(str(folder), encoding="latin-1"))) == len(names) + 1


@pytest.mark.parametrize("record", ['{"text": "%s", "title": "t"}', '{"story": "%s", "n": 1}'])
def test_jsonl_finds_its_text(tmp_path: Path, record: str) -> None:
    lines = [record % f"words number {i}" for i in range(200)]
    (tmp_path / "x.jsonl").write_text("\n".join([*lines, "", record % "  "]), encoding="utf-8")
    corpus = open_corpus(str(tmp_path / "x.jsonl"))
    assert sum(corpus.n_documents.values()) == 200
    assert "line 202: empty" in corpus.problems[0]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1252", "utf-32"])
def test_other_encodings_are_named_and_read_exactly(tmp_path: Path, encoding: str) -> None:
    text = "caf\xe9 \xfc\n" * 3000
    raw = text.encode(encoding)
    path = tmp_path / "text.txt"
    path.write_bytes(raw)
    named = "latin-1" if encoding == "cp1252" else encoding
    refused(path, "is not utf-8 text", "offset", "line 1", f"set encoding to {named}")
    assert decode(raw, "text", encoding, False).encode(encoding) == raw
    corpus = open_corpus(str(path), encoding=encoding)
    assert sum(len(d) for d in all_documents(corpus)) == len(text.encode())


BAD_FILES = {
    "empty": (b"", ("empty (0 bytes)",)),
    "blank": (b" \n\t\n", ("whitespace only (4 bytes)",)),
    "png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ("is binary", "NUL byte at offset 8", "set force to True")),
    "latin": (b"fine\nline \xe9t\xe9", ("0xe9 at offset 10 (line 2)", "set encoding to latin-1")),
    "short": (b"a few words only", ("too short to be split", "at least 8,192 characters")),
    "t.csv": (b"id,story\n1,x\n", ("a .csv file holds records", "t.jsonl with one JSON object a line")),
    "a.jsonl": (b'{"text": "x"}\n{"text": \n', ("line 2", "not a JSON record")),
    "b.jsonl": (b'{"a": "x", "b": "y"}\n', ("line 1", 'no field "text"', "b.jsonl:a")),
    "c.jsonl": (b'{"text": "ab\\ud800"}\n', ("line 1", "lone surrogate U+D800 at character 2")),
    "e.jsonl": (b"[" * 100_000, ("line 1",)),
    "g.jsonl": (b"\n\n", ("holds no text",)),
    "odd.bin": (b"\x01\x00\x02", ("3 bytes are no uint16 tokens",)),
    "range.bin": (np.array([5, 50_256, 60_000], "<u2").tobytes(), ("id 60000 at position 2", "50,257 ids")),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path: Path, name: str) -> None:
    content, fragments = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, name, *fragments)
    assert not list((tmp_path / "cache").glob("*/"))


def test_bad_names_and_encodings(tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    refused("sutu", "no such file or folder", "did you mean sotu?")
    refused(tmp_path / "stroy.txt", "did you mean", "story.txt")
    refused(tmp_path / "folder", "the folder is empty")
    refused("/dev/null", "neither a file nor a folder")
    refused("sotu", "unknown text encoding 'latin-one'", code=errors.USAGE, encoding="latin-one")
    refused("sotu", "unknown text encoding 'hex'", code=errors.USAGE, encoding="hex")


@pytest.mark.parametrize("name", ["  ", "hf::text"])
def test_an_empty_name_is_not_the_current_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "story.txt").write_text(prose(0, 5000), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert "set corpus to" in refused(name, "name").fix
    assert open_corpus(".").n_documents["train"] > 0


def test_a_column_of_a_jsonl_is_chosen_by_name(tmp_path: Path) -> None:
    path = tmp_path / "two.jsonl"
    records = [{"question": f"{i} why", "answer": f"{i} because", "n": i} for i in range(300)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    refused(path, 'no field "text"', "question, answer", f"set corpus to {path}:question")
    refused(f"{path}:n", 'no field "n" with a string', "question, answer")
    answers, questions = open_corpus(f"{path}:answer"), open_corpus(f"{path}:question")
    assert sorted(all_documents(answers)) == sorted(record["answer"].encode() for record in records)
    assert answers.folder != questions.folder
    assert answers.sha256 != questions.sha256
    refused(f"{tmp_path}/tow.jsonl:answer", "no such file", f"did you mean {path}")


def test_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder stands for the hub: `datasets` loads both by name. Offline, the cache is enough afterwards."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "set"
    folder.mkdir()
    texts = write_jsonl(folder / "train.jsonl", 200)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the hub is not asked
    load_dataset = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **how: load_dataset(f"{tmp_path}/{name}", **how))
    refused("hf:set:story", "its text columns are text", "hf:set:COLUMN")
    corpus = open_corpus("hf:set")
    assert sorted(all_documents(corpus)) == sorted(text.encode() for text in texts)
    shutil.rmtree(folder)
    assert open_corpus("hf:set").sha256 == corpus.sha256
    error = refused("hf:set:text", "did not give", "to_json('corpus.jsonl')")
    assert "set corpus to corpus.jsonl" in error.fix


@pytest.mark.network
def test_tinystories() -> None:
    corpus = open_corpus("tinystories")
    assert sum(corpus.n_documents.values()) == 21_197


@pytest.mark.shared
def test_developers_tinystories(shared_data: Path) -> None:
    corpus = open_corpus(str(shared_data / "tinystories" / "train.bin"))
    assert corpus.sha256["train"] == "8150053636d3565b163db2c573ea015625ee722e2ee5a2e60450e349d7801b81"
    assert corpus.n_documents == {"train": 5059, "dev": 589, "test": 587}


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """120 files in two folders, which count as many."""
    folder = tmp_path / "texts"
    for i in range(120):
        (folder / f"d{i % 2}").mkdir(parents=True, exist_ok=True)
        (folder / f"d{i % 2}" / f"{i}.txt").write_text(prose(i, 30), encoding="utf-8")
    return folder


def test_links_out_of_the_folder_are_left_out_and_listed(texts: Path, tmp_path: Path) -> None:
    """who publishes a model trained on a folder from elsewhere must not publish a file of their own with it."""
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


@pytest.mark.parametrize("name", ["hf:../../x", "hf:/etc", "hf:texts"])
def test_a_data_set_s_name_is_no_path(name: str, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` reads what is a path here, and takes it for the hub's."""
    monkeypatch.chdir(texts.parent)
    refused(name, "set corpus to hf:OWNER/NAME")


def test_a_large_folder_is_recognised_without_reading_it(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above HASHED_BYTES sizes and times stand for the contents."""
    monkeypatch.setattr(sources, "HASHED_BYTES", 0)
    first = open_corpus(str(texts))
    built = (first.folder / "index.json").stat().st_mtime_ns
    assert open_corpus(str(texts)).sha256 == first.sha256
    assert (first.folder / "index.json").stat().st_mtime_ns == built
    (texts / "d1" / "7.txt").write_text(prose(7, 30).swapcase(), encoding="utf-8")
    assert prose(7, 30).swapcase().encode() in all_documents(open_corpus(str(texts)))
