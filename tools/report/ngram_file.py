"""N-gram baselines that were counted after their trials: records of earlier versions lack the strongest two."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.json_files import parse_json_object, read_bytes
from hectogpt.lab.record import Record
from hectogpt.serialization import dump, load
from hectogpt.training.run import Data

LATER = ("mkn5", "best")  # what records of earlier versions lack
SAME = 2e-5  # nats per token: the trigram's loss there and in the record, which rounding may part


@dataclass(frozen=True)
class NgramFile:
    """The lines of a file of `python -m tools.ngrams`. rows: by what was read and scored."""

    rows: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path | None) -> NgramFile:
        """The file; nothing without one. Raises UserError (DATA) for a line that is none of its kind."""
        if path is None or not path.exists():
            return cls()
        rows: dict[str, Mapping[str, float]] = {}
        try:
            lines = read_bytes(path).splitlines()
        except OSError as error:
            raise UserError(f"cannot read {path}", why=error.strerror or str(error), code=errors.DATA) from None
        for number, line in enumerate(lines, start=1):
            try:
                row = parse_json_object(line)
                data = dump(load(Data, row["data"]))  # with the fields of today
                key = _key(row["train_sha256"], row["split"], row["seed"], row["steps"], data)
                rows[key] = {name: float(row[name]) for name in ("kn3", *LATER)}
            except (UserError, ValueError, KeyError, TypeError, AttributeError) as error:
                why = f"it has no usable {error}" if isinstance(error, KeyError) else str(error)
                raise UserError(f"{path}, line {number}: no n-gram baselines", why=why, code=errors.DATA) from None
        return cls(rows)

    def find(self, record: Record) -> Mapping[str, float] | None:
        """The baselines of the text that a trial read, on the split that its own baselines are of."""
        run = record.parsed_run()
        if run is None or record.ngram_split is None:
            return None
        sha256 = record.corpus_sha256.get("train", "")
        return self.rows.get(_key(sha256, record.ngram_split, record.seed, run.steps, dump(run.data)))

    def complete(self, records: Sequence[Record]) -> list[Record]:
        """The records, with the baselines that they lack where the file has them. Raises UserError (DATA) where the
        trigram of the file is not that of the record."""
        return [self._complete(record) for record in records]

    def _complete(self, record: Record) -> Record:
        found = self.find(record) if record.ngram_best is None and self.rows else None
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
