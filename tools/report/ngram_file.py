"""N-gram baselines that were counted after their trials: records of earlier versions lack the strongest two."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.lab.record import Record

SAME = 2e-5  # nats per token: the trigram's loss there and in the record, which rounding may part


# What was read and scored: SHA-256 of the training text, split, seed, steps, data.
Key = tuple[str, str, int, int, str]


def read_ngrams(path: Path) -> dict[Key, dict[str, Any]]:
    """The lines of a file of `python -m tools.research.ngrams`; {} without a file."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines() if path.exists() else [])
    return {(r["train_sha256"], r["split"], r["seed"], r["steps"], json.dumps(r["data"])): r for r in rows}


def find_ngrams(rows: Mapping[Key, dict[str, Any]], record: Record) -> dict[str, Any] | None:
    """The baselines of the text that a trial read, on the split that its own baselines are of."""
    sha256 = record.corpus_sha256.get("train", "")
    read = json.dumps(record.run.get("data"))
    return rows.get((sha256, record.ngram_split or "", record.seed, record.run["steps"], read))


def completed(rows: Mapping[Key, dict[str, Any]], record: Record) -> Record:
    """The record, with the baselines that it lacks and the file has. Raises UserError (DATA) where the trigram of the
    file is not that of the record."""
    found = find_ngrams(rows, record)
    if record.ngram_best is not None or found is None:
        return record
    if record.ngram_kn3 is None or abs(found["kn3"] - record.ngram_kn3) > SAME:
        raise UserError(
            f"{record.corpus}, seed {record.seed}: the trigram counted later has {found['kn3']}",
            why=f"the record has {record.ngram_kn3}",
            fix="count again with `python -m tools.research.ngrams`",
            code=errors.DATA,
        )
    return replace(record, ngram_mkn5=found["mkn5"], ngram_best=found["best"])
