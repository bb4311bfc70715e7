"""What is judged, a function of a user's file and its base, which are read and never run here; and its record: a file
of JSON lines, each with the hash of the line before, and what they say together.

The first line commits to a secret by its hash; the last one reveals it. Seeds and questions follow from the secret, so
whoever has the record can draw them again. A line that is changed, left out or added later breaks the chain.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hectogpt import errors
from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.files import append_line
from hectogpt.idea_file import read_idea
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
    """What is judged, as the first line of a record has it. idea: FILE.py:FUNCTION, with the file's name alone. base: a
    recipe or another such function, which the idea is applied to. sha256: of the idea's source. base_source: None for a
    recipe."""

    idea: str
    base: str
    sha256: str
    source: str
    base_source: str | None

    def write_files(self, folder: Path, arm: str) -> None:
        """Write the files that an arm needs, "base" or "idea"."""
        for name, source in ((self.base, self.base_source), (self.idea, self.source if arm == "idea" else None)):
            if source is not None:
                (folder / name.partition(":")[0]).write_text(source, encoding="utf-8")


def find_entrant(name: str, base: str = "minute") -> Entrant:
    """FILE.py:FUNCTION[@BASE], read and not run. Raises UserError for what is none."""
    match = SPEC.match(name)
    if match is None:
        raise UserError(f"no idea {name}", why="an idea is written FILE.py:FUNCTION", fix="hectogpt judge my.py:idea")
    file, function, base = read_idea(match["path"]), match["function"], match["base"] or base
    if function not in functions_of(file):
        raise no_function(file, function)
    other, base_source = SPEC.match(base), None
    below = other["base"] if other else base
    if below is not None:
        recipe(below)
    if other is not None:
        base_file = read_idea(other["path"])
        if base_file.path.name == file.path.name and base_file.sha256 != file.sha256:
            raise UserError(f"two files are called {file.path.name}", fix="another name for one of them")
        base, base_source = base_file.path.name + base.removeprefix(other["path"]), base_file.source
    return Entrant(f"{file.path.name}:{function}", base, file.sha256, file.source, base_source)


def weights_in_source(source: str) -> tuple[str, str]:
    """What of a file is too large for an idea, and could hold the numbers of a trained model, in words, "" for nothing;
    and the sizes of all that could."""
    constants = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    longest = max((len(value) for value in constants if isinstance(value, str | bytes)), default=0)
    sizes = {
        "characters": (len(source), LARGEST_FILE),
        "characters in one text": (longest, LONGEST_TEXT),
        "numbers": (sum(isinstance(value, int | float | complex) for value in constants), MOST_NUMBERS),
    }
    faults = [f"{size:,} {what}, at most {most:,}" for what, (size, most) in sizes.items() if size > most]
    return "; ".join(faults), ", ".join(f"{size:,} {what}" for what, (size, _) in sizes.items())


def rules_broken(said: dict[str, Any], base: dict[str, Any], text: Corpus, seconds: float) -> list[str]:
    """Which rules a run breaks that is compared with its base, as far as it has come; in words.

    said: what its process has said so far: `run`, as `dump` writes it, and once the model is built `params` and whether
    the optimizer `computes_again`. base: the base's run. seconds: of training so far.
    """
    run, params, there = said["run"], said.get("params", 0), len(text.tokens["train"])
    tokens, allowed = (one["steps"] * one["data"]["batch_size"] * one["data"]["seq_len"] for one in (run, base))
    starts = [name for name in ("init_from_counts", "first_weights") if run.get(name) and not base.get(name)]
    rules = [
        (run["steps"] != base["steps"], f"{run['steps']} steps, its base has {base['steps']}"),
        (tokens > allowed, f"{tokens:,} training tokens, its base has {allowed:,}"),
        (tokens > max(there, allowed), "training text read more than once"),
        (bool(starts), f"{', '.join(starts)} is set"),
        (said.get("computes_again"), "an optimizer that computes gradients more than once a step"),
        (params > MOST_PARAMETERS, f"{params:,} parameters, at most {MOST_PARAMETERS:,}"),
        (seconds > MOST_SECONDS, f"more than {MOST_SECONDS} s of training"),
    ]
    return [words for broken, words in rules if broken]


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


@dataclass
class Judgement:
    """A record: what its lines say so far. It is read, or written line by line.

    word: "better", "worse", "tie", "unproven", "refused" (it breaks a rule), "dishonest" (a check failed), or
    "unfinished" (it is under way, or was killed).

    begin: the first line. trials: those of both arms, in order: corpus, seed, arm ("base" or "idea"), loss (nats per
    token of the test text), seconds, peak_mb, params. checks: name, passed, seen. reasons: why it is refused or
    dishonest. secret: None for an unfinished one. last: the hash of the last line.
    """

    path: Path
    begin: dict[str, Any] = field(default_factory=dict)
    trials: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    word: str = "unfinished"
    reasons: tuple[str, ...] = ()
    secret: str | None = None
    ended: str = ""
    last: str = FIRST

    def write(self, event: str, facts: Mapping[str, Any]) -> None:
        """Add a line: it is on disk before the work goes on. Raises UserError (STORAGE)."""
        row = {"event": event, "previous": self.last, **facts}
        line = json.dumps(row, allow_nan=False)
        with errors.writing(self.path):
            append_line(self.path, line)
        self.take(row, line)

    def take(self, row: dict[str, Any], line: str) -> None:
        """Add what a line says. Raises ValueError if it does not follow from the lines before."""
        if row.get("previous") != self.last:
            raise ValueError("it does not follow the line before: a line was changed, added or left out")
        if (row.get("event") == "begin") == bool(self.begin):
            raise ValueError("a judgement has one beginning, in line 1")
        match row["event"]:
            case "begin":
                self.begin = row
            case "trial":
                self.trials.append(row)
            case "check":
                self.checks.append(row)
            case "verdict":
                if hash_of(str(row["secret"])) != self.begin["commitment"]:
                    raise ValueError("its secret is not the one that line 1 commits to")
                failed = not all(check["passed"] for check in self.checks)
                if row["word"] != ("dishonest" if failed else "refused" if row["reasons"] else self.decided()):
                    raise ValueError(f"its trials and checks do not say {row['word']!r}")
                self.word, self.reasons, self.ended = row["word"], tuple(row["reasons"]), row["ended"]
                self.secret = row["secret"]
        self.last = hash_of(line)

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
    try:
        lines = read_bytes(path, LARGEST).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.unreadable(path, error) from None
    found = Judgement(path)
    for number, line in enumerate(lines or [""], start=1):
        try:
            found.take(parse_json_object(line.encode()), line)
        except (ValueError, KeyError, TypeError) as error:
            fix = "a record as it was written"
            raise UserError(f"{path}, line {number}", why=str(error), fix=fix, code=errors.DATA) from None
    return found
