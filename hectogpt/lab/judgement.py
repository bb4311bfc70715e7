"""What is judged, a function of a user's file and its base, which are read and never run here; and its record: a file
of JSON lines, each with the hash of the line before, and what they say together.

The first line commits to a secret by its hash; the last one reveals it. Seeds and questions follow from the secret, so
whoever has the record can draw them again. A line that is changed, left out or added later breaks the chain.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hectogpt import errors
from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.files import append_line
from hectogpt.idea_file import IdeaFile, read_idea
from hectogpt.json_files import parse_json_object, read_bytes
from hectogpt.lab.ideas import SPEC, functions_of, no_function
from hectogpt.lab.recipes import recipe
from hectogpt.lab.sequential import pair_of
from hectogpt.lab.statistics import Paired

MOST_SECONDS = 600  # of training, as on the tracks
MOST_PARAMETERS = 60_000_000
LARGEST_FILE = 100_000  # bytes of an idea's source
LONGEST_TEXT = 2_000  # characters of a text in it
MOST_NUMBERS = 2_000  # numbers in it: a table of weights is no idea
LARGEST = 1 << 26  # bytes of a record; ours have about 50,000
FIRST = "0" * 64  # the hash before the first line


# --- what is judged ---------------------------------------------------------------------------------------------------


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
    if function not in functions_of(file):
        raise no_function(file, function)
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


# --- its record -------------------------------------------------------------------------------------------------------


def hash_of(text: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def draw_seed(secret: str, number: int) -> int:
    """The seed with this number, from 0: 48 bits that follow from the secret."""
    return int(hash_of(f"{secret} seed {number}")[:12], 16)


def draw_positions(secret: str, what: str, tokens: int, count: int) -> np.ndarray:
    """int64 [count], ascending: different positions below `tokens` that follow from the secret."""
    generator = np.random.default_rng(int(hash_of(f"{secret} {what}"), 16))
    return np.sort(generator.choice(tokens, min(count, tokens), replace=False))


class Journal:
    """A record that is being written. Each line is on disk before the work goes on. Raises UserError (STORAGE)."""

    def __init__(self, path: Path, secret: str | None = None) -> None:
        self.path, self.secret, self._previous = path, secret or secrets.token_hex(32), FIRST

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Write the first line: what is judged, and the hash of the secret."""
        facts = {name: value for name, value in facts.items() if name not in ("event", "previous")}
        self.write("begin", {**facts, "commitment": hash_of(self.secret)})

    def write(self, event: str, facts: Mapping[str, Any]) -> None:
        """Add a line."""
        line = json.dumps({"event": event, "previous": self._previous, **facts}, allow_nan=False)
        with errors.writing(self.path):
            append_line(self.path, line)
        self._previous = hash_of(line)


@dataclass(frozen=True)
class Judgement:
    """What a record says.

    word: "better", "worse", "tie", "unproven", "refused" (it breaks a rule), "dishonest" (a check failed), or
    "unfinished" (it was killed).

    begin: the first line. trials: those of both arms, in order: corpus, seed, arm ("base" or "idea"), loss (nats per
    token of the test text), seconds, peak_mb, params. checks: name, passed, seen. reasons: why it is refused or
    dishonest. secret: None for an unfinished one.
    """

    path: Path
    begin: dict[str, Any]
    trials: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    word: str = "unfinished"
    reasons: tuple[str, ...] = ()
    secret: str | None = None
    ended: str = ""

    @property
    def name(self) -> str:
        """FILE.py:FUNCTION@BASE."""
        return f"{self.begin['idea']}@{self.begin['base']}"

    def gains(self, corpus: str | None = None) -> np.ndarray:
        """float64 [seeds]: loss of the base minus that of the idea, for each seed that both have; of one corpus, or the
        mean over all."""
        losses = {(t["corpus"], t["seed"], t["arm"]): t["loss"] for t in self.trials}
        corpora = self.begin["corpora"] if corpus is None else [corpus]
        rows = [
            [losses.get((name, seed, "base"), np.nan) - losses.get((name, seed, "idea"), np.nan) for name in corpora]
            for seed in dict.fromkeys(t["seed"] for t in self.trials)
        ]
        means = np.array(rows, dtype=np.float64).reshape(-1, len(corpora)).mean(axis=1)
        return means[np.isfinite(means)]

    def pair(self, corpus: str | None = None) -> Paired | None:
        """What the sequential test says of these gains (lab/sequential.py); None before the first."""
        gains = self.gains(corpus).tolist()
        return pair_of(gains) if gains else None

    def decided(self) -> str:
        """ "better", "worse" or "tie" once the gains decide it, else "unproven". What is better on the whole and worse
        on one corpus is unproven."""
        pair, each = self.pair(), [self.pair(name) for name in self.begin["corpora"]]
        if pair is None or (pair.verdict == "better" and any(one and one.verdict == "worse" for one in each)):
            return "unproven"
        return pair.verdict

    def cost(self, name: str, arm: str) -> float | None:
        """Mean of "seconds", "peak_mb" or "params" over the arm's trials; None without any."""
        values = [t[name] for t in self.trials if t["arm"] == arm and t.get(name) is not None]
        return float(np.mean(values)) if values else None


def read_judgement(path: Path) -> Judgement:
    """Read a record, check its chain and its secret. Raises UserError (DATA) with the line that is not as it was."""
    lines = list(_lines(path))
    if not lines or lines[0].get("event") != "begin":
        raise _broken(path, 1, "it is not the beginning of a judgement")
    found = Judgement(path, lines[0])
    for number, line in enumerate(lines[1:], start=2):
        match line["event"]:
            case "trial":
                found.trials.append(line)
            case "check":
                found.checks.append(line)
            case "verdict":
                if hash_of(str(line["secret"])) != found.begin["commitment"]:
                    raise _broken(path, number, "its secret is not the one that line 1 commits to")
                word, failed = line["word"], not all(check["passed"] for check in found.checks)
                if word != ("dishonest" if failed else "refused" if line["reasons"] else found.decided()):
                    raise _broken(path, number, f"its trials and checks do not say {word!r}")
                reasons = tuple(line["reasons"])
                found = replace(found, word=word, reasons=reasons, secret=line["secret"], ended=line["ended"])
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        content = read_bytes(path, LARGEST).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.unreadable(path, error) from None
    previous = FIRST
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            row = parse_json_object(line.encode())
        except ValueError as error:
            raise _broken(path, number, str(error)) from None
        if row.get("previous") != previous:
            raise _broken(path, number, "it does not follow the line before: a line was changed, added or left out")
        previous = hash_of(line)
        yield row


def _broken(path: Path, number: int, why: str) -> UserError:
    return UserError(f"{path}, line {number}", why=why, fix="a record as it was written", code=errors.DATA)
