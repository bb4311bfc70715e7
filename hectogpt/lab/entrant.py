"""What is judged: a function of a user's file and its base, read and never run here."""

from __future__ import annotations

import ast
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.idea_file import IdeaFile, read_idea
from hectogpt.lab.ideas import SPEC
from hectogpt.lab.recipes import recipe

MOST_SECONDS = 600  # of training, as on the tracks
MOST_PARAMETERS = 60_000_000
LARGEST_FILE = 100_000  # bytes of an idea's source
LONGEST_TEXT = 2_000  # characters of a text in it
MOST_NUMBERS = 2_000  # numbers in it: a table of weights is no idea


@dataclass(frozen=True)
class Entrant:
    """What is judged: a function of a file, and the recipe (or function of another file) that it is applied to."""

    file: IdeaFile
    function: str
    base: str
    base_file: IdeaFile | None

    @property
    def idea(self) -> str:
        """FILE.py:FUNCTION, with the file's name alone."""
        return f"{self.file.path.name}:{self.function}"


def find_entrant(name: str, base: str = "minute") -> Entrant:
    """FILE.py:FUNCTION[@BASE], read and not run. Raises UserError for what is none."""
    match = SPEC.match(name)
    if match is None:
        raise UserError(f"no idea {name}", why="an idea is written FILE.py:FUNCTION", fix="hectogpt judge my.py:idea")
    file, function, base = read_idea(match["path"]), match["function"], match["base"] or base
    known = functions_of(file)
    if function not in known:
        why = f"its functions: {', '.join(known) or 'none'}"
        raise UserError(f"{file.path.name} has no function {function!r}", why=why)
    other = SPEC.match(base)
    if other is None:
        recipe(base)
        return Entrant(file, function, base, None)
    base_file = read_idea(other["path"])
    if base_file.path.name == file.path.name and base_file.sha256 != file.sha256:
        raise UserError(f"two files are called {file.path.name}", fix="another name for one of them")
    below = other["base"]
    if below is not None:
        recipe(below)
    return Entrant(
        file, function, f"{base_file.path.name}:{other['function']}{f'@{below}' if below else ''}", base_file
    )


def entrant_of(begin: Mapping[str, Any]) -> Entrant:
    """What was judged, from the sources in the first line of its record."""
    name, _, function = begin["idea"].partition(":")
    base = begin["base"]
    base_file = IdeaFile(Path(base.partition(":")[0]), begin["base_source"]) if begin["base_source"] else None
    return Entrant(IdeaFile(Path(name), begin["source"]), function, base, base_file)


def functions_of(file: IdeaFile) -> list[str]:
    """The public functions at the top of a file, found without running it. Raises UserError for what is no Python."""
    try:
        tree = ast.parse(file.source)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{file.path} is not Python", why=str(error)) from None
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]


def weights_in_source(file: IdeaFile) -> tuple[str, str]:
    """What of a file is too large for an idea, and could hold the numbers of a trained model, in words, "" for nothing;
    and the sizes of all that could."""
    constants = [node.value for node in ast.walk(ast.parse(file.source)) if isinstance(node, ast.Constant)]
    sizes = {
        "characters": (len(file.source), LARGEST_FILE),
        "characters in one text": (
            max((len(v) for v in constants if isinstance(v, str | bytes)), default=0),
            LONGEST_TEXT,
        ),
        "numbers": (sum(isinstance(value, int | float | complex) for value in constants), MOST_NUMBERS),
    }
    faults = [f"{size:,} {what}, at most {most:,}" for what, (size, most) in sizes.items() if size > most]
    return "; ".join(faults), ", ".join(f"{size:,} {what}" for what, (size, _) in sizes.items())


@contextmanager
def folder_for(entrant: Entrant, arm: str) -> Iterator[Path]:
    """A new folder for a process, with the files that its arm needs; gone at the end."""
    with tempfile.TemporaryDirectory(prefix="judge-", ignore_cleanup_errors=True) as name:
        folder = Path(os.path.realpath(name))
        for file in (entrant.base_file, entrant.file if arm == "idea" else None):
            if file is not None:
                (folder / file.path.name).write_text(file.source, encoding="utf-8")
        yield folder


def rules_broken(said: dict[str, Any], base: dict[str, Any], text: Corpus, seconds: float) -> list[str]:
    """Which rules a run breaks that is compared with its base, as far as it has come; in words.

    said: what its process has said so far: `run`, as `dump` writes it, and once the model is built `params` and whether
    the optimizer `computes_again`. base: the base's run. seconds: of training so far.
    """
    run = said["run"]
    steps, tokens = run["steps"], run["steps"] * run["data"]["batch_size"] * run["data"]["seq_len"]
    allowed, there = base["steps"] * base["data"]["batch_size"] * base["data"]["seq_len"], len(text.tokens["train"])
    broken = [] if steps == base["steps"] else [f"{steps} steps, its base has {base['steps']}"]
    broken += [f"{tokens:,} training tokens, its base has {allowed:,}"] if tokens > allowed else []
    broken += ["training text read more than once"] if tokens > max(there, allowed) else []
    for name in ("init_from_counts", "first_weights"):
        broken += [f"{name} is set"] if run.get(name) is not None and base.get(name) is None else []
    broken += ["an optimizer that computes gradients more than once a step"] if said.get("computes_again") else []
    params = said.get("params", 0)
    broken += [f"{params:,} parameters, at most {MOST_PARAMETERS:,}"] if params > MOST_PARAMETERS else []
    return broken + ([f"more than {MOST_SECONDS} s of training"] if seconds > MOST_SECONDS else [])
