"""`hectogpt watch [RUN ...]`: a local page with the curves of runs while they train, their samples and attention."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from hectogpt import errors
from hectogpt.cli.console import one_line
from hectogpt.cli.run_records import RUNNING, UNFINISHED, RunRecord, find_runs, read_record
from hectogpt.cli.show import choose
from hectogpt.cli.snapshots import Snapshots
from hectogpt.display import NGRAMS, printable
from hectogpt.errors import UserError
from hectogpt.explore.watch.rows import Rows
from hectogpt.explore.watch.server import Server
from hectogpt.signals import Stopped, raise_on_signal

EXAMPLES = """\
  hectogpt watch                          while `hectogpt train` runs in another terminal
  hectogpt watch runs/minute runs/minute-2
  hectogpt watch copied-from-elsewhere --no-browser --port 4000"""

MOST_RUNS = 28  # lines that can be told apart: seven colours, four dashes each
RESCAN_SECONDS = 2.0  # between looks for new runs below ./runs
LEVELS = ("unigram", "kn2", "kn3", "best")  # n-gram models whose losses are drawn
FRESH_SECONDS = 60.0  # a folder whose last row is younger may be a copy of one that is being trained


@dataclass(frozen=True)
class WatchArguments:
    """Show runs in the browser while they train: loss, gradient norm, learning rate, tokens per second; samples and
    attention of their checkpoints. Only reads: a run is neither slowed nor changed. Ctrl-C ends it.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Folders of runs, or names below runs/ (default: the newest there, those in training, and those that begin)."""
    prompt: str | None = None
    """Text that the checkpoints continue, and whose attention is drawn."""
    idea: tuple[Path, ...] = ()
    """Your own file, FILE.py, if a run has classes of it; it is imported."""
    port: int | None = None
    """Port on 127.0.0.1 (default: a free one)."""
    no_browser: bool = False
    """Print the address and open nothing."""


class Watched:
    """A run on the page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = Rows(folder / "metrics.jsonl")
        self.record: RunRecord | None = None
        self.problem = ""
        self._told: tuple[Any, ...] = ()

    def refresh(self) -> bool:
        """Look at the folder again; whether the page has to change."""
        changed = self.rows.refresh()
        try:
            self.record, self.problem = read_record(self.folder), ""
        except UserError as error:  # it is being copied, say
            self.record = None
            self.problem = printable(f"{error.what}: {error.why}")
        record = self.record
        told = (record and (record.state, record.planned, len(record.summary)), self.problem, self.told())
        changed, self._told = changed or told != self._told, told
        return changed

    def told(self) -> str:
        """The run's state in a word or two."""
        if self.record is None:
            return "unreadable"
        if self.record.state == UNFINISHED:
            return "copied, growing" if time.time() - self.record.modified < FRESH_SECONDS else UNFINISHED
        return self.record.state

    def as_json(self, number: int, name: str) -> dict[str, Any]:
        """What the page needs of the run."""
        record, rows = self.record, self.rows.drawn()
        ngrams = record.ngrams() if record else {}
        training = record is not None and record.state in (RUNNING, UNFINISHED)
        return {
            "id": number,
            "name": name,
            "state": record.state if record else "",
            "told": self.told(),
            "step": rows["step"][-1] if len(self.rows) else None,
            "planned": record.planned if record else None,
            "left": self.rows.remaining(record.planned) if record and training else None,
            "rows": rows,
            "scores": self.rows.scores[-1:] if not training else [],
            "ngrams": {NGRAMS[key]: ngrams[key] for key in LEVELS if key in ngrams},
            "samples": {how: printable(text) for how, text in record.samples().items()} if record else {},
            "waiting": _waiting(self.folder, training),
        }


def _waiting(folder: Path, training: bool) -> str:
    """Why there is no sample yet."""
    if (folder / "model.safetensors").is_file() or next(folder.glob("checkpoints/step-*"), None) is not None:
        return "Opening the newest checkpoint; the first one takes some seconds, more on a busy machine."
    if training:
        return "Waiting for the run's first checkpoint: by default one is saved every 10 s."
    return "This folder has neither checkpoints nor weights."


