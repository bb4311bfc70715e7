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
from hectogpt.training.plot import plain_text, save_figure


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
        ({"losses": [3.0, "x"]}, "field 'losses' is [3.0, 'x']; item 2 is 'x'; it should be a number"),
        ({"seed": 2**64}, "it should be a whole number of at most 64 bits"),
        ({"overrides": ["steps"]}, "field 'overrides' is ['steps']; it should be an object"),
        ({"run": {}}, "field 'run' is {}; it has no steps"),
        ({"run": {"steps": "9"}}, "its steps: it should be a whole number"),
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


def test_dollars_are_no_mathematics(tmp_path: Path) -> None:
    figure = Figure()
    for text in ("$\\frac{$", "$x$ and \\$y\\$", "\ud800", "a\0b", "日本"):
        figure.text(0.5, 0.5, plain_text(text))
    save_figure(figure, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().endswith(b"IEND\xaeB`\x82")


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
    curve = baseline_curves.Curve("sotu", corpus.sha256["train"], 3, 0, (3.0,) * 3, (1.0,) * 3, 3.0, 1.0)
    path = baseline_curves.save(curve)
    assert path is not None
    assert baseline_curves.find(corpus, 3) == curve
    good = json.loads(path.read_text())
    for damage in (b"", path.read_bytes()[:50], b"\xff\xfe", b"[]", b"{}", b"[" * 100_000):
        path.write_bytes(damage)
        assert baseline_curves.find(corpus, 3) is None
    for change in ({"losses": [1.0]}, {"losses": ["x"] * 3}, {"dev_loss": "nan"}, {"more": 1}, {"grad_norms": []}):
        path.write_text(json.dumps(good | change))
        assert baseline_curves.find(corpus, 3) is None
    path.unlink()
    path.mkdir()
    assert baseline_curves.find(corpus, 3) is None
    assert baseline_curves.save(curve) is None
    assert baseline_curves.find(corpus, 100) is not None, "the packaged one"
