"""Operations of a process on files below a folder: points at which it dies or fails, and what a disk may hold of them.

The package has no hooks for this. A child replaces functions of os, io, safetensors and torch in itself, then does what
`hectogpt train` does. Needs Linux: the path of a descriptor is read from /proc.
"""

from __future__ import annotations

import builtins
import io
import itertools
import math
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from hectogpt.model import Transformer
from hectogpt.training.optim import OptimizerGroup

CALLS = ("mkdir", "rename", "replace", "unlink", "rmdir", "link", "chmod", "open", "fsync")
WRITES = os.O_CREAT | os.O_WRONLY | os.O_RDWR


class Watch:
    """Sees each operation of this process on files below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(folder))
        for name in CALLS:
            setattr(os, name, self._call(name, getattr(os, name)))
        io.open = builtins.open = self._open(io.open)
        safetensors.torch.serialize_file = self._serialize(safetensors.torch.serialize_file)

    def before(self, name: str, half: Callable[[], object] | None = None) -> None:
        """half: does half of the operation, for those that can be interrupted."""

    def synced(self, path: Path) -> None:
        """A file or a folder was synced."""

    def path_of(self, where: Any, folder: int | None = None) -> Path | None:
        """The path of a name or a descriptor; None for one that is not below the folder. folder: a descriptor."""
        if isinstance(where, int):
            path = Path(os.readlink(f"/proc/self/fd/{where}"))
        elif folder is not None:
            path = Path(os.readlink(f"/proc/self/fd/{folder}")) / os.fsdecode(where)
        else:
            path = Path(os.path.abspath(os.fsdecode(where)))
        return path if path.is_relative_to(self.folder) else None

    def _call(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(where: Any, *arguments: Any, dir_fd: int | None = None, **keywords: Any) -> Any:
            given = keywords if dir_fd is None else keywords | {"dir_fd": dir_fd}
            reads = name == "open" and not arguments[0] & WRITES and not os.path.isdir(where)
            path = None if reads else self.path_of(where, dir_fd)
            if path is None:
                return original(where, *arguments, **given)
            self.before(name)
            result = original(where, *arguments, **given)
            if name == "fsync":
                self.synced(path)
            return result

        return call

    def _open(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(where: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
            path = self.path_of(where) if set(mode) & set("wxa+") and not isinstance(where, int) else None
            if path is None:
                return original(where, mode, *arguments, **keywords)
            self.before(f"open {path.name} ({mode})", lambda: original(where, mode, *arguments, **keywords).close())
            file = original(where, mode, *arguments, **keywords)
            file.write = self._writes(file, file.write, path.name)
            return file

        return call

    def _writes(self, file: Any, original: Callable[[Any], int], name: str) -> Callable[[Any], int]:
        def write(data: Any) -> int:
            def half() -> None:
                original(data[: len(data) // 2])
                file.flush()

            self.before(f"write {name}", half)
            return original(data)

        return write

    def _serialize(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensors: Any, path: Path, *arguments: Any, **keywords: Any) -> None:
            def half() -> None:
                original(tensors, path, *arguments, **keywords)
                os.truncate(path, os.path.getsize(path) // 2)

            if self.path_of(path) is not None:
                self.before("write tensors", half)
            original(tensors, path, *arguments, **keywords)

        return call


# --- points -----------------------------------------------------------------------------------------------------------


def die() -> None:
    """End this process as kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


