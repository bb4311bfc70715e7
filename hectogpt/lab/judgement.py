"""What is judged, a function of a user's file and its base, which are read and never run here; and
its record: a file of JSON lines, each with the hash of the line before, and what they say
together.

The first line commits to a secret by its hash; the last one reveals it. Seeds and rows follow from
the secret, so whoever has the record can draw them again. A line that is changed, left out or
added later breaks the chain."""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.files import append_line
from hectogpt.idea_file import read_idea
from hectogpt.json_files import parse_json_object, read_bytes
from hectogpt.lab.ideas import SPEC, functions_of, no_function
from hectogpt.lab.recipes import recipe
from hectogpt.lab.sequential import pair_of
from hectogpt.lab.statistics import Paired

ARMS = ("base", "idea")
LARGEST_FILE = 100_000  # bytes of an idea's source, comments and names too
MOST_COMPRESSED = 12_000  # of it: a table of weights, or a text, is no idea
# Of a record: FILE.py:FUNCTION without a folder, and a recipe or such a function with a base of
# its own.
IDEA = re.compile(r"\w[\w .-]*\.py:\w+")
BASE = re.compile(r"\w+|\w[\w .-]*\.py:\w+(@\w+)?")
LARGEST = 1 << 26  # bytes of a record; ours have about 50,000
FIRST = "0" * 64  # the hash before the first line


# --- what is judged
# ---


@dataclass(frozen=True)
class Entrant:
    """What is judged, as the first line of a record has it. idea: FILE.py:FUNCTION, with the
    file's name alone. base: a recipe or another such function, which the idea is applied to.
    sha256: of the idea's source. base_source: None for a recipe."""

    idea: str
    base: str
    sha256: str
    source: str
    base_source: str | None

    def __post_init__(self) -> None:
        """Raises ValueError for names with a folder, and for a source that is not the one that
        sha256 names.
        """
        if not IDEA.fullmatch(self.idea) or not BASE.fullmatch(self.base):
            raise ValueError(
                f"{self.idea!r:.80} on {self.base!r:.80} is not FILE.py:FUNCTION on a base"
            )
        if hash_of(self.source) != self.sha256:
            raise ValueError("its source is not the one whose hash it has")

    def sources(self, arm: str) -> dict[str, str]:
        """Name of a file -> its source, of the files that an arm needs."""
        base = {} if self.base_source is None else {self.base.partition(":")[0]: self.base_source}
        return base | ({self.idea.partition(":")[0]: self.source} if arm == "idea" else {})


def find_entrant(name: str, base: str = "minute") -> Entrant:
    """FILE.py:FUNCTION[@BASE], read and not run. Raises UserError for what is none."""
    match = SPEC.match(name)
    if match is None:
        raise UserError(f"{name} is not FILE.py:FUNCTION", fix="hectogpt judge my_idea.py:idea")
    file = read_idea(match["path"])
    function = match["function"]
    base = match["base"] or base
    if function not in functions_of(file):
        raise no_function(file, function)
    other = SPEC.match(base)
    base_source = None
    below = other["base"] if other else base
    if below is not None:
        recipe(below)
    if other is not None:
        base_file = read_idea(other["path"])
        if base_file.path.name == file.path.name and base_file.sha256 != file.sha256:
            raise UserError(
                f"two files are called {file.path.name}", fix="another name for one of them"
            )
        base = base_file.path.name + base.removeprefix(other["path"])
        base_source = base_file.source
    try:
        return Entrant(f"{file.path.name}:{function}", base, file.sha256, file.source, base_source)
    except ValueError as error:
        raise UserError(
            f"{name} cannot be judged", why=str(error), fix="a file name of letters and digits"
        ) from None


def weights_in_source(source: str) -> tuple[str, str]:
    """What of a file is too large for an idea, and could hold a trained model or a text, "" for
    nothing; and its sizes."""
    data = source.encode()
    sizes = {
        "bytes": (len(data), LARGEST_FILE),
        "bytes compressed": (len(lzma.compress(data)), MOST_COMPRESSED),
    }
    faults = [
        f"{size:,} {what}, at most {most:,}" for what, (size, most) in sizes.items() if size > most
    ]
    return "; ".join(faults), ", ".join(f"{size:,} {what}" for what, (size, _) in sizes.items())


# --- its record
# ---


