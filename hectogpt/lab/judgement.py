"""The record of a judgement: a file of JSON lines, each with the hash of the line before, and what they say together.

The first line commits to a secret by its hash; the last one reveals it. Seeds and questions follow from the secret, so
whoever has the record can draw them again. A line that is changed, left out or added later breaks the chain.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.files import append_line
from hectogpt.json_files import parse_json_object, read_bytes
from hectogpt.lab.sequential import Looks, look

LARGEST = 1 << 26  # bytes of a record; ours have about 50,000
FIRST = "0" * 64  # the hash before the first line


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
        try:
            append_line(self.path, line)
        except OSError as error:
            why = error.strerror or str(error)
            raise UserError(f"cannot write {self.path}", why=why, code=errors.STORAGE) from None
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

    def looks(self, corpus: str | None = None) -> Looks | None:
        """What the sequential test says of these gains (lab/sequential.py); None before the first."""
        gains = self.gains(corpus)
        return look(gains) if len(gains) else None

    def decided(self) -> str:
        """ "better", "worse" or "tie" once the gains decide it, else "unproven". What is better on the whole and worse
        on one corpus is unproven."""
        looks = self.looks()
        word = "unproven" if looks is None else str(looks.word[-1])
        each = [self.looks(name) for name in self.begin["corpora"]]
        if word == "better" and any(one is not None and one.word[-1] == "worse" for one in each):
            return "unproven"
        return word

    def cost(self, name: str, arm: str) -> float | None:
        """Mean of "seconds", "peak_mb" or "params" over the arm's trials; None without any."""
        values = [t[name] for t in self.trials if t["arm"] == arm and t.get(name) is not None]
        return float(np.mean(values)) if values else None


def interval_text(looks: Looks | None) -> str:
    """ "+0.0312 [+0.0120, +0.0504]", the interval valid at every look; without bounds the gain alone."""
    if looks is None:
        return ""
    gain, low, high = float(looks.gain[-1]), float(looks.low[-1]), float(looks.high[-1])
    return f"{gain:+.4f}" + (f" [{low:+.4f}, {high:+.4f}]" if np.isfinite(low) else "")


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
        raise UserError(f"cannot read {path}", why=str(error), code=errors.DATA) from None
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
