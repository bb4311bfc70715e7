"""The data: documents in a fixed order, their bytes kept; splits by a document's content alone, no text lost; batches a
pure function of (seed, step); the same token files every time, whole or absent, no damage unnoticed; the tokenizer."""

from __future__ import annotations

import hashlib
import json
import lzma
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, prose
from hypothesis import given, settings
from hypothesis import strategies as st

from hectogpt.data import Batches, Corpus, load_tokenizer, open_corpus, token_files, tokenizer
from hectogpt.data.sources import PASSAGES, cut_passages
from hectogpt.errors import UserError

TOK = load_tokenizer()
SPLITS = ("train", "dev", "test")


def write_jsonl(path: Path, n: int, n_words: int = 12) -> list[str]:
    texts = [f"{i} {prose(i, n_words)}" for i in range(n)]
    path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts)), encoding="utf-8")
    return texts


def write_bin(path: Path, docs: list[list[int]]) -> None:
    np.array([i for doc in docs for i in [*doc, 50_256]], dtype="<u2").tofile(path)


def documents(tokens: np.ndarray) -> list[bytes]:
    """The documents of a token stream, which must end with a separator."""
    assert tokens.dtype == np.uint16
    assert not tokens.flags.writeable
    ends = np.flatnonzero(tokens == 50_256)
    assert ends[-1] == len(tokens) - 1
    return [TOK.decode_bytes(part[part != 50_256]) for part in np.split(tokens, ends[:-1] + 1)]


def all_documents(corpus: Corpus) -> list[bytes]:
    return [d for name in SPLITS for d in documents(corpus.tokens[name])]


def refused(source: str | Path, *fragments: str, **options: object) -> UserError:
    with pytest.raises(UserError) as caught:
        open_corpus(str(source), **options)  # type: ignore[arg-type]
    for fragment in fragments:
        assert fragment in str(caught.value), str(caught.value)
    assert caught.value.fix
    return caught.value


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


def split_of(content: bytes) -> str:
    u = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64
    return "train" if u < 0.85 else "dev" if u < 0.925 else "test"


def test_texts_are_split_by_their_hash_in_order(tmp_path: Path) -> None:
    texts = [text.encode() for text in write_jsonl(tmp_path / "many.jsonl", 3000)]
    corpus = open_corpus(str(tmp_path / "many.jsonl"))
    for name in SPLITS:
        assert documents(corpus.tokens[name]) == [text for text in texts if split_of(text) == name]
        assert corpus.n_documents[name] == len(documents(corpus.tokens[name]))
    assert corpus.n_documents["train"] / 3000 == pytest.approx(0.85, abs=0.02)