def hash_of(text: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def draw_seed(secret: str, number: int) -> int:
    """The seed with this number, from 0: 48 bits that follow from the secret."""
    return int(hash_of(f"{secret} seed {number}")[:12], 16)


def draw(secret: str, what: str) -> np.random.Generator:
    """Random numbers that follow from the secret, for a purpose."""
    return np.random.default_rng(int(hash_of(f"{secret} {what}"), 16))


@dataclass
class Judgement:
    """A record: what its lines say so far. It is read, or written line by line.

    word: "better", "worse", "tie", "unproven", "refused" (it breaks a rule), "dishonest" (a check
    failed), or "unfinished" (it is under way, or was killed).

    begin: the first line. trials: those of both arms, in order: corpus, seed, arm ("base" or
    "idea"), loss (nats per token of the rows), rows (of the test text), seconds, peak_mb, params
    (all numbers of the weights), weights (their hash). checks: name, passed, seen. reasons: why it
    is refused or dishonest. secret: None for an unfinished one. last: the hash of the last line.
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
            raise ValueError(
                "it does not follow the line before: a line was changed, added or left out"
            )
        if (row.get("event") == "begin") == bool(self.begin):
            raise ValueError("a judgement has one beginning, in line 1")
        match row["event"]:
            case "begin":
                Entrant(**{one.name: row[one.name] for one in fields(Entrant)})
                self.begin = row
            case "trial":
                key = tuple(row[name] for name in ("corpus", "seed", "arm"))
                if key in {(t["corpus"], t["seed"], t["arm"]) for t in self.trials}:
                    raise ValueError("a second trial of this corpus, seed and arm")
                if (
                    key[0] not in self.begin["corpora"]
                    or key[2] not in ARMS
                    or not math.isfinite(row["loss"])
                ):
                    raise ValueError("no trial of this judgement")
                self.trials.append(row)
            case "check":
                self.checks.append(row)
            case "verdict":
                if hash_of(str(row["secret"])) != self.begin["commitment"]:
                    raise ValueError("its secret is not the one that line 1 commits to")
                seeds = list(dict.fromkeys(trial["seed"] for trial in self.trials))
                if seeds != [
                    draw_seed(str(row["secret"]), number) for number in range(len(seeds))
                ]:
                    raise ValueError("its seeds do not follow from its secret")
                failed = not all(check["passed"] for check in self.checks)
                if row["word"] != (
                    "dishonest" if failed else "refused" if row["reasons"] else self.decided()
                ):
                    raise ValueError(f"its trials and checks do not say {row['word']!r}")
                self.word = row["word"]
                self.reasons = tuple(row["reasons"])
                self.ended = row["ended"]
                self.secret = row["secret"]
        self.last = hash_of(line)

    @property
    def is_sealed(self) -> bool:
        """True if every process of the idea's was sealed."""
        return self.begin.get("sealed") is True

    @property
    def name(self) -> str:
        """FILE.py:FUNCTION@BASE."""
        return f"{self.begin['idea']}@{self.begin['base']}"

    def gains(self, corpus: str | None = None) -> np.ndarray:
        """float64 [seeds]: loss of the base minus that of the idea, for each seed that both have;
        of one corpus, or the mean over all."""
        losses = {(t["corpus"], t["seed"], t["arm"]): t["loss"] for t in self.trials}
        corpora = self.begin["corpora"] if corpus is None else [corpus]
        rows = [
            [
                losses.get((name, seed, "base"), np.nan) - losses.get((name, seed, "idea"), np.nan)
                for name in corpora
            ]
            for seed in dict.fromkeys(t["seed"] for t in self.trials)
        ]
        means = np.array(rows, dtype=np.float64).reshape(-1, len(corpora)).mean(axis=1)
        return means[np.isfinite(means)]

    def pair(self, corpus: str | None = None) -> Paired | None:
        """What the sequential test says of these gains (lab/sequential.py); None before the
        first.
        """
        gains = self.gains(corpus).tolist()
        return pair_of(gains) if gains else None

    def decided(self) -> str:
        """ "better", "worse" or "tie" once the gains decide it, else "unproven". What is better on
        the whole and worse on one corpus is unproven."""
        pair = self.pair()
        each = [self.pair(name) for name in self.begin["corpora"]]
        if pair is None or (
            pair.verdict == "better" and any(one and one.verdict == "worse" for one in each)
        ):
            return "unproven"
        return pair.verdict

    def cost(self, name: str, arm: str) -> float | None:
        """Mean of "seconds", "peak_mb" or "params" over the arm's trials; None without any."""
        values = [t[name] for t in self.trials if t["arm"] == arm and t.get(name) is not None]
        return float(np.mean(values)) if values else None


def read_judgement(path: Path) -> Judgement:
    """Read a record, check its chain and its secret. Raises UserError (DATA) with the line that is
    not as it was.
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
            fix = "a record as it was written"
            raise UserError(
                f"{path}, line {number}", why=str(error), fix=fix, code=errors.DATA
            ) from None
    return found
