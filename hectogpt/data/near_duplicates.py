"""Documents that are nearly in another split: whole-document hashes tell equal documents, not two versions of one text.

A document's fingerprints are a sample of the hashes of all its passages of PASSAGE bytes, chosen by their value, so
equal passages give equal fingerprints wherever they stand (Schleimer, Wilkerson and Aiken 2003 sample in the same
spirit). The share of a document's fingerprints that other documents have estimates how much of it they hold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hectogpt.data.documents import Document
from hectogpt.data.splits import Assignment, fills_every_split

PASSAGE = 40  # bytes, about eight tokens of English
SAMPLED = 16  # one passage in so many is a fingerprint
NEAR = 0.5  # of a document's fingerprints: from here on it counts as nearly in the others
FEWEST = 8  # fingerprints of a document that can be judged

_BASE = np.uint64(0x9E3779B97F4A7C15 | 1)  # odd, so that it has an inverse modulo 2**64
_MIX = np.uint64(0xD6E8FEB86659FD93)


def fingerprints(content: str | np.ndarray) -> np.ndarray:
    """uint64 [n], ascending and different: the sampled hashes of a text's passages, or of those of token ids."""
    raw = content.encode("utf-8") if isinstance(content, str) else np.ascontiguousarray(content, "<u2").tobytes()
    data = np.frombuffer(raw, np.uint8).astype(np.uint64)
    if len(data) < PASSAGE:
        return np.zeros(0, np.uint64)
    # The hash of a passage is the polynomial of its bytes in _BASE modulo 2**64: a difference of prefix sums, divided
    # by the power that its place has put in. Products wrap around, as they should.
    powers, inverse = _powers(_BASE, len(data)), _powers(_inverse(_BASE), len(data) - PASSAGE + 1)
    sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum((data + np.uint64(1)) * powers, dtype=np.uint64)))
    hashes = (sums[PASSAGE:] - sums[:-PASSAGE]) * inverse
    hashes = (hashes ^ (hashes >> np.uint64(29))) * _MIX
    hashes ^= hashes >> np.uint64(32)
    step = 1 if isinstance(content, str) else 2  # passages of ids begin at an id
    hashes = hashes[::step]
    return np.unique(hashes[hashes % np.uint64(SAMPLED) == 0])


def _powers(base: np.uint64, n: int) -> np.ndarray:
    """uint64 [n]: base^0, base^1 ... modulo 2**64."""
    factors = np.full(n, base)
    factors[:1] = 1
    return np.cumprod(factors, dtype=np.uint64)


def _inverse(odd: np.uint64) -> np.uint64:
    return np.uint64(pow(int(odd), -1, 2**64))


def shares_in(documents: Sequence[str | np.ndarray], others: Sequence[str | np.ndarray]) -> np.ndarray:
    """float [documents]: the share of each document that the `others` hold, nan for one that is too short to judge."""
    known = np.unique(np.concatenate([np.zeros(0, np.uint64), *(fingerprints(other) for other in others)]))
    shares = np.full(len(documents), np.nan)
    for i, document in enumerate(documents):
        own = fingerprints(document)
        if len(own) >= FEWEST:
            shares[i] = np.isin(own, known, assume_unique=True).mean()
    return shares


def join_near_duplicates(documents: Sequence[Document]) -> tuple[list[Document], list[str]]:
    """The documents, those of dev and test that are nearly in train moved to train, and the labels of the moved ones.

    documents: each with its split. Moving repeats until nothing is left to move, since a moved document may hold much
    of another. Dev and test are not compared with each other: nothing is trained on either.
    """
    found, moved = list(documents), list[str]()
    while True:
        train = [document.content for document in found if document.split == "train"]
        held_out = [i for i, document in enumerate(found) if document.split != "train"]
        shares = shares_in([found[i].content for i in held_out], train)
        near = [i for i, share in zip(held_out, shares, strict=True) if share >= NEAR]
        if not near:
            return found, moved
        for i in near:
            moved.append(found[i].label)
            found[i] = found[i]._replace(split="train")


def keep_apart(assigned: Assignment) -> tuple[Assignment, list[str]]:
    """The assignment with near duplicates of training documents moved to train, and what to tell of it, if anything.

    A text that repeats itself stays as it is, and so does one whose dev or test would be left (nearly) empty.
    """
    if assigned.repetitive:
        return assigned, []
    joined, moved = join_near_duplicates(assigned.documents)
    if not moved:
        return assigned, []
    listed = ", ".join(moved[:3]) + (f" and {len(moved) - 3} more" if len(moved) > 3 else "")
    if not fills_every_split(joined):
        return assigned, [f"held-out text is nearly in the training text too: {listed}"]
    return assigned._replace(documents=joined), [f"nearly equal to training text, so moved there: {listed}"]
