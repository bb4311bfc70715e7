"""Which documents train, which are held out: by their own hash, never by their place.

Sources of a few long documents are cut into passages first, so that a single book still has a dev and a test split.
Refuses text too short for that.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator

import numpy as np

from hectogpt import errors
from hectogpt.data import shards
from hectogpt.data.source import Document
from hectogpt.errors import UserError

TRAIN_SHARE, DEV_SHARE = 0.85, 0.925  # upper bounds of a document's number in [0, 1): train, dev, test
MANY_DOCUMENTS = 1000  # from here on, chance alone fills every split
LEAST_SHARE = 0.02  # whole documents that leave dev or test less than this are cut into passages
PASSAGES, SHORTEST, LONGEST = 128, 64, 8192  # passages to aim at, and their bounds in characters
LAW = "u = first 8 bytes of the document's SHA-256 / 2**64; train u < 0.85, dev u < 0.925, else test"


def document_number(content: str | np.ndarray, salt: bytes = b"") -> float:
    """A document's place in [0, 1): first 8 bytes, big-endian, of the SHA-256 of its UTF-8 text, or of its ids as
    little-endian uint16 without the separator, divided by 2**64. `salt` comes before the text."""
    raw = content.encode("utf-8") if isinstance(content, str) else content.astype(shards.TOKEN).tobytes()
    return int.from_bytes(hashlib.sha256(salt + raw).digest()[:8], "big") / 2**64


def split_of(content: str | np.ndarray, salt: bytes = b"") -> str:
    """train, dev or test, by the document's number."""
    number = document_number(content, salt)
    return "train" if number < TRAIN_SHARE else "dev" if number < DEV_SHARE else "test"


def dealt(documents: list[Document], name: str) -> tuple[list[Document], int, bool]:
    """The documents with their splits, or their passages if whole ones leave a split (nearly) empty.

    Also the passages' length (0: whole documents), and whether the text repeats itself so much that equal passages
    had to be dealt to several splits, by their number.
    Raises UserError (DATA) for text too short to be split.
    """
    whole = [document._replace(split=split_of(document.content)) for document in documents]
    if _fills_every_split(whole):
        return whole, 0, False
    total = sum(len(document.content) for document in documents)
    for repetitive in (False, True) if total >= PASSAGES * SHORTEST else (False,):
        length = min(max(total // PASSAGES, SHORTEST), LONGEST)
        parts: list[Document] = []
        while length >= SHORTEST and len(parts) < MANY_DOCUMENTS:
            pieces = [piece for document in documents for piece in passages(document.content, length)]
            parts = [
                Document(f"{name} passage {number}", piece, split_of(piece, b"%d " % number if repetitive else b""))
                for number, piece in enumerate(pieces)
            ]
            if _fills_every_split(parts):
                return parts, length, repetitive
            length //= 2
    raise UserError(
        f"{name} is too short to be split: {total:,} characters or tokens in {len(documents)} documents",
        why=f"train, dev and test need text each, in passages of at least {SHORTEST} characters",
        fix=f"at least {PASSAGES * SHORTEST:,} characters, or train.bin, dev.bin and test.bin of your own",
        code=errors.DATA,
    )


def _fills_every_split(documents: Iterable[Document]) -> bool:
    sizes = dict.fromkeys(shards.SPLITS, 0)
    for document in documents:
        sizes[document.split] += len(document.content)
    return min(sizes.values()) >= LEAST_SHARE * sum(sizes.values())


_BREAKS = [re.compile(p) for p in (r"\n[^\S\n]*\n\s*|\r[^\S\r\n]*\r\s*", r"\n|\r(?!\n)", r"\s(?=\S)")]


def passages(content: str | np.ndarray, length: int) -> Iterator[str | np.ndarray]:
    """Consecutive pieces that join to `content`: text in pieces of `length` to twice that many characters, ending
    after a blank line if there is one, else after a line, else after a space; ids in pieces of length / 4."""
    if not isinstance(content, str):
        step = max(length // 4, 1)
        yield from (content[i : i + step] for i in range(0, len(content), step))
        return
    start = 0
    while len(content) - start > 2 * length:
        lo, hi = start + length, start + 2 * length
        breaks = (pattern.search(content, lo, hi) for pattern in _BREAKS)
        stop = next((found.end() for found in breaks if found), hi)
        yield content[start:stop]
        start = stop
    yield content[start:]