class Points(Watch):
    """The points that this process passes; at one of them, or at it and all after it (`for_good`), it calls `act`.

    What can be interrupted has two points: before it, and when half of it is done. steps: every forward pass, backward
    pass and optimizer step is a point too.
    """

    def __init__(
        self, folder: Path, at: int = -1, for_good: bool = False, act: Callable[[], object] = die, steps: bool = False
    ) -> None:
        self.at, self.for_good, self.act = at, for_good and at >= 0, act
        self.names: list[str] = []
        super().__init__(folder)
        for owner, name in ((Transformer, "loss"), (torch.Tensor, "backward"), (OptimizerGroup, "step")) * steps:
            setattr(owner, name, self._passed(name, getattr(owner, name)))

    def before(self, name: str, half: Callable[[], object] | None = None) -> None:
        """A point is passed, or two."""
        for part in (None,) if half is None else (None, half):
            here = len(self.names)
            self.names.append(name if part is None else f"half of {name}")
            if here == self.at or (self.for_good and here > self.at):
                if part is not None:
                    part()
                self.act()

    def _passed(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.before(name)
            return original(*arguments, **keywords)

        return call


# --- what a disk may hold after a loss of power -----------------------------------------------------------------------

MOST = 400  # states of one moment; of more a fixed random choice is taken
State = tuple[tuple[str, bytes | None], ...]  # paths and contents, None for a folder; it comes before what is in it


@dataclass
class Node:
    """A file or a folder. entries: a folder's now. kept: what is on disk for certain. changes: of entries since
    then, each a list of (name, node or None)."""

    is_folder: bool
    content: bytes = b""
    synced: bytes = b""
    entries: dict[str, Node] = field(default_factory=dict)
    kept: dict[str, Node] = field(default_factory=dict)
    changes: list[list[tuple[str, Node | None]]] = field(default_factory=list)

    def sync(self) -> None:
        """All of it is on disk."""
        self.synced, self.kept, self.changes = self.content, dict(self.entries), []

    def forms(self) -> list[Any]:
        """What a file may hold on disk, or which of a folder's changes: all of it first."""
        if self.is_folder:
            return list(itertools.product((True, False), repeat=min(len(self.changes), 12)))
        if self.content == self.synced:
            return [self.content]
        start = self.synced if self.content.startswith(self.synced) else b""
        rest = self.content[len(start) :]
        half = rest[: len(rest) // 2]
        forms = [rest, half + bytes(len(rest) - len(half)), half, bytes(len(rest)), b""]
        before = [self.synced] if self.synced and not start else []
        return list(dict.fromkeys(start + form for form in forms)) + before


class Disk(Watch):
    """A model of the disk below `folder`, all of which is on it at first. `moment` is called after each operation.

    What was synced is there. A file written since then may be whole, empty, cut in half, or have zeros where its second
    half or all of it should be. Of the new, changed and removed names in a folder that was not synced since, each may
    be on disk or not; those that one operation has changed go together.
    """

    def __init__(self, folder: Path, moment: Callable[[Disk], None]) -> None:
        super().__init__(folder)
        self.moment, self.nodes = moment, dict[int, Node]()  # by their inodes
        self.root = self.look()
        for node in self.nodes.values():
            node.sync()

    def before(self, name: str, half: Callable[[], object] | None = None) -> None:
        """The operation before this one is done."""
        self.look()
        self.moment(self)

    def synced(self, path: Path) -> None:
        """The file or folder is on disk as it is now."""
        self.look()
        self.nodes[path.stat().st_ino].sync()
        self.moment(self)

    def look(self) -> Node:
        """See what has changed since the last look: what one operation has done."""
        before, self.nodes = self.nodes, {}
        return self._look_at(self.folder, before)

    def _look_at(self, path: Path, before: dict[int, Node]) -> Node:
        number = path.stat().st_ino
        node = self.nodes[number] = before.get(number) or Node(path.is_dir())
        if not node.is_folder:
            node.content = path.read_bytes()
            return node
        now = {child.name: self._look_at(child, before) for child in path.iterdir()}
        names = [name for name in {**node.entries, **now} if now.get(name) is not node.entries.get(name)]
        node.changes += [[(name, now.get(name)) for name in names]] if names else []
        node.entries = now
        return node

    def states(self) -> Iterator[State]:
        """What the disk may hold if the power is lost now; if there are very many, a part of them."""
        nodes: dict[int, Node] = {}
        self._collect(self.root, nodes)
        forms = [node.forms() for node in nodes.values()]
        picks: Iterable[tuple[Any, ...]] = itertools.product(*forms)
        if math.prod(map(len, forms)) > MOST:
            chance = random.Random(0)
            some = [tuple(map(chance.choice, forms)) for _ in range(MOST)]
            picks = [tuple(form[0] for form in forms), tuple(form[-1] for form in forms), *some]
        for pick in picks:
            yield tuple(self._render(self.root, "", dict(zip(nodes, pick, strict=True))))

    def _collect(self, node: Node, nodes: dict[int, Node]) -> None:
        """All that may be on the disk, by its id."""
        if id(node) not in nodes:
            nodes[id(node)] = node
            for child in [*node.kept.values(), *(new for change in node.changes for _, new in change if new)]:
                self._collect(child, nodes)

    def _render(self, node: Node, where: str, chosen: dict[int, Any]) -> Iterator[tuple[str, bytes | None]]:
        entries: dict[str, Node | None] = dict(node.kept)
        for change, is_kept in zip(node.changes, chosen[id(node)], strict=False):
            entries.update(change if is_kept else [])
        for name, child in entries.items():
            if child is not None:
                yield f"{where}{name}", None if child.is_folder else chosen[id(child)]
                yield from self._render(child, f"{where}{name}/", chosen)


def write_state(state: State, folder: Path) -> None:
    """Make `folder` hold this state."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in state:
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)
