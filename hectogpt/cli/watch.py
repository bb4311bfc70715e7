"""`hectogpt watch [RUN ...]`: a local page with the curves of runs while they train, their samples and attention."""

from __future__ import annotations

import threading
import time
import webbrowser
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from hectogpt import errors
from hectogpt.cli.console import one_line
from hectogpt.cli.help import Idea
from hectogpt.cli.show import choose
from hectogpt.display import NGRAMS, OTHER_TOKENS, printable
from hectogpt.errors import UserError
from hectogpt.run_records import RUNNING, UNFINISHED, RunRecord, find_runs, number_of, read_record, read_rows, score_of
from hectogpt.signals import code_of
from hectogpt.web.page import fill
from hectogpt.web.server import PageServer

MOST_RUNS = 6  # colours that can be told apart
RESCAN_SECONDS = 2.0  # between looks for new runs below ./runs
LEVELS = ("unigram", "kn2", "kn3")  # n-gram models whose losses are drawn

# column -> the row's key
COLUMNS = {"step": "step", "loss": "train/loss", "norm": "train/grad_norm", "seconds": "train/dt"}
MOST_BYTES = 8 << 20  # of a file's end that are read, some 30,000 rows, so that a long one does not hold up the page
MOST_POINTS = 1000  # of a curve as it is drawn

Number = float | None


@dataclass(frozen=True)
class Options:
    """Show runs in the browser while they train: loss, gradient norm, seconds a step; what their newest checkpoint
    writes and looks at. Only reads: a run is neither slowed nor changed. Ctrl-C ends it.

    Examples
      hectogpt watch             while `hectogpt train` runs in another terminal
      hectogpt watch runs/minute runs/minute-2
      hectogpt watch copied-from-elsewhere --no-browser --port 4000
    """

    runs: Positional[tuple[str, ...]] = ()
    """Folders of runs, or names below runs/ (default: the newest there, those in training, and those that begin)."""
    prompt: str | None = None
    """Text that the newest checkpoint continues, and whose attention is drawn."""
    idea: Idea = ()
    port: int | None = None
    """Port on 127.0.0.1 (default: a free one)."""
    no_browser: bool = False
    """Print the address and open nothing."""


