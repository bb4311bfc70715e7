"""`hectogpt bench`: the recorded side-by-side timings as tables."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hectogpt import errors
from hectogpt.cli.console import one_line, output_console
from hectogpt.errors import UserError
from hectogpt.json_files import parse_json_object, read_bytes

RECORDS = Path("results/bench.jsonl")
EXAMPLES = """\
  hectogpt bench
  hectogpt bench --json"""


@dataclass(frozen=True)
class BenchArguments:
    """Draw the newest timing of every question from its records; `make bench` in a checkout makes new ones."""

    records: Path = RECORDS
    """The timings, a line each."""
    json: bool = False
    """Print the newest records as JSON lines."""


def main(argv: list[str]) -> None:
    """Run the command."""
    import tyro
    from rich.table import Table
    from rich.text import Text

    arguments = tyro.cli(BenchArguments, args=argv, prog="hectogpt bench")
    if arguments.records == RECORDS and not RECORDS.exists():
        raise UserError(
            f"no {RECORDS} here",
            why="the timings are part of a checkout of the repository, not of the installed package",
            fix="run it in a checkout, or name a file with --records FILE",
            code=errors.DATA,
        )
    newest = read(arguments.records)
    if arguments.json:
        print("\n".join(json.dumps(record, allow_nan=False) for record in newest))
        return
    console = output_console()
    for record in newest:
        where = f"{record['machine']}, {record['threads']} threads, {record['date'][:10]}, {record['commit']}"
        columns = list(dict.fromkeys(key for row in record["rows"] for key in row))
        table = Table(title=Text(one_line(f"{record['question']} ({where})"), "italic"), title_justify="left")
        for column in columns:
            table.add_column(
                Text(one_line(column.replace("_", " "))), justify="left" if column == "contender" else "right"
            )
        for row in record["rows"]:
            table.add_row(*(_cell(row.get(column)) for column in columns))
        console.print(table)


def _cell(value: Any) -> Any:
    from rich.text import Text

    return Text("" if value is None else f"{value:,}" if isinstance(value, int) else one_line(str(value)))


def read(path: Path) -> list[dict[str, Any]]:
    """The newest record of each question and setting, in the order in which these were recorded.

    Raises UserError (data) for a file that is missing, empty or not JSON lines of ours, naming the line.
    """
    try:
        lines = read_bytes(path).splitlines()
    except OSError as error:
        raise UserError(
            f"cannot read {path}",
            why=error.strerror or str(error),
            fix="make bench in a checkout, or --records FILE",
            code=errors.DATA,
        ) from None
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json_object(line)
            check(record)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not a timing", why=str(error), code=errors.DATA) from None
        newest.pop(key := (record["question"], setting_of(record)), None)
        newest[key] = record
    if not newest:
        raise UserError(f"{path} is empty", fix="make bench", code=errors.DATA)
    return list(newest.values())


def setting_of(record: dict[str, Any]) -> str:
    """What a record's question was asked of, in words; "" where it has no settings."""
    row = record["rows"][0]
    return ", ".join(f"{key} {row[key]}" for key in ("setting", "d") if key in row)


def check(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a record. Raises ValueError for one without the fields that are shown."""
    texts = ("question", "machine", "date", "commit")
    odd = [name for name in texts if not isinstance(record.get(name), str)]
    odd += [] if isinstance(record.get("threads"), int) else ["threads"]
    rows = record.get("rows")
    odd += [] if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows) else ["rows"]
    if odd:
        raise ValueError(f"it has no usable {', '.join(odd)}")
    found: list[dict[str, Any]] = record["rows"]
    return found
