"""Trackers of a run: TensorBoard and Weights & Biases get what metrics.jsonl gets, and the run's fields.

They work in the run's own process. One that raises is named once and left out; the run goes on. One that hangs holds
the run up.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from hectogpt.errors import UserError
from hectogpt.files import write_atomic
from hectogpt.json_files import read_json_object

RECORD = "trackers.json"  # in the run's folder: its name at the trackers, so that a resumed run goes on there
PROJECT = "hectogpt"


class TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, run: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = Path(run["folder"]) / "tensorboard"
        # Rows of later steps, which an earlier process has written, are void.
        self.writer = SummaryWriter(str(folder), purge_step=run["step"] + 1, flush_secs=2)
        fields = json.dumps(run["fields"], indent=2, allow_nan=False)
        self.writer.add_text("run", "    " + fields.replace("\n", "\n    "), 0)
        self.link, self.end = f"tensorboard --logdir {run['folder']}", self.writer.close

    def log(self, values: dict[str, float], step: int) -> None:
        """Write a row."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)


class Wandb:
    """Weights & Biases. Without a key, and unless WANDB_MODE says otherwise, a run stays on this machine."""

    def __init__(self, run: dict[str, Any]) -> None:
        for name, value in (("SILENT", "true"), ("ERROR_REPORTING", "false"), ("CONSOLE", "off")):
            os.environ.setdefault(f"WANDB_{name}", value)
        import wandb

        has_key = bool(os.environ.get("WANDB_API_KEY"))
        with suppress(OSError, RuntimeError):
            has_key |= "api.wandb.ai" in (Path.home() / ".netrc").read_text(encoding="utf-8", errors="replace")
        mode = os.environ.get("WANDB_MODE") or ("online" if has_key else "offline")
        names: dict[str, Any] = {"id": run["id"], "name": run["name"], "mode": mode, "resume": "allow"}
        own = wandb.init(project=PROJECT, config=run["fields"], dir=run["folder"], **names)
        self.link, self.log, self.end = own.url or f"wandb sync {Path(own.dir).parent}", own.log, own.finish


Tracker = TensorBoard | Wandb  # link: how to look at the run
TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb}


def parse_names(names: str) -> tuple[str, ...]:
    """ "tensorboard,wandb" as names of trackers. Raises UserError for one that is unknown or not installed."""
    found = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    for name in found:
        if name not in TRACKERS:
            raise UserError(f"no tracker {name!r}", why=f"there are {', '.join(TRACKERS)}", fix="name one of them")
        if importlib.util.find_spec(name) is None:
            fix = f"python -m pip install 'hectogpt[{name}]'"
            raise UserError(f"the tracker {name} is not installed", fix=fix, kept="nothing was begun")
    return found


class Trackers:
    """Trackers of a run in a folder, begun, or going on after `step`. fields: what the run is made of, plain values.
    note: is called with a line about each that fails, and at the end about where to look."""

    def __init__(
        self, names: Sequence[str], note: Callable[[str], None], folder: Path, fields: dict[str, Any], step: int = 0
    ) -> None:
        self._names, self._note = list(names), note
        self._open: dict[str, Tracker] = {}
        if names:
            place = folder.resolve()
            run = {"folder": str(place), "name": place.name, "id": _identity(folder), "fields": fields, "step": step}
            self._open = self._each(lambda tracker: TRACKERS[tracker](run))

    def add(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl."""
        values = {n: float(v) for n, v in row.items() if isinstance(v, int | float) and n not in ("step", "seed")}
        self._each(lambda tracker: self._open[tracker].log(values, step=int(row["step"])))

    def close(self) -> None:
        """End the run at them."""
        self._each(lambda tracker: self._open[tracker].end())
        for name in self._names:
            self._note(f"{name}: {self._open[name].link}")

    def _each(self, do: Callable[[str], Any]) -> dict[str, Any]:
        """What `do` returns of each tracker; one that fails is left out from now on."""
        found = {}
        for name in list(self._names):
            try:
                with redirect_stdout(sys.stderr):
                    found[name] = do(name)
            except (Exception, SystemExit) as error:  # whatever it is: a tracker is not worth a run
                self._names.remove(name)
                why = str(error).strip().rpartition("\n")[2][:300]
                self._note(f"note: the tracker {name} is left out: {type(error).__name__}: {why}; the run goes on")
        return found


def _identity(folder: Path) -> str:
    """What distinguishes this folder's run from others of its name; the same when it is resumed."""
    with suppress(UserError):
        return str(read_json_object(folder / RECORD)["id"])[:32]
    identity = secrets.token_hex(4)
    with suppress(UserError):  # a run that cannot be resumed there is still tracked
        write_atomic(folder / RECORD, f'{{"id": "{identity}"}}\n')
    return identity
