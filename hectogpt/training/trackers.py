"""Trackers behind a run: TensorBoard, Trackio and Weights & Biases, each fed by a child process of its own.

A tracker gets what metrics.jsonl gets, the run's fields, and pictures at the end. It never holds a run up: rows go
through a queue that drops them when it is full, and a child that fails or hangs is given up with one note. The children
are tracker_child.py.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from hectogpt.errors import UserError
from hectogpt.feed import Feed
from hectogpt.files import write_atomic
from hectogpt.json_files import read_json_object

MODULES = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}
RECORD = "trackers.json"  # in the run's folder: its name at the trackers, so that a resumed run goes on there
SECONDS_TO_END = 20.0  # for a tracker to write what it was told, once the run is over
PROJECT = "hectogpt"


def parse_names(names: str) -> tuple[str, ...]:
    """ "tensorboard,trackio" as names of trackers. Raises UserError for one that is unknown or not installed."""
    found = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    for name in found:
        if name not in MODULES:
            raise UserError(f"no tracker {name!r}", why=f"there are {', '.join(MODULES)}", fix="name one of them")
        if importlib.util.find_spec(MODULES[name]) is None:
            fix = f"python -m pip install 'hectogpt[{name}]'"
            raise UserError(f"the tracker {name} is not installed", fix=fix, kept="nothing was begun")
    return found


class Trackers:
    """Trackers of one run, or of several after each other. note: is told, once each, of one that is given up."""

    def __init__(self, names: Sequence[str], note: Callable[[str], None]) -> None:
        self.links: dict[str, str] = {}
        self._note, self._dropped = note, set[str]()
        self._feeds: dict[str, Feed] = {}
        for name in names:
            try:
                self._feeds[name] = Feed("hectogpt.training.tracker_child", partial(self._hear, name))
            except OSError as error:
                note(f"note: the tracker {name} cannot be started: {error.strerror or error}; the run goes on")
            else:
                self._tell(name, {"tracker": name})

    def begin(
        self,
        folder: Path,
        fields: dict[str, Any],
        *,
        name: str = "",
        group: str = "",
        step: int = 0,
        lasting: bool = True,
    ) -> None:
        """Begin a run, or go on with it after `step`. fields: what it is made of, plain values. name: at the trackers;
        that of the folder unless given. lasting: whether the folder is the run's, and tells who it is when it is
        resumed."""
        identity = _identity(folder) if lasting else secrets.token_hex(4)
        run = {"folder": str(folder.resolve()), "id": identity, "name": name or folder.resolve().name}
        self._tell_all({"begin": run | {"project": PROJECT, "group": group, "fields": fields, "step": step}})

    def add(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl. Returns at once."""
        self._tell_all({"row": {key: value for key, value in row.items() if isinstance(value, (int, float))}})

    def picture(self, name: str, path: Path, step: int) -> None:
        """A PNG that stays where it is until `end`."""
        if path.is_file():
            self._tell_all({"picture": {"name": name, "path": str(path.resolve()), "step": step}})

    def end(self) -> None:
        """Wait until all is written, for SECONDS_TO_END at most, and end the children. A second call does nothing."""
        self._tell_all({"end": True})
        deadline = time.monotonic() + SECONDS_TO_END
        for name, feed in list(self._feeds.items()):
            if not feed.end(max(deadline - time.monotonic(), 0.1)):
                self._give_up(name, f"it has not ended within {SECONDS_TO_END:g} s")
        self._feeds.clear()

    def _tell_all(self, message: dict[str, Any]) -> None:
        for name in list(self._feeds):
            self._tell(name, message)

    def _tell(self, name: str, message: dict[str, Any]) -> None:
        feed = self._feeds[name]
        if not feed.is_alive():
            self._give_up(name, feed.last_words().rpartition("\n")[2] or "its process has ended")
        elif not feed.send(message) and name not in self._dropped:
            self._dropped.add(name)
            self._note(f"note: the tracker {name} does not keep up: some rows are left out there, not in metrics.jsonl")

    def _give_up(self, name: str, why: str) -> None:
        feed = self._feeds.pop(name, None)
        if feed is not None:
            feed.kill()
            self._note(f"note: the tracker {name} is given up: {why[:300]}; the run goes on")

    def _hear(self, name: str, message: dict[str, Any]) -> None:
        if isinstance(link := message.get("link"), str):
            self.links[name] = link


def _identity(folder: Path) -> str:
    """What tells this folder's run from others of its name; the same when it is resumed."""
    path = folder / RECORD
    with suppress(UserError):
        found = read_json_object(path).get("id")
        if isinstance(found, str) and found.isalnum() and len(found) <= 32:
            return found
    identity = secrets.token_hex(4)
    if os.path.isdir(folder):
        with suppress(UserError):  # a run that cannot be resumed there is still told of
            write_atomic(path, f'{{"id": "{identity}"}}\n')
    return identity
