"""Seconds of a hundred steps by recipe and corpus, measured on one machine in one pass (`python -m bench recipes`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.json_files import parse_json_object, read_bytes

QUESTION = "seconds of 100 steps"


@dataclass(frozen=True)
class Seconds:
    """The newest pass. of: (corpus, recipe) -> seconds. stand_in: corpora whose text was not there, so that one of the
    same shapes was read. where: machine, threads, date and commit in words; empty without a pass."""

    of: dict[tuple[str, str], float] = field(default_factory=dict)
    stand_in: tuple[str, ...] = ()
    rounds: int = 0
    where: str = ""


NO_SECONDS = Seconds()


def read_seconds(path: Path | None) -> Seconds:
    """The newest seconds of each corpus among the timings in a file, all of the newest pass's machine, threads and
    commit; none without the file. Raises UserError (DATA) for a line that is no timing."""
    if path is None or not path.exists():
        return NO_SECONDS
    try:
        lines = read_bytes(path).splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}", why=error.strerror or str(error), code=errors.DATA) from None
    found: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json_object(line)
            if record.get("question") == QUESTION:
                found.append((*_checked(record), record["rows"]))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            why = f"it has no usable {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path}, line {number}: not a timing", why=why, code=errors.DATA) from None
    if not found:
        return NO_SECONDS
    same = ("machine", "threads", "commit")
    newest = found[-1][1]
    by_corpus = {corpus: rows for corpus, record, rows in found if all(record[n] == newest[n] for n in same)}
    of = {(corpus, row["contender"]): float(row["seconds"]) for corpus, rows in by_corpus.items() for row in rows}
    stand_in = tuple(corpus for corpus, rows in by_corpus.items() if rows[0].get("text") == "stand-in")
    where = f"{newest['machine']}; {newest['threads']} threads; {newest['date'][:10]}, commit {newest['commit']}"
    return Seconds(of, stand_in, int(newest["rows"][0].get("rounds", 0)), where)


def _checked(record: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The corpus of a timing, and the timing. Raises KeyError, TypeError or ValueError for one without what is read."""
    for name, kind in (("machine", str), ("threads", int), ("date", str), ("commit", str), ("rows", list)):
        if not isinstance(record[name], kind):
            raise KeyError(name)
    for row in record["rows"]:
        if not (isinstance(row["contender"], str) and isinstance(row["setting"], str) and float(row["seconds"]) > 0):
            raise ValueError("a row has no recipe, corpus or seconds")
    return record["rows"][0]["setting"], record
