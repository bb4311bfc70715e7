"""JSON files of others: regular, of a limited size, and without what Python reads and nobody means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.json_files import DEEPEST, LARGEST, read_bytes, read_json_object


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"a": 1', "not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "1e999"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a":' * (DEEPEST + 1) + b"1" + b"}" * (DEEPEST + 1), "too deeply"),
        (b'{"a":' * 100_000, "too deeply"),
        (b'{"a": 1}' + b" " * LARGEST, "at most 16,777,216 are read"),
    ],
)
def test_what_is_refused(content: bytes, why: str, tmp_path: Path) -> None:
    """D5: nesting ends in a sentence, not in a RecursionError."""
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*x\.json") as caught:
        read_json_object(path, fix="mend it", code=errors.DATA)
    assert why in caught.value.why
    assert (caught.value.fix, caught.value.code) == ("mend it", errors.DATA)


def test_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": [NaN, 1e999, 1.5, 2, true, null, "é"], "b": {}}', encoding="utf-8")
    assert read_json_object(path, nan_as_none=True) == {"a": [None, None, 1.5, 2, True, None, "é"], "b": {}}
    (tmp_path / "link").symlink_to(path)
    assert read_bytes(tmp_path / "link") == path.read_bytes()


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """D5: a pipe would be waited for, a device be read without end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("pipe", "device", "loop", "nowhere", "."):
        with pytest.raises(UserError) as caught:
            read_json_object(tmp_path / name)
        assert caught.value.why
