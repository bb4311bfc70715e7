"""Sources: documents in a fixed order, their bytes kept; what cannot be read without loss is refused or reported."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command import hectogpt
from corpora import SPLITS, all_documents, documents, prose, refused, write_jsonl

from hectogpt import errors
from hectogpt.data import CorpusCache, SourceOptions, open_corpus
from hectogpt.data.text import decode
from hectogpt.errors import UserError


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
    for name in SPLITS:
        assert sotu.sha256[name] == hashlib.sha256(sotu.tokens[name].tobytes()).hexdigest()


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


@pytest.mark.parametrize("record", ['{"text": "%s", "title": "t"}', '{"story": "%s", "n": 1}'])
def test_jsonl_finds_its_text(tmp_path: Path, record: str) -> None:
    lines = [record % f"words number {i}" for i in range(200)]
    (tmp_path / "x.jsonl").write_text("\n".join([*lines, "", record % "  "]), encoding="utf-8")
    corpus = open_corpus(str(tmp_path / "x.jsonl"))
    assert sum(corpus.n_documents.values()) == 200
    assert "line 202: empty" in corpus.problems[0]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "utf-32"])
def test_other_encodings_are_named_and_read_exactly(tmp_path: Path, encoding: str) -> None:
    text = "caf\xe9 \xfc\n" * 3000
    raw = text.encode(encoding)
    path = tmp_path / "text.txt"
    path.write_bytes(raw)
    refused(
        path,
        "is not utf-8 text",
        "offset",
        "line 1",
        f"set encoding to {'latin-1' if encoding == 'cp1252' else encoding}",
    )
    assert decode(raw, "text", encoding, False).encode(encoding) == raw
    corpus = open_corpus(str(path), encoding=encoding)
    assert sum(len(d) for d in all_documents(corpus)) == len(text.encode())


BAD_FILES = {
    "empty": (b"", ("empty (0 bytes)",)),
    "blank": (b" \n\t\n", ("whitespace only (4 bytes)",)),
    "png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ("is binary", "PNG image at offset 0")),
    "elf": (b"\x7fELF\x02\x01\x01" + bytes(9), ("is binary", "ELF program")),
    "zip": (b"PK\x03\x04" + bytes(20), ("is binary", "zip archive")),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), ("is binary", "gzip archive")),
    "pdf": (b"%PDF-1.7 text", ("is binary", "PDF document")),
    "nul": (b"some text\0 and more", ("is binary", "NUL byte at offset 9", "set force to True")),
    "latin": (b"fine\nline \xe9t\xe9", ("0xe9 at offset 10 (line 2)", "set encoding to latin-1")),
    "cut": ("€".encode()[:2], ("offset 0", "unexpected end of data")),
    "short": (b"a few words only", ("too short to be split", "at least 8,192 characters")),
    "a.jsonl": (b'{"text": "x"}\n{"text": \n', ("line 2", "not a JSON record")),
    "b.jsonl": (b'{"a": "x", "b": "y"}\n', ("line 1", 'no field "text"', "b.jsonl:a")),
    "c.jsonl": (b'{"text": "ab\\ud800"}\n', ("line 1", "lone surrogate U+D800 at character 2")),
    "d.jsonl": (b'["x"]\n', ("line 1", "no field")),
    "e.jsonl": (b"[" * 100_000, ("line 1",)),
    "f.jsonl": (b'{"text": "\xe9"}', ("line 1", "UTF-8")),
    "g.jsonl": (b"\n\n", ("holds no text",)),
    "odd.bin": (b"\x01\x00\x02", ("3 bytes are no uint16 tokens",)),
    "none.bin": (b"", ("0 bytes",)),
    "range.bin": (np.array([5, 50_256, 60_000], "<u2").tobytes(), ("id 60000 at position 2", "50,257 ids")),
    "only-ends.bin": (np.full(9, 50_256, "<u2").tobytes(), ("holds no text",)),
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


@pytest.mark.parametrize("name", ["", "  ", "hf:", "hf::text"])
def test_an_empty_name_is_not_the_current_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "story.txt").write_text(prose(0, 5000), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert "set corpus to" in refused(name, "name").fix
    assert open_corpus(".").n_documents["train"] > 0


def write_table(path: Path, texts: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".json":
            json.dump([{"id": "x", "story": text} for text in texts], file)
        else:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([("id", "story"), *(("x", text) for text in texts)])


@pytest.mark.parametrize("ending", ["csv", "tsv", "json"])
def test_tables_are_refused_with_a_command_that_converts_them(ending: str, tmp_path: Path) -> None:
    texts = [f'{i} "quoted", and\na line, é' for i in range(300)]
    path = tmp_path / f"my table.{ending}"
    write_table(path, texts)
    fix = refused(path, f"a .{ending} file holds records", "set force to True").fix
    command = fix[fix.index("python -c") : fix.index("  then set corpus to ")]
    command = command.replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(command, shell=True, check=True, env={"PYTHONUTF8": "1"})
    corpus = open_corpus(f"{tmp_path}/my table.jsonl:story")
    assert sorted(all_documents(corpus)) == sorted(text.encode() for text in texts)
    raw = open_corpus(str(path), force=True)  # as one plain text
    assert b"".join(sorted(all_documents(raw))).count(b"quoted") == 300


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


def test_a_file_whose_name_looks_like_a_column_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl:text"
    path.write_text(prose(0, 5000), encoding="utf-8")
    assert sum(map(len, all_documents(open_corpus(str(path))))) == path.stat().st_size


def test_force_is_two_options(tmp_path: Path) -> None:
    """`binary` is about a single file, `skip_unreadable` about a folder; each has a cache of its own."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(prose(0, 5000), encoding="utf-8")
    (folder / "nul.txt").write_text(prose(1, 3000).replace("union", "un\0ion"), encoding="utf-8")
    (folder / "latin.txt").write_bytes(b"\xe9\xe9")
    binary, skip = SourceOptions(binary=True), SourceOptions(skip_unreadable=True)
    with pytest.raises(UserError, match=r"nul\.txt is binary"):
        CorpusCache(str(folder / "nul.txt"), skip).open()
    assert CorpusCache(str(folder / "nul.txt"), binary).open().problems == ()
    with pytest.raises(UserError, match="cannot use") as caught:
        CorpusCache(str(folder), binary).open()
    assert "latin.txt: byte 0xe9" in caught.value.why
    problems = CorpusCache(str(folder), skip).open().problems
    assert [problem.partition(":")[0] for problem in problems] == ["left out nul.txt", "left out latin.txt"]
    names = {CorpusCache(str(folder / "a.txt"), options).folder for options in (SourceOptions(), binary, skip)}
    assert len(names) == 3


def test_the_list_of_what_is_left_out_has_an_end(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write_jsonl(path, 200)
    with path.open("a") as file:
        file.write('{"text": ""}\n' * 50)
    problems = open_corpus(str(path)).problems
    assert len(problems) == 21
    assert problems[-1] == "left out 30 more"


def test_force_takes_text_with_nuls(tmp_path: Path) -> None:
    text = prose(0, 5000).replace("union", "un\0ion")
    (tmp_path / "nuls.txt").write_text(text, encoding="utf-8")
    refused(tmp_path / "nuls.txt", "NUL byte")
    assert sum(map(len, all_documents(open_corpus(str(tmp_path / "nuls.txt"), force=True)))) == len(text.encode())


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


@pytest.mark.thorough
def test_a_silent_hub_is_told_within_seconds(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        begun = time.monotonic()
        done = hectogpt("train", "--corpus", "hf:a/b", cwd=tmp_path, HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / "hf"))
        seconds = time.monotonic() - begun
    assert done.returncode == errors.DATA
    assert "has not answered within 2 s" in done.stderr
    assert seconds < 30, "less than 5 on a quiet machine"
