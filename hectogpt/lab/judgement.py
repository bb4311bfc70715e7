"""The subject of a judgement (an idea and its base) and its record.

The idea is a function in a user's file, which is read and never run here. The record is a file of
JSON lines, each with the hash of the line before. The first line commits to a secret by its hash;
the last one reveals it. Seeds and rows follow from the secret, so whoever has the record can draw
them again. A line that is changed, left out or added later breaks the chain.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from hectogpt import errors
from hectogpt.errors import DataError, UserError
from hectogpt.files import append_line, parse_json_object, read_bytes
from hectogpt.idea_file import read_idea
from hectogpt.lab.ideas import SPEC, functions_of, no_function
from hectogpt.lab.recipes import recipe
from hectogpt.lab.sequential import pair_of
from hectogpt.lab.statistics import Paired

ARMS = ("base", "idea")
# Limits on the bytes of an idea's source, with its comments: as it is, and compressed. They leave
# no room for a table of weights or a text.
MOST_BYTES = (100_000, 12_000)
# The names in a record: FILE.py:FUNCTION without a folder, on a recipe or another such function,
# which may have a recipe as its own base.
FUNCTION = r"\w[\w .-]*\.py:\w+"
NAMES = re.compile(rf"{FUNCTION} on ([\w-]+|{FUNCTION}(@[\w-]+)?)")
LARGEST = 1 << 26  # bytes; most records have about 50,000
FIRST = "0" * 64  # the hash before the first line


# --- what is judged


@dataclass(frozen=True)
class Entrant:
    """The subject of a judgement, as in the first line of its record.

    Attributes:
        idea: FILE.py:FUNCTION, with the file's name without a folder.
        base: the recipe, or another such function, that the idea is applied to.
        sha256: the hash of the idea's source.
        base_source: the source of the base; None for a recipe.
    """

    idea: str
    base: str
    sha256: str
    source: str
    base_source: str | None

    def __post_init__(self) -> None:
        """Check the names and the hash.

        Raises ValueError for names with a folder, and if sha256 is not the source's.
        """
        names = f"{self.idea} on {self.base}"
        expect(NAMES.fullmatch(names), f"{names!r:.200} is not FILE.py:FUNCTION on a base")
        expect(hash_of(self.source) == self.sha256, "its source has a different hash")

    def links(self, arm: str) -> list[Any]:
        """A recipe's name, then file, function and source of each function to apply, in order."""
        links: list[Any] = [self.base]
        if match := SPEC.match(self.base):
            links = [match["base"] or "top", [*match.group("path", "function"), self.base_source]]
        return links if arm == "base" else [*links, [*self.idea.split(":"), self.source]]


def find_entrant(name: str, base: str = "minute") -> Entrant:
    """Read FILE.py:FUNCTION[@BASE] without running it.

    Raises UserError if it is not an idea that can be judged.
    """
    match = SPEC.match(name)
    if match is None:
        raise UserError(f"{name} is not FILE.py:FUNCTION", fix="hectogpt judge my_idea.py:idea")
    file = read_idea(match["path"])
    function = match["function"]
    if function not in functions_of(file):
        raise no_function(file, function)
    base = match["base"] or base
    base_source = None
    if other := SPEC.match(base):
        base_file = read_idea(other["path"])
        base_source = base_file.source
        base = base_file.path.name + base.removeprefix(other["path"])
    recipe(base if other is None else other["base"] or "top")
    try:
        return Entrant(f"{file.path.name}:{function}", base, file.sha256, file.source, base_source)
    except ValueError as error:
        fix = "a file name of letters and digits"
        raise UserError(f"{name} cannot be judged", why=str(error), fix=fix) from None


def weights_in(source: str) -> tuple[str, str]:
    """Check that a file is too small to hold a trained model or a text.

    Returns the problem ("" for none), and the file's sizes.
    """
    data = source.encode()
    found = len(data), len(lzma.compress(data))
    sizes = "{:,} bytes, {:,} compressed; at most {:,} and {:,}".format(*found, *MOST_BYTES)
    return sizes if found[0] > MOST_BYTES[0] or found[1] > MOST_BYTES[1] else "", sizes


# --- its record


def expect(holds: Any, why: str) -> None:
    """Raise ValueError with `why` unless `holds` is true."""
    if not holds:
        raise ValueError(why)