class Folders:
    """The runs that the page shows, as the server asks for them."""

    def __init__(self, named: list[Path], snapshots: Snapshots, root: Path = Path("runs")) -> None:
        self.runs = [Watched(folder) for folder in named]
        self.root = None if named else root
        self.snapshots, self.version, self.notes = snapshots, 0, list[str]()
        self._scanned = 0.0
        self._begun: float | None = None

    def data(self, model_of: int | None) -> dict[str, Any]:
        """The curves of all runs, read anew."""
        if self.root is not None and time.monotonic() - self._scanned > RESCAN_SECONDS:
            self._scan(self.root)
        for run in self.runs:
            self.version += run.refresh()
        if model_of is not None and model_of < len(self.runs):
            self.snapshots.want(model_of, self.runs[model_of].folder)
        folders = [run.folder for run in self.runs]
        told = [run.as_json(n, name) for n, (run, name) in enumerate(zip(self.runs, names(folders), strict=True))]
        for n, row in enumerate(told):
            row |= {"snapshots": self.snapshots.steps(n), "problem": self.snapshots.problems.get(n, "")}
        problems = [run.problem for run in self.runs if run.problem]
        return {"version": self.version, "runs": told, "notes": problems + self.notes}

    def snapshot(self, run: int, step: int) -> dict[str, Any] | None:
        """A snapshot that `data` has told of."""
        return self.snapshots.get(run, step)

    def _scan(self, root: Path) -> None:
        """Add the newest run, those in training, and those that have begun since the first look."""
        self._scanned = time.monotonic()
        found, _ = find_runs(root)
        first = self._begun is None
        self._begun = time.time() if self._begun is None else self._begun
        known = {run.folder for run in self.runs}
        for record in found:
            wanted = record.state == RUNNING or (first and record is found[-1]) or _born(record.folder) > self._begun
            if wanted and record.folder not in known:
                if len(self.runs) == MOST_RUNS:
                    self.notes = [f"{MOST_RUNS} runs are shown; later ones are not."]
                    return
                self.runs.append(Watched(record.folder))
                self.version += 1


def _born(folder: Path) -> float:
    try:
        return (folder / "run.json").stat().st_mtime
    except OSError:
        return 0.0


def names(folders: list[Path]) -> list[str]:
    """Short names that differ: the folders' last parts, whole paths where these are equal."""
    last = [folder.resolve().name for folder in folders]
    return [one_line(str(folder) if last.count(name) > 1 else name) for folder, name in zip(folders, last, strict=True)]


def main(argv: list[str]) -> None:
    """Run the command."""
    run(tyro.cli(WatchArguments, args=argv, prog="hectogpt watch"))


def run(arguments: WatchArguments) -> None:
    """Serve the page until a signal. Raises UserError."""
    folders = list(dict.fromkeys(choose(name, Path("runs")) for name in arguments.runs))
    if len(folders) > MOST_RUNS:
        raise UserError(f"{len(folders)} runs", why=f"at most {MOST_RUNS} can be told apart", fix="name fewer")
    for folder in folders:
        read_record(folder)
    if arguments.port is not None and not 1 <= arguments.port <= 65535:
        raise UserError(f"--port {arguments.port}", why="ports are 1 to 65535", fix="leave --port out for a free one")
    board = Folders(folders, Snapshots(arguments.prompt, arguments.idea))
    try:
        server = Server(board, arguments.port)
    except OSError as error:
        where = "the page's server has no port" if arguments.port is None else f"--port {arguments.port}"
        fix = "leave --port out for a free one"
        raise UserError(where, why=error.strerror or str(error), fix=fix) from None
    try:
        with raise_on_signal(), server.entrance() as page:
            print(f"{server.address}\nCtrl-C ends it.", flush=True)
            if not arguments.no_browser:
                webbrowser.open(page.as_uri())  # and not the address: other users can read a command line
            asyncio.run(server.run())
    except Stopped as stop:
        print("ended", file=sys.stderr)
        sys.stdout.flush()
        os._exit(0 if stop.code == errors.INTERRUPTED else stop.code)  # a checkpoint being opened does not hold us up
