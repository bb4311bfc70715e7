"""Bytes to text without loss: nothing is replaced, no line end or byte order mark rewritten.

Refuses binary files and bytes that are not text in the given encoding, with their offset, line and likely nature.
"""

from __future__ import annotations

import codecs
from pathlib import Path

from hectogpt import errors
from hectogpt.errors import UserError

BINARY = "is binary, not text"
SIGNATURES = {
    b"\x89PNG": "PNG image",
    b"\xff\xd8\xff": "JPEG image",
    b"GIF8": "GIF image",
    b"\x7fELF": "ELF program",
    b"MZ\x90": "Windows program",
    b"PK\x03\x04": "zip archive",
    b"\x1f\x8b": "gzip archive",
    b"\xfd7zXZ": "xz archive",
    b"%PDF-": "PDF document",
    b"PAR1": "Parquet table",
}


def unusable(name: str, why: str, fix: str) -> UserError:
    """The error for a corpus, file or line that cannot be used."""
    return UserError(f"cannot use {name} as a corpus", why=why, fix=fix, code=errors.DATA)


def read_text(path: Path, codec: str, force: bool) -> str:
    """A whole file as text; line ends, byte order mark and all else kept."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise unusable(str(path), str(error.strerror), "check the path and its permissions") from None
    if not raw.strip():
        what = "whitespace only" if raw else "empty"
        raise unusable(str(path), f"the file is {what} ({len(raw):,} bytes)", "name a file with text")
    return decode(raw, str(path), codec, force)


def decode(raw: bytes, label: str, codec: str, force: bool) -> str:
    """Bytes to text; UserError (DATA) with offset and line instead of a silent replacement."""
    wide = codec.startswith(("utf-16", "utf-32"))  # NULs are part of these
    kind = next((kind for start, kind in SIGNATURES.items() if raw.startswith(start)), "")
    guess = "" if kind or wide else _guess_encoding(raw)
    nul = -1 if wide else raw.find(b"\0")
    if not force and not guess and (kind or nul >= 0):
        raise UserError(
            f"{label} {BINARY}",
            why=f"{kind} at offset 0" if kind else f"NUL byte at offset {nul:,}",
            fix="name a text file, or --force if this is text all the same",
            code=errors.DATA,
        )
    try:
        if guess and not force:
            at = max(nul, 0)
            raise UnicodeDecodeError(codec, raw, at, at + 1, f"it looks like {guess}")
        return raw.decode(codec)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{label} is not {codec} text",
            why=f"byte 0x{raw[error.start]:02x} at offset {error.start:,} (line {line:,}): {error.reason}",
            fix=f"--encoding {guess or _guess_encoding(raw) or 'latin-1'}",
            code=errors.DATA,
        ) from None


def _guess_encoding(raw: bytes) -> str:
    """utf-32 or utf-16 by its mark, or utf-16-le/be by NULs in every other byte of the start; else ""."""
    for mark, name in (
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if raw.startswith(mark):
            return name
    start = raw[:1024]
    even, odd = start[0::2].count(0), start[1::2].count(0)
    if len(raw) % 2 == 0 and max(even, odd) > len(start) // 4 and min(even, odd) <= len(start) // 64:
        return "utf-16-le" if odd > even else "utf-16-be"
    return ""