def hash_of(text: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def draw_seed(secret: str, number: int) -> int:
    """The seed with this number (from 0): 48 bits derived from the secret."""
    return int(hash_of(f"{secret} seed {number}")[:12], 16)


def draw(secret: str, what: str) -> np.random.Generator:
    """A random generator derived from the secret, for one purpose."""
    return np.random.default_rng(int(hash_of(f"{secret} {what}"), 16))


@dataclass
class Judgement:
    """A record and its contents so far, either read from a file or being written line by line.

    Attributes:
        begin: the first line.
        entrant: the idea and its base, from this line.
        trials: (corpus, seed, arm) -> the trial, in order. The arm is "base" or "idea". A trial
            has loss (nats per token of the rows), rows (how many were scored), seconds, peak_mb
            and params (number of all weights).
        checks: name -> the check, with `passed` and `seen`.
        word: "better", "worse", "tie", "unproven", "refused" (it breaks a rule), "dishonest" (a
            check failed), or "unfinished" (it is running, or was killed).
        reasons: why it is refused or dishonest.
        secret: the secret, once the last line has revealed it; None until then.
        last: the hash of the last line.
    """

    path: Path
    begin: dict[str, Any] = field(default_factory=dict)
    trials: dict[tuple[str, int, str], dict[str, Any]] = field(default_factory=dict)
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)
    word: str = "unfinished"
    reasons: tuple[str, ...] = ()
    secret: str | None = None
    ended: str = ""
    last: str = FIRST
    entrant: Entrant = field(init=False)

    def write(self, event: str, facts: Mapping[str, Any]) -> None:
        """Append a line and flush it to disk. Raises UserError (STORAGE)."""
        row = {"event": event, "previous": self.last, **facts}
        line = json.dumps(row, allow_nan=False)
        with errors.writing(self.path):
            append_line(self.path, line)
        self.take(row, line)

    def take(self, row: dict[str, Any], line: str) -> None:
        """Add a line's contents. Raises ValueError if it does not follow from the lines before."""
        expect(row.get("previous") == self.last, "a line before it was changed, added or left out")
        expect((row["event"] == "begin") != bool(self.begin), "a judgement begins once, in line 1")
        match row["event"]:
            case "begin":
                self.begin = row
                self.entrant = Entrant(**{one.name: row[one.name] for one in fields(Entrant)})
            case "trial":
                key = row["corpus"], row["seed"], row["arm"]
                known = key[0] in self.begin["corpora"] and key[2] in ARMS
                expect(
                    known and key not in self.trials and math.isfinite(row["loss"]),
                    "not a trial of this record",
                )
                self.trials[key] = row
            case "check":
                self.checks[row["name"]] = row
            case "verdict":
                secret = str(row["secret"])
                holds = hash_of(secret) == self.begin["commitment"]
                expect(holds, "line 1 commits to a different secret")
                drawn = [draw_seed(secret, number) for number in range(len(self.seeds()))]
                expect(drawn == self.seeds(), "its seeds do not follow from its secret")
                self.word = self.decided(row["reasons"])
                holds = self.word == row["word"]
                expect(holds, f"its trials and checks do not say {row['word']!r}")
                self.reasons = tuple(row["reasons"])
                self.ended = row["ended"]
                self.secret = secret
        self.last = hash_of(line)

    @property
    def is_sealed(self) -> bool:
        """True if every process of the idea was sealed."""
        return self.begin.get("sealed") is True

    @property
    def name(self) -> str:
        """FILE.py:FUNCTION@BASE."""
        return f"{self.begin['idea']}@{self.begin['base']}"

    def seeds(self) -> list[int]:
        """The seeds of the trials, in order."""
        return list(dict.fromkeys(seed for _, seed, _ in self.trials))

    def gains(self, corpus: str | None = None) -> np.ndarray:
        """float64 [seeds]: loss of the base minus loss of the idea, for each seed that both have.

        Each is the gain on one corpus, or the mean over all corpora.
        """
        gains = []
        for seed in self.seeds():
            keys = [
                (name, seed) for name in (self.begin["corpora"] if corpus is None else [corpus])
            ]
            with suppress(KeyError):
                losses = [[self.trials[*key, arm]["loss"] for arm in ARMS] for key in keys]
                gains.append(-np.diff(losses).mean())
        return np.array(gains)

    def pair(self, corpus: str | None = None) -> Paired | None:
        """The result of the sequential test of `gains`, or None if there are no gains yet."""
        gains = self.gains(corpus).tolist()
        return pair_of(gains) if gains else None

    def decided(self, reasons: Sequence[str] = ()) -> str:
        """The word of the verdict, given these reasons to refuse the idea.

        It is "dishonest" if a check failed, and "refused" if there are reasons. Otherwise it is
        "better", "worse" or "tie" once the gains decide, and "unproven" before. An idea that is
        better on the whole but worse on one corpus is unproven.
        """
        if not all(check["passed"] for check in self.checks.values()):
            return "dishonest"
        if reasons:
            return "refused"
        words = [pair and pair.verdict for pair in map(self.pair, (None, *self.begin["corpora"]))]
        if words[0] == "better" and "worse" in words:
            return "unproven"
        return words[0] or "unproven"

    def cost(self, name: str, arm: str) -> float | None:
        """The mean "seconds", "peak_mb" or "params" of the arm's trials, or None if unknown."""
        trials = [trial for trial in self.trials.values() if trial["arm"] == arm]
        values = [trial[name] for trial in trials if name in trial]
        return float(np.mean(values)) if values else None


def read_judgement(path: Path) -> Judgement:
    """Read a record, and check its chain and its secret.

    Raises UserError (DATA), which names the first line that is invalid or was changed.
    """
    try:
        lines = read_bytes(path, LARGEST).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.unreadable(path, error) from None
    found = Judgement(path)
    for number, line in enumerate(lines or [""], start=1):
        try:
            found.take(parse_json_object(line.encode()), line)
        except (ValueError, KeyError, TypeError) as error:
            fix = "use an unchanged record"
            raise DataError(f"{path}, line {number}", why=str(error), fix=fix) from None
    return found
