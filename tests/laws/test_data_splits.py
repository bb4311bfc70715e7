"""Splits: a document's split depends on its content alone, no text is lost, every split has text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from corpora import SPLITS, all_documents, documents, prose, write_bin, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from hectogpt.data import open_corpus
from hectogpt.data.splits import cut_passages


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path / "cache"))


def test_split_is_by_hash_in_order_and_disjoint(tmp_path: Path) -> None:
    texts = write_jsonl(tmp_path / "many.jsonl", 3000)
    corpus = open_corpus(str(tmp_path / "many.jsonl"))
    expected: dict[str, list[bytes]] = {name: [] for name in SPLITS}
    for text in texts:
        u = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
        expected["train" if u < 0.85 else "dev" if u < 0.925 else "test"].append(text.encode())
    for name in SPLITS:
        assert documents(corpus.tokens[name]) == expected[name]
        assert corpus.n_documents[name] == len(expected[name])
    assert corpus.n_documents["train"] / 3000 == pytest.approx(0.85, abs=0.02)
    assert corpus.n_documents["dev"] / 3000 == pytest.approx(0.075, abs=0.015)
    found = [set(expected[name]) for name in SPLITS]
    assert len(set.union(*found)) == sum(map(len, found))


def test_adding_documents_moves_none(tmp_path: Path) -> None:
    path = tmp_path / "grows.jsonl"
    write_jsonl(path, 200)
    before = {name: set(documents(open_corpus(str(path)).tokens[name])) for name in SPLITS}
    write_jsonl(path, 300)  # also: a changed source is noticed and tokenised again
    after = {name: set(documents(open_corpus(str(path)).tokens[name])) for name in SPLITS}
    assert all(before[name] < after[name] for name in SPLITS)


def test_one_book_is_cut_into_passages_and_keeps_its_bytes(tmp_path: Path) -> None:
    """CRLF, lone CR, byte order mark, U+2028 and the name of the separator are text like any other."""
    text = "\ufeff<|endoftext|>\r\n" + "\r\n\r\n".join(prose(i, 60) + "\rx\u2028\x0b" for i in range(300))
    (tmp_path / "book.txt").write_bytes(text.encode())
    corpus = open_corpus(str(tmp_path / "book.txt"))
    assert all(len(corpus.tokens[name]) > 200 for name in SPLITS)
    length = json.loads((corpus.folder / "index.json").read_bytes())["passages"]
    pieces = [piece.encode() for piece in cut_passages(text, length)]
    assert b"".join(pieces) == text.encode()
    assert sorted(pieces) == sorted(all_documents(corpus))


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab \n\r\t😀"), max_size=400), st.integers(1, 20))
def test_passages_join_to_the_text(text: str, length: int) -> None:
    pieces = list(cut_passages(text, length))
    assert "".join(map(str, pieces)) == text
    assert all(length <= len(piece) <= 2 * length for piece in pieces[:-1])


def test_few_documents_with_an_empty_split_are_cut(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    for i in range(2):
        (tmp_path / "two" / f"{i}.txt").write_text(prose(i, 8000), encoding="utf-8")
    assert all(n > 0 for n in open_corpus(str(tmp_path / "two")).n_documents.values())


def test_text_that_repeats_itself_is_split_by_number(tmp_path: Path) -> None:
    (tmp_path / "same.txt").write_text("all work and no play\n" * 2000)
    corpus = open_corpus(str(tmp_path / "same.txt"))
    assert sum(map(len, all_documents(corpus))) == 42_000
    assert all(len(corpus.tokens[name]) > 100 for name in SPLITS)
    assert "repeats itself" in corpus.problems[0]


@pytest.mark.parametrize("last", [True, False])
def test_bin_is_split_by_the_hash_of_its_tokens(tmp_path: Path, last: bool) -> None:
    docs = [[i, i % 7, 3] for i in range(1, 800)]
    write_bin(tmp_path / "tokens.bin", docs, last)
    corpus = open_corpus(str(tmp_path / "tokens.bin"))
    expected: dict[str, list[int]] = {name: [] for name in SPLITS}
    for doc in docs:
        raw = np.array(doc, dtype="<u2").tobytes()
        u = int.from_bytes(hashlib.sha256(raw).digest()[:8], "big") / 2**64
        expected["train" if u < 0.85 else "dev" if u < 0.925 else "test"] += [*doc, 50_256]
    assert all(corpus.tokens[name].tolist() == expected[name] for name in SPLITS)


def test_bin_without_separators_is_cut(tmp_path: Path) -> None:
    np.random.default_rng(0).integers(0, 50_256, 20_000).astype("<u2").tofile(tmp_path / "one.bin")
    assert all(n > 1 for n in open_corpus(str(tmp_path / "one.bin")).n_documents.values())