class Rows:
    """What a metrics.jsonl holds so far, a list of numbers a column. scores: (step, held-out loss).

    It may be another program's, damaged, or replaced while it is read: every value is checked, and half a row waits
    for its end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: dict[str, list[Number]] = {name: [] for name in COLUMNS}
        self.scores: list[tuple[int, float]] = []
        self._seen: tuple[int, ...] = ()  # the file that was read: its device, number, size and time

    def __len__(self) -> int:
        return len(self.columns["step"])

    def refresh(self) -> None:
        """Read the file again if it has changed. One that is not there changes nothing."""
        with suppress(OSError):
            status = self.path.stat()
            now = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if now == self._seen:
                return
            rows = list(read_rows(self.path, MOST_BYTES))
            steps = [row for row in rows if "train/loss" in row]
            scored = [(row["step"], number(score_of(row))) for row in rows if "train/loss" not in row]
            self.columns = {name: [number(row.get(key)) for row in steps] for name, key in COLUMNS.items()}
            self.scores = [(step, score) for step, score in scored if score is not None]
            self._seen = now

    def drawn(self) -> dict[str, list[Number]]:
        """The columns as they are drawn: means over equal blocks if there are more rows than MOST_POINTS; the last row
        stays as it is."""
        columns, size = dict(self.columns), -(-len(self) // MOST_POINTS)
        if size > 1:
            columns = {name: [*_means(values[:-1], size), values[-1]] for name, values in columns.items()}
        return {name: [_short(value) for value in values] for name, values in columns.items()}

    def remaining(self, planned: int | None) -> float | None:
        """Seconds that the planned steps still need, at the median pace of the last ten; None if that is unknown."""
        last = sorted(dt for dt in self.columns["seconds"][-10:] if dt is not None)
        step = self.columns["step"][-1] if len(self) else None
        if not last or planned is None or step is None:
            return None
        return max(planned - step, 0.0) * last[len(last) // 2]


def number(value: Any) -> Number:
    """The value if it is a finite number that a drawing can hold."""
    return None if (found := number_of(value)) is None or abs(found) > 1e15 else found


def _means(values: list[Number], size: int) -> list[Number]:
    blocks = (values[start : start + size] for start in range(0, len(values), size))
    known = ([value for value in block if value is not None] for block in blocks)
    return [sum(block) / len(block) if block else None for block in known]


def _short(value: Number) -> Number:
    """Seven digits: more than any screen shows."""
    return None if value is None else float(f"{value:.7g}")


class Board:
    """The runs on the page. named: those that were asked for; without any, the newest below `root` and those that
    begin."""

    def __init__(self, named: list[Path], prompt: str | None, ideas: tuple[Path, ...], root: Path) -> None:
        self.rows = {folder: Rows(folder / "metrics.jsonl") for folder in named}
        self.root = None if named else root
        self.prompt, self.ideas, self.lock = prompt, ideas, threading.Lock()
        self.looks: dict[Path, dict[str, Any]] = {}
        self.notes: list[str] = []
        self._scanned = 0.0

    def data(self, query: dict[str, str]) -> dict[str, Any]:
        """What the page asks for: all runs, and a look at the one that is named."""
        with self.lock:
            if self.root is not None and time.monotonic() - self._scanned > RESCAN_SECONDS:
                self._scan(self.root)
            names = [one_line(str(folder)) for folder in self.rows]
            runs = [self._run(folder, name) for folder, name in zip(self.rows, names, strict=True)]
            wanted = query.get("look") or (names[-1] if names else "")
            look = self._look(list(self.rows)[names.index(wanted)]) if wanted in names else None
            vocabularies = {run.pop("vocabulary") for run in runs} - {None}
            others = [OTHER_TOKENS] if len(vocabularies) > 1 else []
            return {"runs": runs, "look": look, "notes": self.notes + others}

    def _scan(self, root: Path) -> None:
        found, self.notes = find_runs(root)
        self.notes = [printable(note) for note in self.notes]
        self._scanned = time.monotonic()
        for record in found[-1:] + [record for record in found if record.state == RUNNING]:
            if record.folder not in self.rows and len(self.rows) < MOST_RUNS:
                self.rows[record.folder] = Rows(record.folder / "metrics.jsonl")

    def _run(self, folder: Path, name: str) -> dict[str, Any]:
        rows, record, problem = self.rows[folder], None, ""
        rows.refresh()
        try:
            record = read_record(folder)
        except UserError as error:  # it is being copied, say
            problem = printable(f"{error.what}: {error.why}")
        planned = record.planned if record else None
        training = record is not None and record.state in (RUNNING, UNFINISHED)
        ngrams = record.ngrams() if record else {}
        return {
            "name": name,
            "state": record.state if record else "",
            "problem": problem,
            "planned": planned,
            "left": rows.remaining(planned) if training else None,
            "rows": rows.drawn(),
            "heldOut": [list(score) for score in rows.scores],
            "levels": {NGRAMS[key]: ngrams[key] for key in LEVELS if key in ngrams},
            "devLoss": record.dev_loss if record else None,
            "usual": _usual(record),
            "vocabulary": record.n_vocab if record else None,
        }

    def _look(self, folder: Path) -> dict[str, Any] | None:
        """What the newest weights of a run write and look at; None before its first checkpoint."""
        from hectogpt.web.model_page import newest_step, take_look

        step = newest_step(folder)
        if step is not None and self.looks.get(folder, {}).get("step") != step:
            try:
                self.looks[folder] = take_look(folder, step, self.prompt, self.ideas)
            except (UserError, OSError) as error:  # it may be gone by now: the next one is tried
                problem = f"{error.what}: {error.why}" if isinstance(error, UserError) else str(error)
                self.notes = [*self.notes, printable(problem)][-3:]
        return self.looks.get(folder)


def _usual(record: RunRecord | None) -> dict[str, Any] | None:
    """Mean and SD of the recorded held-out losses of a run's recipe on its corpus; None if there are none."""
    if record is None or record.changed:
        return None
    from hectogpt.lab.scoring import band_of

    band = band_of(record.recipe, str(record.run.get("corpus", "")), record.planned)
    return None if band is None else {"name": record.recipe, "mean": band.mean, "sd": band.sd, "n": band.n}


def main(options: Options) -> None:
    """Serve the page until a signal. Raises UserError."""
    folders = list(dict.fromkeys(choose(name, Path("runs")) for name in options.runs))
    if len(folders) > MOST_RUNS:
        raise UserError(f"{len(folders)} runs", why=f"at most {MOST_RUNS} can be told apart", fix="name fewer")
    for folder in folders:
        read_record(folder)
    if options.port is not None and not 1 <= options.port <= 65535:
        raise UserError(f"--port {options.port}", why="ports are 1 to 65535", fix="leave --port out for a free one")
    board = Board(folders, options.prompt, options.idea, Path("runs"))
    try:
        server = PageServer(fill("watch", None), board.data, options.port or 0)
    except OSError as error:
        where = "the page's server has no port" if options.port is None else f"--port {options.port}"
        fix = "leave --port out for a free one"
        raise UserError(where, why=errors.reason_of(error), fix=fix) from None
    with server, server.entrance() as page:
        try:
            print(f"{server.address}\nCtrl-C ends it.", flush=True)
            if not options.no_browser:
                webbrowser.open(page.as_uri())  # and not the address: other users can read a command line
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt as stop:
            if code_of(stop) != errors.INTERRUPTED:
                raise
