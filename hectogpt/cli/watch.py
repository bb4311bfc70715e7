"""`hectogpt watch [RUN ...]`: a local page with curves, samples and attention of live runs."""

from __future__ import annotations

import threading
import time
import webbrowser
from pathlib import Path
from typing import Any

from hectogpt import errors
from hectogpt.cli.options import WatchOptions
from hectogpt.cli.show import usual
from hectogpt.display import NGRAMS, OTHER_TOKENS, one_line, printable
from hectogpt.errors import UserError
from hectogpt.run_records import (
    METRICS,
    RUNNING,
    UNFINISHED,
    find_runs,
    locate_run,
    number_of,
    read_record,
    read_rows,
    score_of,
)
from hectogpt.signals import code_of
from hectogpt.web.page import fill
from hectogpt.web.server import PageServer

MOST_RUNS = 6  # colours that can be told apart
RESCAN_SECONDS = 2.0  # between searches for new runs below ./runs
LEVELS = ("unigram", "kn2", "kn3")  # n-gram models whose losses are drawn

# column on the page -> key in a row of metrics.jsonl
COLUMNS = {"step": "step", "loss": "train/loss", "norm": "train/grad_norm", "seconds": "train/dt"}
# Bytes read from the end of a file, about 8,000 rows, so that a long file does not delay the page.
MOST_BYTES = 2 << 20
MOST_POINTS = 1000  # of a curve on the page


class Board:
    """The runs on the page.

    These are the runs in `named`; if it is empty, the newest run below `root`, those running now,
    and those that start later. When there are too many, those that ended leave first.
    """

    def __init__(
        self, named: list[Path], prompt: str | None, ideas: tuple[Path, ...], root: Path
    ) -> None:
        self.folders = list(named)
        self.root = None if named else root
        self.prompt = prompt
        self.ideas = ideas
        self.lock = threading.Lock()
        self.looks: dict[Path, dict[str, Any]] = {}
        self.notes: list[str] = []
        self.problems: dict[Path, str] = {}  # why a run's weights cannot be read
        self._scanned = 0.0

    def data(self, query: dict[str, str]) -> dict[str, Any]:
        """The data for the page: all runs, and samples of the run in the query."""
        with self.lock:
            if self.root is not None and time.monotonic() - self._scanned > RESCAN_SECONDS:
                self._scan(self.root)
            runs = [run_data(folder) for folder in self.folders]
            names = [run["name"] for run in runs]
            wanted = query.get("look") or (names[-1] if names else "")
            look = self._look(self.folders[names.index(wanted)]) if wanted in names else None
            others = (
                [OTHER_TOKENS] if len({run.pop("vocabulary") for run in runs} - {None}) > 1 else []
            )
            return {
                "runs": runs,
                "look": look,
                "notes": [*self.notes, *self.problems.values(), *others],
            }

    def _scan(self, root: Path) -> None:
        found, notes = find_runs(root)
        self.notes = list(map(printable, notes))
        self._scanned = time.monotonic()
        running = [record.folder for record in found if record.state == RUNNING]
        for folder in [record.folder for record in found[-1:]] + running:
            if folder not in self.folders:
                self.folders.append(folder)
        while len(self.folders) > MOST_RUNS:
            self.folders.remove(next((one for one in self.folders if one not in running), folder))

    def _look(self, folder: Path) -> dict[str, Any] | None:
        """A sample and attention maps from a run's newest weights; None if it has no weights."""
        from hectogpt.web.model_page import newest_step, take_look

        step = newest_step(folder)
        if step is not None and self.looks.get(folder, {}).get("step") != step:
            try:
                self.looks[folder] = take_look(folder, step, self.prompt, self.ideas)
                self.problems.pop(folder, None)
            except (UserError, OSError) as error:  # the weights may be deleted: try the next ones
                problem = error.line if isinstance(error, UserError) else str(error)
                self.problems[folder] = printable(problem)
        return self.looks.get(folder)


def run_data(folder: Path) -> dict[str, Any]:
    """The page's data about a run, as far as they can be read.

    Its files may be damaged, replaced meanwhile, or written by a different program, so every value
    is checked.
    """
    rows = list(read_rows(folder / METRICS, MOST_BYTES))
    steps = [row for row in rows if "train/loss" in row]
    drawn = steps[:: -max(1, -(-len(steps) // MOST_POINTS))][::-1]  # includes the last one
    scores = [(row["step"], number_of(score_of(row))) for row in rows]
    found: dict[str, Any] = {
        "name": one_line(str(folder)),
        "rows": {
            name: [number_of(row.get(key)) for row in drawn] for name, key in COLUMNS.items()
        },
        "heldOut": [score for score in scores if score[1] is not None],
        **{
            "state": "",
            "problem": "",
            "planned": None,
            "left": None,
            "levels": {},
            "devLoss": None,
            "usual": "",
        },
        "vocabulary": None,
    }
    try:
        record = read_record(folder)
    except UserError as error:  # it may be in the middle of being copied
        return found | {"problem": printable(error.line)}
    seconds = sorted(
        dt for row in steps[-10:] if (dt := number_of(row.get("train/dt"))) is not None
    )
    if seconds and record.planned_steps is not None and record.state in (RUNNING, UNFINISHED):
        found["left"] = (
            max(record.planned_steps - steps[-1]["step"], 0) * seconds[len(seconds) // 2]
        )
    return found | {
        "state": record.state,
        "planned": record.planned_steps,
        "levels": {NGRAMS[key]: loss for key, loss in record.ngrams().items() if key in LEVELS},
        "devLoss": record.dev_loss,
        "usual": usual(record),
        "vocabulary": record.n_vocab,
    }


def main(options: WatchOptions) -> None:
    """Serve the page until a signal arrives. Raises UserError."""
    folders = list(dict.fromkeys(locate_run(name) for name in options.runs))
    if len(folders) > MOST_RUNS:
        raise UserError(
            f"{len(folders)} runs", why=f"at most {MOST_RUNS} can be told apart", fix="name fewer"
        )
    for folder in folders:
        read_record(folder)
    board = Board(folders, options.prompt, options.idea, Path("runs"))
    try:
        server = PageServer(fill("watch", None), board.data, options.port)
    except (OSError, OverflowError) as error:
        fix = "omit --port to use a free one"
        raise UserError(f"--port {options.port}", why=errors.reason_of(error), fix=fix) from None
    with server, server.entrance() as page:
        try:
            print(f"{server.address}\nCtrl-C ends it.", flush=True)
            if not options.no_browser:
                # Not the address, because other users can read command lines.
                webbrowser.open(page.as_uri())
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt as stop:
            if code_of(stop) != errors.INTERRUPTED:
                raise