def test_one_book_is_cut_into_passages_and_keeps_its_bytes(tmp_path: Path) -> None:
    """CRLF, lone CR, byte order mark, U+2028 and the name of the separator are text like any other."""
    text = "\ufeff<|endoftext|>\r\n" + "\r\n\r\n".join(prose(i, 60) + "\rx\u2028\x0b" for i in range(300))
    (tmp_path / "book.txt").write_bytes(text.encode())
    corpus = open_corpus(str(tmp_path / "book.txt"))
    assert all(len(corpus.tokens[name]) > 200 for name in SPLITS)
    pieces = [piece.encode() for piece in cut_passages(text, len(text) // PASSAGES)]
    assert b"".join(pieces) == text.encode()
    assert sorted(pieces) == sorted(all_documents(corpus))


@given(st.text(st.sampled_from("ab \n\r\t😀"), max_size=400), st.integers(1, 20))
def test_passages_join_to_the_text(text: str, length: int) -> None:
    pieces = list(cut_passages(text, length))
    assert "".join(map(str, pieces)) == text
    assert all(length <= len(piece) <= 2 * length for piece in pieces[:-1])


def test_every_split_has_text_whatever_the_source(tmp_path: Path) -> None:
    """A few documents and small ones are cut; of text that repeats itself the numbers of passages decide."""
    (tmp_path / "two").mkdir()
    for i in range(2):
        (tmp_path / "two" / f"{i}.txt").write_text(prose(i, 8000), encoding="utf-8")
    (tmp_path / "small.txt").write_text(prose(54, 2000))  # its passages' own hashes leave a split empty
    (tmp_path / "same.txt").write_text("all work and no play\n" * 2000)
    for name in ("two", "small.txt", "same.txt"):
        corpus = open_corpus(str(tmp_path / name))
        assert all(len(ids) > 30 for ids in corpus.tokens.values())
        assert corpus.problems == () if name != "same.txt" else "repeats itself" in corpus.problems[0]


# --- batches ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 50), st.integers(0, 2**63 - 1), st.data())
def test_batches_follow_the_definition(n: int, seq_len: int, batch_size: int, seed: int, draw: st.DataObject) -> None:
    """Against the definition written out naively."""
    tokens = np.arange(n * seq_len + draw.draw(st.integers(0, seq_len - 1)), dtype=np.uint16)
    batches = Batches(tokens, seq_len, batch_size, seed)
    assert batches.n_sequences == n
    n_epochs = 3 * batch_size // n + 2
    orders = [np.argsort(np.random.Philox(key=[seed, e]).random_raw(n), kind="stable") for e in range(n_epochs)]
    whole = np.concatenate(orders)
    for step in (0, 2, 1):
        expected = [tokens[i * seq_len : (i + 1) * seq_len] for i in whole[step * batch_size : (step + 1) * batch_size]]
        batch = batches.at(step)
        assert batch.dtype == np.int64
        assert np.array_equal(batch, np.array(expected))


def test_order_is_the_same_for_ever() -> None:
    tokens = np.arange(24)
    assert Batches(tokens, 3, 2, seed=0).order(0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert Batches(tokens, 3, 2, seed=0).order(1).tolist() == [5, 3, 7, 2, 4, 1, 0, 6]
    assert Batches(tokens, 2, 2, seed=7).order(3).tolist() == [2, 5, 9, 7, 3, 0, 6, 8, 4, 1, 11, 10]


# --- sources ----------------------------------------------------------------------------------------------------------


SOTU_SHA256 = {  # as they have been since the first version: records of old runs stay comparable
    "train": "193c3ce78199d7fed741cd89d49a2338c8d52d8e0c34cef8439a9773a32713f7",
    "dev": "401228a158cdb8dad1ade6a323464ab6b34c6030951c767f3ba27e2a176f98ba",
    "test": "04389ad03b02266634c6a4f361e916e6dc8fa223181c9144c5afeb1655f64d7d",
}


def test_the_embedded_corpus_never_changes() -> None:
    sotu = open_corpus("sotu")
    assert sotu.sha256 == SOTU_SHA256
    assert sotu.folder.name == "sotu-9537c683650a"  # so that existing caches stay valid
    assert sum(sotu.n_documents.values()) == 249


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
    corpus = open_corpus(str(folder))
    for name in SPLITS:
        order = [d.split(b":")[0] for d in documents(corpus.tokens[name])]
        assert order == sorted(order)
    assert {d.split(b":")[0].decode() for d in all_documents(corpus)} == set(names)
    listed = " ".join(corpus.problems)
    assert all(f"{word}: " in listed for word in ("empty.txt", "blank.txt", "image"))
    assert ".hidden" not in listed
    (folder / "utf16.txt").write_bytes("words".encode("utf-16"))
    refused(folder, "utf16.txt", "offset 0", "save it as UTF-8")


def test_jsonl_finds_its_text_and_its_ids_are_the_same_corpus(tmp_path: Path) -> None:
    record = '{"text": "%s", "title": "t"}'
    lines = [record % f"words number {i}" for i in range(200)]
    (tmp_path / "x.jsonl").write_text("\n".join([*lines, "", record % "  "]), encoding="utf-8")
    corpus = open_corpus(str(tmp_path / "x.jsonl"))
    assert sum(corpus.n_documents.values()) == 200
    assert "line 202: empty" in corpus.problems[0]
    write_bin(tmp_path / "x.bin", [TOK.encode(f"words number {i}").tolist() for i in range(200)])
    assert open_corpus(str(tmp_path / "x.bin")).sha256 == corpus.sha256


BAD_FILES = {
    "blank": (b" \n\t\n", ("blank: empty or whitespace only",)),
    "png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ("is binary: NUL byte at offset 8", "name a text file")),
    "latin": (b"fine\nline \xe9t\xe9", ("0xe9 at offset 10 (line 2)", "save it as UTF-8")),
    "short": (b"a few words only", ("too short to be split", "at least 8,192 characters")),
    "t.csv": (b"id,story\n1,x\n", ("a .csv file", "t.jsonl")),
    "a.jsonl": (b'{"text": "x"}\n{"text": \n', ("line 2", "not a JSON record")),
    "b.jsonl": (b'{"a": "x", "b": "y"}\n', ("line 1", 'no field "text"', "b.jsonl:a")),
    "c.jsonl": (b'{"text": "ab\\ud800"}\n', ("line 1", "surrogates not allowed")),
    "odd.bin": (b"\x01\x00\x02", ("3 bytes are not uint16 tokens",)),
    "half.bin": (np.array([5, 50_256, 187], "<u2").tobytes(), ("half.bin document 1", "not UTF-8 text")),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path: Path, name: str) -> None:
    content, fragments = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, name, *fragments)
    assert not list((tmp_path / "cache").glob("*/"))


def test_no_name_stands_for_a_folder_by_chance(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one not for the current folder; `datasets` reads what is a path here, and takes it for the hub's."""
    monkeypatch.chdir(texts.parent)
    for name in ("  ", "hf::text", "hf:../texts", "hf:/etc", "hf:texts"):
        assert "set corpus to" in refused(name).fix
    refused("sutu", "no such file or folder", "did you mean 'sotu'?")


def test_a_column_of_a_jsonl_is_chosen_by_name(tmp_path: Path) -> None:
    path = tmp_path / "two.jsonl"
    records = [{"question": f"{i} why", "answer": f"{i} because", "n": i} for i in range(300)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    refused(path, 'no field "text"', "question, answer", f"set corpus to {path}:question")
    refused(f"{path}:n", 'no field "n" with a string', "question, answer")
    answers, questions = open_corpus(f"{path}:answer"), open_corpus(f"{path}:question")
    assert sorted(all_documents(answers)) == sorted(f"{i} because".encode() for i in range(300))
    assert answers.folder != questions.folder
    assert answers.sha256 != questions.sha256
    refused(f"{tmp_path}/tow.jsonl:answer", "no such file", "did you mean 'two.jsonl'?")


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
    refused("hf:set:story", "its columns are id, text", "hf:set:COLUMN")
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


# --- folders ----------------------------------------------------------------------------------------------------------


def test_links_are_left_out_and_listed(texts: Path, tmp_path: Path) -> None:
    """Who publishes a model trained on a folder from elsewhere must not publish a file of their own with it."""
    beside = tmp_path / "texts-beside" / "a.txt"
    beside.parent.mkdir()
    beside.write_text("the secret of this machine " * 100, encoding="utf-8")
    (texts / "plain.txt").symlink_to(beside)
    (texts / "d0" / "relative.txt").symlink_to("../../texts-beside/a.txt")
    (texts / "chain.txt").symlink_to(texts / "plain.txt")
    (texts / "folder").symlink_to(beside.parent)
    (texts / "inside.txt").symlink_to(texts / "d0" / "0.txt")
    (texts / "broken.txt").symlink_to("nowhere")
    corpus = open_corpus(str(texts))
    assert not any(b"secret" in text for text in all_documents(corpus))
    assert sum(corpus.n_documents.values()) == 120
    links = ["broken.txt", "chain.txt", "d0/relative.txt", "folder", "inside.txt", "plain.txt"]
    assert sorted(corpus.problems) == [f"left out {name}: a link" for name in links]


# --- the cache of token files -----------------------------------------------------------------------------------------


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
    assert not (tmp_path / "cache").exists()
    bad = {b"\x01\x00\x02": "3 bytes are not uint16", b"": "0 bytes", b"\0\0\xff\xff": "position 1"}
    for content, words in bad.items():
        (tmp_path / "dev.bin").write_bytes(content)
        refused(tmp_path, "dev.bin", words)


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
    refused(copy, "made with a different vocabulary")


def test_damaged_files_are_named_and_repaired(tmp_path: Path) -> None:
    source = str(tmp_path / "x.jsonl")
    write_jsonl(tmp_path / "x.jsonl", 2000)
    folder = open_corpus(source).folder
    good = files_of(folder)
    (folder / "dev.bin").write_bytes(bytes(len(good["dev.bin"])))
    assert not open_corpus(source, check=False).dev.any(), "another process of this machine compares the hashes"
    assert refused(source, "damaged", "dev.bin", "its SHA-256 differs").fix.startswith(f"remove {folder}:")
    (folder / "dev.bin").unlink()
    refused(source, "dev.bin", "cannot be read")
    (folder / "index.json").write_bytes(good["index.json"].replace(b"1", b"2", 1))
    refused(source, "index.json", "remove ")
    shutil.rmtree(folder)
    assert files_of(open_corpus(source).folder) == good


def test_a_disk_that_refuses_keeps_the_older_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files stands for a full disk."""
    source = tmp_path / "x.jsonl"
    write_jsonl(source, 200)
    folder = open_corpus(str(source)).folder
    before = files_of(folder)
    write_jsonl(source, 300)
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); "
    limited += "from hectogpt.data import open_corpus; open_corpus(sys.argv[1])"
    child = subprocess.run([sys.executable, "-c", limited, str(source)], cwd=ROOT, capture_output=True, text=True)
    assert "cannot write token files" in child.stderr
    assert "why: File too large" in child.stderr
    assert files_of(folder) == before
    assert [path.name for path in folder.parent.iterdir() if not path.name.endswith(".lock")] == [folder.name]
    monkeypatch.setenv("HECTOGPT_CACHE", str(source / "cache"))
    refused(source, "cannot write token files", "HECTOGPT_CACHE")


# --- the tokenizer: bytes in are bytes out, ids are those of Hugging Face's GPT-2 -------------------------------------


SPACES = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000"
ANY_TEXT = st.text() | st.text(alphabet=SPACES + "ab'sé7.\x1c\u200b😀") | st.binary().map(lambda b: b.decode("latin-1"))


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Hugging Face's GPT2Tokenizer, built from our merges: an implementation that shares no code with tiktoken."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.json").write_text(json.dumps(TOK.vocabulary()), encoding="utf-8")
    (folder / "merges.txt").write_bytes(TOK.merges)
    return transformers.GPT2Tokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


def test_sizes_and_hash() -> None:
    assert (TOK.n_vocab, TOK.end_of_text) == (50_257, 50_256)
    assert TOK.sha256 == "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
    assert load_tokenizer() is TOK
    assert TOK.encode("hello world").tolist() == [31373, 995]
    assert list(TOK.vocabulary().values()) == list(range(50_257))


@settings(max_examples=100)
@given(ANY_TEXT)
def test_bytes_in_are_bytes_out(text: str) -> None:
    ids = TOK.encode(text)
    assert ids.dtype == np.int64
    assert TOK.decode(ids) == text
    assert TOK.decode_bytes(ids) == text.encode()
    assert TOK.token_bytes[ids].sum() == len(text.encode())
    assert TOK.end_of_text not in ids


def test_end_of_text_in_the_text_is_plain() -> None:
    assert TOK.encode("a<|endoftext|>b").tolist() == [64, 27, 91, 437, 1659, 5239, 91, 29, 65]
    assert TOK.token_bytes[TOK.end_of_text] == 0
    assert TOK.decode([TOK.end_of_text]) == "<|endoftext|>"


def test_same_ids_as_hugging_face_on_fuzzed_unicode(hugging_face: Any) -> None:
    rng = random.Random(0)
    planes = [(0, 128), (128, 0x250), (0x250, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000), (0x20000, 0x110000)]
    for _ in range(500):
        words = []
        for _ in range(rng.randint(1, 12)):
            lo, hi = rng.choice(planes)
            words.append("".join(chr(rng.randrange(lo, hi)) for _ in range(rng.randint(1, 5))))
            words.append(rng.choice([*SPACES, "", "  ", "\r\n", "'s", "'LL", "7", "<|endoftext|>"]))
        text = "".join(words)
        assert TOK.encode(text).tolist() == hugging_face.encode(text, split_special_tokens=True), repr(text)


def test_every_damage_to_the_vocabulary_is_named(tmp_path: Path) -> None:
    good = tokenizer.VOCABULARY.read_bytes()
    path = tmp_path / "vocab.bpe.xz"
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 4
    for copy in (good[:-9], b"", lzma.compress(b"#version: 0.2\na b\n"), bytes(flipped)):
        path.write_bytes(copy)
        with pytest.raises(UserError, match=r"vocab\.bpe\.xz is damaged") as caught:
            tokenizer._read_vocabulary(path)
        assert "pip install --force-reinstall" in caught.value.fix
    path.unlink()
    with pytest.raises(UserError, match="damaged"):
        tokenizer._read_vocabulary(path)
