"""What a disk may hold after a loss of power: a model that follows a process's file operations in one folder.

What was synced is there. A file written since then may be whole, empty, cut in half, or have zeros where its second
half or all of it should be. Of the new, changed and removed names in a folder that was not synced since, each may be on
disk or not.
"""

from __future__ import annotations

import builtins
import io
import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hectogpt.model import weights
from hectogpt.training import checkpoint

MOST = 400  # states of one moment; of more a fixed random choice is taken
State = dict[str, bytes | None]  # path -> content, None for a folder


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


class Disk:
    """Follows what this process does below `folder`, all of which is on disk now. `moment` is called after each
    operation."""

    def __init__(self, folder: Path, moment: Callable[[Disk], None]) -> None:
        self.folder, self.moment = Path(os.path.abspath(folder)), moment
        self.root = self._read(self.folder)
        self._watch()

    def _read(self, path: Path) -> Node:
        if not path.is_dir():
            return Node(False, path.read_bytes(), path.read_bytes())
        node = Node(True, entries={child.name: self._read(child) for child in path.iterdir()})
        node.kept = dict(node.entries)
        return node

    # --- following ----------------------------------------------------------------------------------------------------

    def _path(self, where: Any, dir_fd: int | None) -> Path | None:
        """The path below the folder; None for one elsewhere."""
        if dir_fd is not None:
            parent = self._of_descriptor(dir_fd)
            return None if parent is None else parent / os.fsdecode(where)
        path = Path(os.path.abspath(os.fsdecode(where)))
        return path if path.is_relative_to(self.folder) and path != self.folder else None

    def _of_descriptor(self, descriptor: int) -> Path | None:
        wanted = os.fstat(descriptor)
        paths = [self.folder, *self.folder.rglob("*")]
        return next((path for path in paths if os.path.samestat(path.stat(), wanted)), None)

    def _node(self, path: Path) -> Node:
        node = self.root
        for name in path.relative_to(self.folder).parts:
            node = node.entries[name]
        return node

    def _change(self, *changes: tuple[Path, Node | None]) -> None:
        """Names of one folder that change together."""
        parent = self._node(changes[0][0].parent)
        for path, node in changes:
            if node is None:
                del parent.entries[path.name]
            else:
                parent.entries[path.name] = node
        parent.changes.append([(path.name, node) for path, node in changes])

    def _done(self) -> None:
        for path, node in self._files(self.folder, self.root):
            node.content = path.read_bytes()
        self.moment(self)

    def _files(self, path: Path, node: Node) -> Iterator[tuple[Path, Node]]:
        for name, child in node.entries.items():
            if child.is_folder:
                yield from self._files(path / name, child)
            else:
                yield path / name, child

    def _watch(self) -> None:
        def removed(path: Path) -> None:
            self._change((path, None))

        def renamed(path: Path, new: Path) -> None:
            self._change((path, None), (new, self._node(path)))

        def linked(path: Path, new: Path) -> None:
            self._change((new, self._node(path)))

        self._follow("mkdir", lambda path: self._change((path, Node(True))))
        for name in ("unlink", "rmdir"):
            self._follow(name, removed)
        for name in ("rename", "replace"):
            self._follow(name, renamed)
        self._follow("link", linked)
        self._follow_fsync()
        io.open = builtins.open = self._opened(io.open)
        for module in (checkpoint, weights):
            module.save_file = self._saved(module.save_file)

    def _follow(self, name: str, then: Callable[..., None]) -> None:
        original = getattr(os, name)

        def call(where: Any, *arguments: Any, dir_fd: int | None = None, **keywords: Any) -> Any:
            path = self._path(where, dir_fd)
            both = [path] if name not in ("rename", "replace", "link") else [path, self._path(arguments[0], None)]
            given = keywords if dir_fd is None else keywords | {"dir_fd": dir_fd}
            original(where, *arguments, **given)
            if path is not None:
                then(*both)
                self._done()

        setattr(os, name, call)

    def _follow_fsync(self) -> None:
        original = os.fsync

        def call(descriptor: int) -> None:
            path = self._of_descriptor(descriptor)
            if path is not None:
                self._done()
            original(descriptor)
            if path is not None:
                node = self._node(path)
                node.synced, node.kept, node.changes = path.read_bytes() if path.is_file() else b"", node.entries, []
                node.entries = dict(node.kept)
                self._done()

        os.fsync = call

    def _made(self, path: Path) -> None:
        parent = self._node(path.parent)
        if path.name not in parent.entries:
            self._change((path, Node(False)))
        self._done()

    def _opened(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(where: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
            file = original(where, mode, *arguments, **keywords)
            path = None if isinstance(where, int) else self._path(where, None)
            if path is not None and set(mode) & set("wxa"):
                self._made(path)
            return file

        return call

    def _saved(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensors: Any, path: Path, *arguments: Any, **keywords: Any) -> None:
            original(tensors, path, *arguments, **keywords)
            if (found := self._path(path, None)) is not None:
                self._made(found)

        return call

    # --- what may be left ---------------------------------------------------------------------------------------------

    def states(self) -> list[State]:
        """What the disk may hold if the power is lost now; if there are very many, a part of them."""
        choices: list[tuple[int, list[Any]]] = []
        self._choices(self.root, choices, set())
        count = 1
        for _, options in choices:
            count *= len(options)
        if count <= MOST:
            picks = list(itertools.product(*(options for _, options in choices)))
        else:
            chance = random.Random(count)
            picks = [tuple(options[0] for _, options in choices), tuple(options[-1] for _, options in choices)]
            picks += [tuple(chance.choice(options) for _, options in choices) for _ in range(MOST)]
        states = []
        for pick in picks:
            chosen = {number: option for (number, _), option in zip(choices, pick, strict=True)}
            state: State = {}
            self._render(self.root, "", chosen, state)
            states.append(state)
        return states

    def _choices(self, node: Node, choices: list[tuple[int, list[Any]]], seen: set[int]) -> None:
        if id(node) in seen:
            return
        seen.add(id(node))
        if not node.is_folder:
            choices.append((id(node), _forms(node)))
            return
        flags = [list(kept) for kept in itertools.product((True, False), repeat=min(len(node.changes), 12))]
        choices.append((id(node), flags))
        for child in [*node.kept.values(), *(new for change in node.changes for _, new in change if new is not None)]:
            self._choices(child, choices, seen)

    def _render(self, node: Node, where: str, chosen: dict[int, Any], state: State) -> None:
        entries = dict(node.kept)
        for change, is_kept in zip(node.changes, chosen[id(node)], strict=False):
            for name, new in change if is_kept else []:
                if new is None:
                    entries.pop(name, None)
                else:
                    entries[name] = new
        for name, child in entries.items():
            path = f"{where}{name}"
            state[path] = None if child.is_folder else chosen[id(child)]
            if child.is_folder:
                self._render(child, f"{path}/", chosen, state)


def _forms(node: Node) -> list[bytes]:
    """What a file may hold: all of it first."""
    if node.content == node.synced:
        return [node.content]
    start = node.synced if node.content.startswith(node.synced) else b""
    rest = node.content[len(start) :]
    half = rest[: len(rest) // 2]
    forms = [rest, half + bytes(len(rest) - len(half)), half, bytes(len(rest)), b""]
    return list(dict.fromkeys(start + form for form in forms)) + ([node.synced] if node.synced and not start else [])


def write_state(state: State, folder: Path) -> None:
    """Make `folder` hold this state."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in state.items():  # a folder comes before what is in it
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)
