"""Bytes to text without loss: nothing is replaced, and line ends and byte order marks stay.

Raises UserError (DATA) for binary files and for bytes that are not text in the given encoding, with the offset, the
line and a guess at what they are.
"""

from __future__ import annotations

import codecs
from pathlib import Path

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.json_files import open_regular

WIDE = ("utf-16", "utf-32")  # text in these encodings has NUL bytes
UNICODE = ("utf-8", "utf-16", "utf-32", "ascii", "iso8859-1")  # codecs that never give half of a surrogate pair
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


def cannot_use(name: str, why: str, fix: str) -> UserError:
    """The error for a corpus, a file or a line that cannot be used."""
    shown = name if len(name) <= 200 else f"{name[:200]}..."
    return UserError(f"cannot use {shown} as a corpus", why=why, fix=fix, code=errors.DATA)


def cannot_read(name: str, error: OSError) -> UserError:
    """The error for a file that the operating system does not let us read."""
    where = f"{error.filename}: " if error.filename and str(error.filename) != name else ""
    return cannot_use(name, where + (error.strerror or str(error)), "check the path and its permissions")


def read_text(path: Path, codec: str, binary: bool) -> str:
    """A whole file as text. codec, binary: as in `decode`. Raises UserError (DATA), also for a file without text."""
    try:
        with open_regular(path) as file:
            raw = file.read()
    except OSError as error:
        raise cannot_read(str(path), error) from None
    if not raw.strip():
        what = "whitespace only" if raw else "empty"
        raise cannot_use(str(path), f"the file is {what} ({len(raw):,} bytes)", "name a file with text")
    return decode(raw, str(path), codec, binary)


def decode(raw: bytes, label: str, codec: str, binary: bool) -> str:
    """Bytes as text.

    codec: Python's name of the encoding. binary: accept bytes that look binary or like another encoding. label: what
    messages call the bytes. Raises UserError (DATA) with offset and line instead of replacing a byte.
    """
    if not binary and (why := describe_binary(raw, codec)):
        raise UserError(
            f"{label} is binary, not text",
            why=why,
            fix="name a text file, or set force to True if this is text",
            code=errors.DATA,
        )
    try:
        if not binary and (guess := _other_encoding(raw, codec)):
            at = max(raw.find(b"\0"), 0)
            raise UnicodeDecodeError(codec, raw, at, at + 1, f"it looks like {guess}")
        text = raw.decode(codec)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{label} is not {codec} text",
            why=f"byte 0x{raw[error.start]:02x} at offset {error.start:,} (line {line:,}): {error.reason}",
            fix=f"set encoding to {_guess_encoding(raw) or 'latin-1'}",
            code=errors.DATA,
        ) from None
    if not codec.startswith(UNICODE):  # Python's other codecs may give half of a surrogate pair
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            why = f"{codec} gives the lone surrogate U+{ord(text[error.start]):04X} at character {error.start:,}"
            raise cannot_use(label, why, "set encoding to utf-8") from None
    return text


def describe_binary(raw: bytes, codec: str) -> str:
    """What makes these bytes binary, such as "PNG image at offset 0"; "" if they may be text in some encoding."""
    if kind := _kind_by_signature(raw):
        return f"{kind} at offset 0"
    if codec.startswith(WIDE) or _other_encoding(raw, codec) or b"\0" not in raw:
        return ""
    return f"NUL byte at offset {raw.index(0):,}"


def _kind_by_signature(raw: bytes) -> str:
    return next((kind for start, kind in SIGNATURES.items() if raw.startswith(start)), "")


def _other_encoding(raw: bytes, codec: str) -> str:
    """The encoding that these bytes seem to be in if it is not `codec`, else ""."""
    return "" if codec.startswith(WIDE) or _kind_by_signature(raw) else _guess_encoding(raw)


def _guess_encoding(raw: bytes) -> str:
    """utf-32 or utf-16 by the byte order mark, or utf-16-le/be by NULs in every other byte of the start; else ""."""
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
