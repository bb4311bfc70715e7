"""Two versions of one text do not end on both sides of a split; other texts stay where their hash puts them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from corpora import all_documents
from hypothesis import given, settings
from hypothesis import strategies as st

from hectogpt.data import open_corpus
from hectogpt.data.documents import Document
from hectogpt.data.near_duplicates import PASSAGE, fingerprints, join_near_duplicates, keep_apart, shares_in
from hectogpt.data.splits import Assignment, split_of


def text(seed: int, n_words: int = 400) -> str:
    rng = random.Random(seed)
    return " ".join(f"{rng.choice('abcdefgh')}{rng.randrange(900)}" for _ in range(n_words))


@given(st.text(min_size=0, max_size=300), st.text(max_size=80), st.text(max_size=80))
@settings(max_examples=60, deadline=None)
def test_equal_passages_have_equal_fingerprints_wherever_they_stand(middle: str, before: str, after: str) -> None:
    own = fingerprints(middle)
    assert np.isin(own, fingerprints(before + middle + after)).all()
    ids = np.frombuffer(middle.encode("utf-16-le", "surrogatepass"), "<u2")
    assert np.isin(fingerprints(ids), fingerprints(np.concatenate(([7, 8, 9], ids)).astype("<u2"))).all()


def test_another_text_has_other_fingerprints() -> None:
    one, two = fingerprints(text(0)), fingerprints(text(1))
    assert len(one) > 50
    assert not np.isin(one, two).any()
    assert len(fingerprints("x" * (PASSAGE - 1))) == 0


def test_a_share_is_that_of_the_text() -> None:
    half = text(0, 300) + text(1, 300)
    shares = shares_in([half, text(0, 300), text(2), "short"], [text(0, 300), text(5)])
    assert shares[:3] == pytest.approx([0.5, 1, 0], abs=0.12)
    assert np.isnan(shares[3])


def test_near_duplicates_follow_their_training_document() -> None:
    chain = [text(0), text(0)[:1500] + text(1)[:1000], text(1)[:1200] + text(2)[:700], text(3)]
    documents = [
        Document(f"d{i}", t, s) for i, (t, s) in enumerate(zip(chain, ("train", "dev", "test", "dev"), strict=True))
    ]
    joined, moved = join_near_duplicates(documents)
    assert [d.split for d in joined] == ["train", "train", "train", "dev"]
    assert moved == ["d1", "d2"], "the second is near only to the first that moved"
    assert [d.content for d in joined] == chain


def test_a_split_is_not_emptied() -> None:
    documents = [Document("a", text(0), "train"), Document("b", text(0) + ".", "dev"), Document("c", text(1), "test")]
    assigned, notes = keep_apart(Assignment(documents, 0, False))
    assert assigned.documents == documents
    assert "nearly in the training text" in notes[0]


def test_a_new_corpus_keeps_versions_of_a_text_together(tmp_path: Path) -> None:
    texts = [text(seed) for seed in range(60)]
    trained = next(t for t in texts if split_of(t) == "train")
    version = next(v for n in range(99) if split_of(v := f"{trained} version {n}") == "test")
    (tmp_path / "texts").mkdir()
    for number, content in enumerate([*texts, version]):
        (tmp_path / "texts" / f"{number:02}.txt").write_text(content, encoding="utf-8")
    corpus = open_corpus(str(tmp_path / "texts"))
    assert len(all_documents(corpus)) == 61
    tokenizer = corpus.tokenizer
    assert version.encode() in tokenizer.decode_bytes(corpus.train.tolist())
    assert version.encode() not in tokenizer.decode_bytes(corpus.test.tolist())
    assert "60.txt" in corpus.problems[0]
    others = {t: split_of(t) for t in texts}
    for split in ("dev", "test"):
        held = tokenizer.decode_bytes(corpus.tokens[split].tolist())
        assert all((t.encode() in held) == (where == split) for t, where in others.items())
