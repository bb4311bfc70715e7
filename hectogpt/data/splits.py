"""Assigns each document to train, dev or test by the hash of its content, so adding or reordering documents changes
nothing.

A source of few documents is cut into passages first, so that a single book has a dev and a test split too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from hectogpt import errors
from hectogpt.data.documents import Document
from hectogpt.data.token_files import SPLITS, TOKEN
from hectogpt.errors import UserError

TRAIN_SHARE, DEV_SHARE = 0.85, 0.925  # upper bounds of a document's number in [0, 1): train, dev, test
MANY_DOCUMENTS = 1000  # so many documents fill every split without help
LEAST_SHARE = 0.02  # documents are cut into passages if dev or test would get less than this share of them
PASSAGES, SHORTEST, LONGEST = 128, 64, 8192  # passages to aim at, and their bounds in characters
SPLIT_RULE = "u = first 8 bytes of the document's SHA-256 / 2**64; train u < 0.85, dev u < 0.925, else test"


class Assignment(NamedTuple):
    """Documents with their splits.

    passage_length: characters that a passage has at least, 0 if the documents are whole. repetitive: the text repeats
    itself so much that equal passages are in several splits.
    """

    documents: list[Document]
    passage_length: int
    repetitive: bool


def split_of(content: str | np.ndarray, salt: bytes = b"") -> str:
    """The split that a document belongs to: train, dev or test, by a number in [0, 1): the first 8 bytes, big-endian,
    of the SHA-256 of `salt` and the UTF-8 text (or the ids as little-endian uint16), divided by 2**64."""
    raw = content.encode("utf-8") if isinstance(content, str) else content.astype(TOKEN).tobytes()
    number = int.from_bytes(hashlib.sha256(salt + raw).digest()[:8], "big") / 2**64
    return "train" if number < TRAIN_SHARE else "dev" if number < DEV_SHARE else "test"


def assign_splits(documents: list[Document], name: str) -> Assignment:
    """Assign a split to each document, or to passages of them if whole ones leave a split (nearly) empty.

    Passages of a text that repeats itself are assigned by their number and content. name: the source's, for labels.
    Raises UserError (DATA) for text that is too short to be split.
    """
    whole = [document._replace(split=split_of(document.content)) for document in documents]
    if fills_every_split(whole):
        return Assignment(whole, 0, False)
    total = sum(len(document.content) for document in documents)
    for repetitive in (False, True) if total >= PASSAGES * SHORTEST else (False,):
        length = min(max(total // PASSAGES, SHORTEST), LONGEST)
        parts: list[Document] = []
        while length >= SHORTEST and len(parts) < MANY_DOCUMENTS:
            texts = [text for document in documents for text in cut_passages(document.content, length)]
            parts = [
                Document(f"{name} passage {number}", text, split_of(text, b"%d " % number if repetitive else b""))
                for number, text in enumerate(texts)
            ]
            if fills_every_split(parts):
                return Assignment(parts, length, repetitive)
            length //= 2
    raise UserError(
        f"{name} is too short to be split: {total:,} characters or tokens in {len(documents)} documents",
        why=f"train, dev and test need text each, in passages of at least {SHORTEST} characters",
        fix=f"at least {PASSAGES * SHORTEST:,} characters, or train.bin, dev.bin and test.bin of your own",
        code=errors.DATA,
    )


def fills_every_split(documents: Iterable[Document]) -> bool:
    """Whether train, dev and test have LEAST_SHARE of the text each."""
    sizes = dict.fromkeys(SPLITS, 0)
    for document in documents:
        sizes[document.split] += len(document.content)
    return min(sizes.values()) >= LEAST_SHARE * sum(sizes.values())


_BREAKS = [re.compile(p) for p in (r"\n[^\S\n]*\n\s*|\r[^\S\r\n]*\r\s*", r"\n|\r(?!\n)", r"\s(?=\S)")]


def cut_passages(content: str | np.ndarray, length: int) -> Iterator[str | np.ndarray]:
    """Consecutive parts that join to `content`.

    Text is cut into `length` to 2 * length characters, after a blank line if there is one, else after a line, else
    after a space; the last part may be shorter. Ids are cut into length // 4 of them.
    """
    if not isinstance(content, str):
        step = max(length // 4, 1)
        yield from (content[i : i + step] for i in range(0, len(content), step))
        return
    start = 0
    while len(content) - start > 2 * length:
        lo, hi = start + length, start + 2 * length
        breaks = (pattern.search(content, lo, hi) for pattern in _BREAKS)
        stop = next((match.end() for match in breaks if match), hi)
        yield content[start:stop]
        start = stop
    yield content[start:]
