"""Baselines that were counted later reach the records that lack them, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reports import make_row, write_rows

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.lab.record import Record, read_records
from tools.report.ngram_file import NgramFile


def records(tmp_path: Path, **changes: object) -> list[Record]:
    """Seeds 0 and 1 of the baseline, without the two newest baselines."""
    older = {"ngram_mkn5": None, "ngram_best": None} | changes
    rows = [make_row("baseline", seed) | older for seed in (0, 1)]
    return read_records(write_rows(tmp_path / "records.jsonl", rows))


def line(record: Record, **changes: object) -> str:
    """What the tool writes of a record."""
    row = {"train_sha256": record.corpus_sha256["train"], "split": record.ngram_split, "seed": record.seed}
    row |= {"steps": record.run["steps"], "data": record.run["data"], "kn3": 3.33, "mkn5": 3.2, "best": 2.9}
    return json.dumps(row | changes)


def test_a_record_that_lacks_them_gets_its_own(tmp_path: Path) -> None:
    first, second = records(tmp_path)
    (tmp_path / "n.jsonl").write_text(line(first) + "\n")
    found = NgramFile.read(tmp_path / "n.jsonl").complete([first, second])
    assert [(r.ngram_mkn5, r.ngram_best) for r in found] == [(3.2, 2.9), (None, None)]
    for changes in ({"split": "dev"}, {"steps": 3}, {"data": {"seq_len": 3}}, {"train_sha256": "another"}):
        (tmp_path / "n.jsonl").write_text(line(first, **changes) + "\n")
        assert NgramFile.read(tmp_path / "n.jsonl").complete([first]) == [first], changes
    assert NgramFile.read(tmp_path / "none").complete([first]) == [first]


def test_a_line_without_newer_fields_is_of_their_defaults(tmp_path: Path) -> None:
    first, _ = records(tmp_path)
    older = {name: value for name, value in first.run["data"].items() if name in ("batch_size", "seq_len")}
    (tmp_path / "n.jsonl").write_text(line(first, data=older) + "\n")
    assert NgramFile.read(tmp_path / "n.jsonl").complete([first])[0].ngram_best == 2.9


def test_a_record_that_has_them_keeps_them(tmp_path: Path) -> None:
    first, _ = records(tmp_path, ngram_mkn5=3.1, ngram_best=3.0)
    (tmp_path / "n.jsonl").write_text(line(first) + "\n")
    assert NgramFile.read(tmp_path / "n.jsonl").complete([first]) == [first]


def test_another_trigram_is_refused(tmp_path: Path) -> None:
    first, _ = records(tmp_path)
    (tmp_path / "n.jsonl").write_text(line(first, kn3=3.4) + "\n")
    with pytest.raises(UserError, match=r"seed 0.* 3\.4"):
        NgramFile.read(tmp_path / "n.jsonl").complete([first])


@pytest.mark.parametrize("damage", ["{", "[]", '{"train_sha256": "a"}', "nan"])
def test_a_damaged_line_is_named(tmp_path: Path, damage: str) -> None:
    (tmp_path / "n.jsonl").write_text(line(records(tmp_path)[0]) + "\n" + damage + "\n")
    with pytest.raises(UserError, match="line 2") as caught:
        NgramFile.read(tmp_path / "n.jsonl")
    assert caught.value.code == errors.DATA
