"""Recipes from a user's own file: FILE.py:FUNCTION, a function that takes a Run and returns one.

    FILE.py:FUNCTION            applied to the top of the ladder (or to what a comparison's first recipe is)
    FILE.py:FUNCTION@BASE       applied to BASE, a recipe or another FILE.py:FUNCTION

Schedules, optimizers, parts of the model and data orders that the file defines are used by the run as ours are. A run
carries the hash of the source, so an edited file is another idea.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from hectogpt.errors import UserError
from hectogpt.idea_file import IdeaFile, load_idea, read_idea, remember, running
from hectogpt.lab import recipes
from hectogpt.serialization import did_you_mean, dump, load
from hectogpt.train.run import Run

SPEC = re.compile(r"(?P<path>.+?\.py):(?P<function>[^@]*)(@(?P<base>.+))?\Z")

_loaded: dict[str, IdeaFile] = {}


def is_idea(name: str) -> bool:
    """Whether a recipe's name is that of an idea in a file."""
    return SPEC.match(name) is not None or name.endswith(".py")


def find_run(name: str, base: str = "top") -> Run:
    """The Run of a recipe's name or of FILE.py:FUNCTION[@BASE]; `base` is what an idea without @BASE is applied to.

    Imports the file. Raises UserError for an unknown recipe, and for a file or function that cannot be used.
    """
    if not is_idea(name):
        return recipes.recipe(name)
    match = SPEC.match(name)
    if match is None:
        raise UserError(
            f"{name} names no function",
            why="an idea is FILE.py:FUNCTION",
            fix=f"{name}:FUNCTION, with one of {', '.join(_functions(load_idea(read_idea(name)))) or 'its functions'}",
        )
    before = find_run(match["base"] or base)
    idea = read_idea(match["path"])
    module = load_idea(idea)
    _loaded[idea.sha256] = idea
    after = _apply(idea, _function(idea, module, match["function"]), before)
    remember(idea)
    label = f"{idea.path.name}:{match['function']}"
    if before.recipe != find_default():
        label += f"@{before.recipe}"
    ideas = (*before.ideas, *(() if idea.sha256 in before.ideas else (idea.sha256,)))
    return replace(after, recipe=label, ideas=ideas)


def find_default() -> str:
    """The name of the recipe that ideas are applied to by default."""
    return recipes.recipe("top").recipe


def _functions(module: ModuleType) -> list[str]:
    """The functions that the file itself defines."""
    return [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]


def _function(idea: IdeaFile, module: ModuleType, name: str) -> Any:
    found = getattr(module, name, None)
    if not callable(found):
        known = [n for n in _functions(module) if not n.startswith("_")]
        raise UserError(
            f"{idea.path.name} has no function {name!r}",
            why=f"its functions: {', '.join(known) or 'none'}",
            fix=did_you_mean(name, known) if known else "hectogpt idea FILE.py writes an example",
        )
    return found


def _apply(idea: IdeaFile, function: Any, before: Run) -> Run:
    """The idea's Run, which can also be written and read back."""
    name = f"{idea.path.name}:{function.__name__}"
    with running(idea, name):
        after = function(before)
    if not isinstance(after, Run):
        raise UserError(
            f"{name} returned {type(after).__name__}, not a Run",
            why="an idea takes a Run and returns a changed one",
            fix="return replace(run, ...)",
        )
    with running(idea, f"{name} returned a Run that cannot be written"):
        again = load(Run, dump(after))
    if again != after:
        raise UserError(
            f"{name} returned a Run that does not come back from JSON as it was",
            why="its classes must be frozen dataclasses whose fields are numbers, texts, tuples or other such classes",
        )
    return after


def sources_of(run: Run) -> list[dict[str, str]]:
    """Path and source of the run's ideas, to be sent to another process."""
    return [{"path": str(idea.path), "source": idea.source} for idea in files_of(run)]


def files_of(run: Run) -> list[IdeaFile]:
    """The files that made the run. Raises UserError for one that this process has not loaded."""
    missing = [sha256 for sha256 in run.ideas if sha256 not in _loaded]
    if missing:
        raise UserError(
            f"{run.recipe} comes from a file that is not loaded",
            why=f"its source has the SHA-256 {missing[0][:16]}...",
            fix="name it as FILE.py:FUNCTION",
        )
    return [_loaded[sha256] for sha256 in run.ideas]


def load_sources(sources: Iterable[dict[str, str]]) -> None:
    """Import the ideas that `sources_of` gave in another process."""
    for source in sources:
        idea = IdeaFile(Path(source["path"]), source["source"])
        load_idea(idea)
        _loaded[idea.sha256] = idea


def folder_name(name: str) -> str:
    """A name for the run's folder: that of a recipe, or FILE-FUNCTION for an idea."""
    match = SPEC.match(name)
    if match is None:
        return name
    stem = re.split(r"[\\/]", match["path"])[-1].removesuffix(".py")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{stem}-{match['function']}").strip("-.")[:64] or "idea"


def activate(run: Run) -> None:
    """Make the classes of the run's own ideas the ones that are found by name, where several files define the same."""
    for idea in files_of(run):
        load_idea(idea)


def bases_for(names: Sequence[str]) -> str:
    """What ideas of a comparison are applied to: its first recipe, if that is not an idea itself; else the top."""
    return names[0] if names and not is_idea(names[0]) else "top"
