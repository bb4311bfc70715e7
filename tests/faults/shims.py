"""Points at which a child can be made to die or to fail: every file operation in a folder, every part of a step.

The package has no hooks for this. A child replaces functions of os, io, pathlib, safetensors and torch in itself, then
does what `hectogpt train` does. A first child counts the points that it passes; then, for each of them, another child
dies or fails there.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hectogpt.model import Transformer, weights
from hectogpt.training import checkpoint
from hectogpt.training.optim import OptimizerGroup
from hectogpt.training.run_folder import RunFolder

Point = tuple[str, int]  # the thread's part in the run, and how many points of its were passed before
FILE_CALLS = ("mkdir", "rename", "replace", "unlink", "rmdir", "link", "chmod", "open", "fsync")


def die() -> None:
    """End this process as kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail(number: int) -> Callable[[], None]:
    """What raises this error of the operating system."""

    def raise_it() -> None:
        raise OSError(number, os.strerror(number))

    return raise_it


class Points:
    """The points below `folder` that this process passes, and what happens at some of them.

    happens: is asked at each point (thread, number, name) whether `act` is to be called there. A write has two points:
    before it, and when half of it is written. Saving has a thread of its own, so its points are counted apart.
    """

    def __init__(
        self,
        folder: Path,
        happens: Callable[[Point, str], bool] = lambda point, name: False,
        act: Callable[[], None] = die,
    ) -> None:
        self.folder, self.happens, self.act = os.path.abspath(folder), happens, act
        self.counts: Counter[str] = Counter()
        self.names: list[tuple[Point, str]] = []

    def reach(self, name: str, half: Callable[[], None] | None = None) -> None:
        """A point is passed. half: does half of what comes next."""
        thread = "save" if threading.current_thread() is not threading.main_thread() else "main"
        for part in (None,) if half is None else (None, half):
            point = (thread, self.counts[thread])
            self.counts[thread] += 1
            named = name if part is None else f"half of {name}"
            self.names.append((point, named))
            if self.happens(point, named):
                if part is not None:
                    part()
                self.act()

    def _is_ours(self, where: Any, keywords: dict[str, Any]) -> bool:
        if keywords.get("dir_fd") is not None:  # shutil.rmtree, below a folder that it has opened
            return True
        if isinstance(where, int):
            return True
        return os.path.abspath(os.fsdecode(where)).startswith(self.folder)

    def watch_files(self) -> Points:
        """Make a point of every file operation below the folder."""
        for name in FILE_CALLS:
            setattr(os, name, self._watched(name, getattr(os, name)))
        opened = self._opened(io.open)
        io.open = builtins.open = opened
        write_bytes = Path.write_bytes

        def written(path: Path, data: bytes) -> int:
            if self._is_ours(path, {}):
                self.reach(f"write {path.name}", lambda: void(write_bytes(path, data[: len(data) // 2])))
            return write_bytes(path, data)

        Path.write_bytes = written
        for module in (checkpoint, weights):
            module.save_file = self._saved(module.save_file)
        return self

    def _watched(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(where: Any, *arguments: Any, **keywords: Any) -> Any:
            reading = name == "open" and bool(arguments) and not arguments[0] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)
            if self._is_ours(where, keywords) and not (reading and not os.path.isdir(where)):
                self.reach(name)
            return original(where, *arguments, **keywords)

        return call

    def _opened(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(where: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
            if not isinstance(where, int) and set(mode) & set("wxa+") and self._is_ours(where, {}):
                name = f"open {Path(os.fsdecode(where)).name} ({mode})"
                self.reach(name, lambda: void(original(where, mode, *arguments, **keywords)))  # there, and empty
            return original(where, mode, *arguments, **keywords)

        return call

    def _saved(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensors: Any, path: Path, *arguments: Any, **keywords: Any) -> None:
            def half() -> None:
                original(tensors, path, *arguments, **keywords)
                os.truncate(path, path.stat().st_size // 2)

            self.reach("write tensors", half)
            original(tensors, path, *arguments, **keywords)

        return call

    def watch_rows(self) -> Points:
        """Make a point of every write to metrics.jsonl."""
        opened = RunFolder._open_metrics

        def watched(folder: RunFolder, content: str) -> None:
            opened(folder, content)
            folder._metrics = _Watched(folder._metrics, self)

        RunFolder._open_metrics = watched
        return self

    def watch_steps(self) -> Points:
        """Make a point of every forward pass, backward pass and optimizer step."""
        for owner, name in ((Transformer, "loss"), (torch.Tensor, "backward"), (OptimizerGroup, "step")):
            setattr(owner, name, self._passed(name, getattr(owner, name)))
        return self

    def _passed(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.reach(name)
            return original(*arguments, **keywords)

        return call

    def watch_all(self) -> Points:
        """Make a point of all of these."""
        return self.watch_files().watch_rows().watch_steps()


class _Watched:
    """A file whose writes are points."""

    def __init__(self, file: Any, points: Points) -> None:
        self._file, self._points = file, points

    def write(self, text: str) -> int:
        """Write a row."""

        def half() -> None:
            self._file.write(text[: len(text) // 2])
            self._file.flush()

        self._points.reach("row of metrics", half)
        return self._file.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def void(_: object) -> None:
    """Nothing, whatever it is given."""


DISK_FULL, INPUT_OUTPUT = fail(errno.ENOSPC), fail(errno.EIO)
