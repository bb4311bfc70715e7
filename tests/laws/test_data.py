"""Splits: by a document's content alone, no text lost. Batches: a permutation, a pure function of (seed, step)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from corpora import SPLITS, all_documents, documents, prose, write_bin, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from hectogpt import errors
from hectogpt.data import Batches, open_corpus, tokens_read
from hectogpt.data.splits import cut_passages
from hectogpt.errors import UserError


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


def test_bin_is_split_by_the_hash_of_its_tokens(tmp_path: Path) -> None:
    docs = [[i, i % 7, 3] for i in range(1, 800)]
    write_bin(tmp_path / "tokens.bin", docs, last=False)
    corpus = open_corpus(str(tmp_path / "tokens.bin"))
    expected: dict[str, list[int]] = {name: [] for name in SPLITS}
    for doc in docs:
        u = int.from_bytes(hashlib.sha256(np.array(doc, dtype="<u2").tobytes()).digest()[:8], "big") / 2**64
        expected["train" if u < 0.85 else "dev" if u < 0.925 else "test"] += [*doc, 50_256]
    assert all(corpus.tokens[name].tolist() == expected[name] for name in SPLITS)


def test_bin_without_separators_is_cut(tmp_path: Path) -> None:
    np.random.default_rng(0).integers(0, 50_256, 20_000).astype("<u2").tofile(tmp_path / "one.bin")
    assert all(n > 1 for n in open_corpus(str(tmp_path / "one.bin")).n_documents.values())


# --- batches ---------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 50), st.integers(0, 2**63 - 1), st.data())
def test_batches_follow_the_definition(n: int, seq_len: int, batch_size: int, seed: int, draw: st.DataObject) -> None:
    """Against the definition written out naively; any partition of the rows gives the same batch."""
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
        cuts = sorted(draw.draw(st.lists(st.integers(0, batch_size), max_size=3)))
        parts = [batches.rows(step, lo, hi) for lo, hi in zip([0, *cuts], [*cuts, batch_size], strict=True)]
        assert np.array_equal(np.concatenate(parts), batch)
    assert np.array_equal(
        tokens_read(tokens, seq_len, batch_size, seed, 2), np.concatenate([batches.at(0), batches.at(1)])
    )


@pytest.mark.parametrize("batch_size", [1, 7, 16, 300])
def test_each_sequence_once_per_epoch(batch_size: int) -> None:
    batches = Batches(np.repeat(np.arange(100), 4), seq_len=4, batch_size=batch_size, seed=3)
    rows = np.concatenate([batches.at(step)[:, 0] for step in range(600 // batch_size + 1)])
    for epoch in range(6):
        assert sorted(rows[epoch * 100 : (epoch + 1) * 100].tolist()) == list(range(100))
    assert rows[:100].tolist() != rows[100:200].tolist()


def test_order_is_the_same_for_ever() -> None:
    tokens = np.arange(24)
    assert Batches(tokens, 3, 2, seed=0).order(0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert Batches(tokens, 3, 2, seed=0).order(1).tolist() == [5, 3, 7, 2, 4, 1, 0, 6]
    assert Batches(tokens, 2, 2, seed=7).order(3).tolist() == [2, 5, 9, 7, 3, 0, 6, 8, 4, 1, 11, 10]


def test_too_short_for_a_sequence() -> None:
    with pytest.raises(UserError, match="7 tokens in this split, one sequence needs 65") as caught:
        Batches(np.arange(7), seq_len=65)
    assert caught.value.code == errors.DATA
    assert "set data.seq_len to 7" in caught.value.fix
    for bad in ({"seq_len": 0}, {"batch_size": 0}, {"seed": -1}, {"seed": 2**63}):
        with pytest.raises(UserError) as caught:
            Batches(np.arange(99), **{"seq_len": 4, **bad})
        assert caught.value.code == errors.USAGE
    with pytest.raises(ValueError, match="rows 3:2"):
        Batches(np.arange(99), 4).rows(0, 3, 2)
