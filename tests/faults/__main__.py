"""`python tests/faults [quick] [NAME ...]`: prove the promises, print the table of docs/reliability.md, and fail if
one does not hold."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from forks import Child, Line

from hectogpt import hardware, process

# Each in a process of its own, in this order.
PROOFS = ("killed", "power_cut", "damage", "two_at_once", "hostile", "surroundings", "bugs")


def main(arguments: list[str]) -> int:
    """Run the proofs that are named, or all of them. Returns the exit code."""
    quick = arguments[:1] == ["quick"]
    names = [name for name in arguments if name != "quick"] or list(PROOFS)
    if unknown := [name for name in names if name not in PROOFS]:
        print(f"no proof {unknown[0]!r}: choose among {', '.join(PROOFS)}", file=sys.stderr)
        return 2
    begun = time.monotonic()
    print(f"{where()}\n\n| promise | held | seconds |\n|---|---|---|")
    sys.path.append(str(Path(__file__).parents[1]))  # for what proofs share with other tests
    torch.set_num_threads(1)  # so that this process can be forked
    importlib.import_module("hectogpt.python")  # with all that the children need
    lines: list[Line] = []
    for name in names:
        for line in prove(name, quick):
            lines.append(line)
            print(row_of(line), flush=True)
    tries, faults = sum(line.tries for line in lines), sum(len(line.faults) for line in lines)
    print(f"{'quick ' if quick else ''}proof: {faults} faults in {tries:,} tries, {time.monotonic() - begun:.0f} s")
    return int(faults > 0)


def prove(name: str, quick: bool) -> list[Line]:
    """The lines of a proof. One that ends by an exception has failed."""
    begun = time.monotonic()
    child = Child(lambda: [asdict(line) for line in importlib.import_module(name).check(quick)])
    ended = child.wait(kill_after=3600)
    if ended.code != 0:
        said = " ".join(ended.said.split()[-100:])
        return [Line(name, 1, [f"it ended with {ended.code}: {said}"], time.monotonic() - begun)]
    return [Line(**line) for line in ended.value]


def row_of(line: Line) -> str:
    """A line as a row of the table: promise, held, seconds, and the first faults."""
    faults = "".join(f" {' '.join(fault[:400].replace('|', '/').split())} |" for fault in line.faults[:5])
    held = line.tries - min(len(line.faults), line.tries)
    return f"| {line.promise} | {held}/{line.tries} | {line.seconds:.1f} |{faults}"


def where() -> str:
    """When and on what the table was measured."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "safetensors", "numpy")]
    revision = process.revision(Path(process.__file__).parent)
    commit = f"commit {(revision.commit or 'unknown')[:12]}" + (" with changes" if revision.dirty else "")
    cores = f"{hardware.usable_cores()} cores with a load of {os.getloadavg()[0]:.0f}"
    machine = f"{hardware.device_name('cpu')}, {cores}, Python {platform.python_version()}"
    return f"Measured on {time.strftime('%Y-%m-%d')}: {machine}, {', '.join(versions)}, {commit}."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
