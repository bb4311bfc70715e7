"""`python tests/faults [quick] [NAME ...]`: prove the promises, print a line for each, fail if one does not hold.

A full run of all proofs writes the table in docs/reliability.md.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

from forks import Child, Line

# Each in a process of its own, in this order.
PROOFS = ("killed", "power_cut", "damage", "storage", "two_at_once", "hostile", "records", "surroundings", "bugs")
TESTED = ("hostile", "records")  # which `make test` tries as often as `quick` does
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- proof: begin -->", "<!-- proof: end -->"


def main(arguments: list[str]) -> int:
    """Run the proofs that are named, or all of them. Returns the exit code."""
    quick = arguments[:1] == ["quick"]
    usual = [name for name in PROOFS if not quick or name not in TESTED]
    names = [name for name in arguments if name != "quick"] or usual
    if unknown := [name for name in names if name not in PROOFS]:
        print(f"no proof {unknown[0]!r}: choose among {', '.join(PROOFS)}", file=sys.stderr)
        return 2
    begun = time.monotonic()
    load()
    lines: list[Line] = []
    for name in names:
        for line in prove(name, quick):
            lines.append(line)
            print(text_of(line), flush=True)
    failures = sum(line.failures for line in lines)
    tries = sum(line.tries for line in lines)
    print(f"{'quick ' if quick else ''}proof: {tries - failures:,}/{tries:,} ok, {time.monotonic() - begun:.0f} s")
    if not quick and names == list(PROOFS):
        write_table(lines)
    return int(failures > 0)


def load() -> None:
    """Load what the children need, with one thread, so that they can be forked."""
    import torch

    torch.set_num_threads(1)
    importlib.import_module("hectogpt.python")


def prove(name: str, quick: bool) -> list[Line]:
    """The lines of a proof. One that ends by an exception has failed."""
    begun = time.monotonic()
    child = Child(lambda: [asdict(line) for line in importlib.import_module(name).check(quick)])
    ended = child.wait(kill_after=1200)
    if ended.code != 0:
        said = " ".join(ended.said.split()[-100:])
        return [Line(name, 1, 1, time.monotonic() - begun, f"it ended with {ended.code}: {said}")]
    return [Line(**line) for line in ended.value]


def text_of(line: Line) -> str:
    """A line as it is printed: `killed anywhere: 200/200 ok, 0 lost, 30.1 s`."""
    parts = [f"{line.promise}: {line.tries - line.failures}/{line.tries} ok", line.detail, f"{line.seconds:.1f} s"]
    return ", ".join(part for part in parts if part)


def write_table(lines: list[Line]) -> None:
    """Put the lines into docs/reliability.md, between its two markers."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    rows = [
        f"| {cell(line.promise)} | {line.tries - line.failures}/{line.tries} | {cell(line.detail)} | "
        f"{line.seconds:.1f} |"
        for line in lines
    ]
    table = "\n".join(["| promise | held | | seconds |", "|---|---|---|---|", *rows])
    PAGE.write_text(f"{before}{BEGIN}\n{where()}\n\n{table}\n{END}{after}", encoding="utf-8")


def cell(text: str) -> str:
    """Text for a cell of a table."""
    return " ".join(text.replace("|", "\\|").split())[:200]


def where() -> str:
    """When and on what the table was measured."""
    from hectogpt import hardware, process

    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "safetensors", "numpy")]
    revision = process.revision(ROOT / "hectogpt")
    commit = f"commit {(revision.commit or 'unknown')[:12]}" + (" with changes" if revision.dirty else "")
    cores = f"{hardware.usable_cores()} cores with a load of {os.getloadavg()[0]:.0f}"
    machine = f"{hardware.device_name('cpu')}, {cores}, Python {platform.python_version()}"
    return f"Measured on {time.strftime('%Y-%m-%d')}: {machine}, {', '.join(versions)}, {commit}."
