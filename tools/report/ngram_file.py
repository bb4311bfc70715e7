"""N-gram baselines that were counted after their trials: records of earlier versions lack the strongest two."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.lab.record import Record
from hectogpt.serialization import dump, load
from hectogpt.training.run import Data

SAME = 2e-5  # nats per token: the trigram's loss there and in the record, which rounding may part


class NgramFile:
    """The lines of a file of `python -m tools.ngrams`, by what was read and scored; nothing without a file."""

    def __init__(self, path: Path) -> None:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._rows: dict[str, dict[str, Any]] = {}
        for row in map(json.loads, lines):
            data = dump(load(Data, row["data"]))  # with the fields of today
            self._rows[_key(row["train_sha256"], row["split"], row["seed"], row["steps"], data)] = row

    def find(self, record: Record) -> dict[str, Any] | None:
        """The baselines of the text that a trial read, on the split that its own baselines are of."""
        run = record.parsed_run()
        if run is None or record.ngram_split is None:
            return None
        sha256 = record.corpus_sha256.get("train", "")
        return self._rows.get(_key(sha256, record.ngram_split, record.seed, run.steps, dump(run.data)))

    def complete(self, records: Sequence[Record]) -> list[Record]:
        """The records, with the baselines that they lack where the file has them. Raises UserError (DATA) where the
        trigram of the file is not that of the record."""
        return [record if record.ngram_best is not None else self._complete(record) for record in records]

    def _complete(self, record: Record) -> Record:
        found = self.find(record)
        if found is None:
            return record
        if record.ngram_kn3 is None or abs(found["kn3"] - record.ngram_kn3) > SAME:
            raise UserError(
                f"{record.corpus}, seed {record.seed}: the trigram counted later has {found['kn3']}",
                why=f"the record has {record.ngram_kn3}",
                fix="count again with `python -m tools.ngrams`",
                code=errors.DATA,
            )
        return replace(record, ngram_mkn5=found["mkn5"], ngram_best=found["best"])


def _key(train_sha256: str, split: str, seed: int, steps: int, data: Any) -> str:
    return json.dumps([train_sha256, split, seed, steps, data], sort_keys=True, allow_nan=False)
