"""The numbers in the texts of answers/ that are quoted from the code, and a check that they agree with it.

Comments after a number name what it quotes: the value of `n:NAME` must round to the digits shown, that of `n<NAME` must
be at most the number.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hectogpt.errors import DATA, USAGE, UserError
from hectogpt.lab.record import read_records

# A number may be followed by "× 10⁻⁵" or " %"; a power of ten may stand alone.
NUMBER = r"(?P<number>-?(?:\d[\d,]*(?:\.\d+)?(?: × 10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?|10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))(?P<percent> %)?"
NAME = re.compile(r"<!-- n([:<])([\w.]+) -->")
QUOTE = re.compile(rf"{NUMBER}(?P<names>(?:{NAME.pattern})+)")
SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


class Quote(NamedTuple):
    """A number as a text shows it: its value, half a unit of its last digit, and the name of what it quotes."""

    shown: str
    value: float
    tolerance: float
    relation: str
    name: str

    def agrees(self, numbers: Mapping[str, float]) -> bool:
        """True if the computed number rounds to the digits shown or, for a bound, is at most that."""
        if self.name not in numbers:
            return False
        if self.relation == "<":
            return numbers[self.name] <= self.value
        return abs(numbers[self.name] - self.value) <= self.tolerance * (1 + 1e-9)


def find_quotes(text: str) -> Iterator[Quote]:
    """Every number of a text that carries a name."""
    for match in QUOTE.finditer(text):
        shown = match["number"].replace(",", "").translate(SUPERSCRIPTS)
        if " × 10" in shown:
            digits, exponent = shown.split(" × 10")
        else:
            digits, exponent = ("1", shown[2:]) if match["number"][-1] in "⁰¹²³⁴⁵⁶⁷⁸⁹" else (shown, "0")
        scale = 10.0 ** int(exponent) * (0.01 if match["percent"] else 1)
        decimals = len(digits.partition(".")[2])
        for relation, name in NAME.findall(match["names"]):
            yield Quote(match[0], float(digits) * scale, 0.5 * 10.0**-decimals * scale, relation, name)


def find_unnamed(text: str) -> list[str]:
    """Decimals, percentages and powers of ten that carry no name and are not among the text's given values.

    Given values are inputs, listed in a comment `<!-- given: 0.99 10⁻² -->`. Code, links and images are skipped.
    """
    given = set(" ".join(re.findall(r"<!-- given: (.*?) -->", text)).split())
    rest = QUOTE.sub(" ", re.sub(r"<!-- given:.*?-->", " ", text))
    rest = re.sub(r"```.*?```|`[^`\n]*`|!?\[[^\]]*\]\([^)]*\)", " ", rest, flags=re.DOTALL)
    found = re.findall(r"\d+\.\d+|\d+ ?%|10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+|\d+e-?\d+|10\^\{[-\d]+\}", rest)
    return [number for number in found if number.replace(" ", "") not in given]


def check_quotes(paths: Iterable[Path], numbers: Mapping[str, float]) -> None:
    """Raise UserError (USAGE) that lists the numbers of the texts that disagree with `numbers` or have no name."""
    wrong = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for quote in find_quotes(text):
            if not quote.agrees(numbers):
                wrong.append(f"{path.name}: {quote.shown} is {numbers.get(quote.name, 'unknown')}")
        wrong += [f"{path.name}: {number} has no name" for number in find_unnamed(text)]
    if wrong:
        raise UserError(
            f"{len(wrong)} numbers of the answers disagree with the code",
            why="; ".join(wrong[:20]),
            fix="correct the text, or the code",
            code=USAGE,
        )


def read_trained(records: Path) -> dict[str, float]:
    """Held-out losses of the short training runs with four kinds of positions, and how far three of them are above
    those of the model without any, seed by seed.

    records: made by `hectogpt compare` (answers/positions.md says how), too long to repeat here. Raises UserError
    (DATA) for a damaged file.
    """
    rows = read_records(records)
    losses: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.dev_loss is not None:
            losses.setdefault(row.recipe.removesuffix("_positions"), {})[row.seed] = row.dev_loss
    unigram = [row.ngram_unigram for row in rows if row.ngram_unigram is not None]
    none = losses["no"]
    found = {"trained.seeds": float(len(none)), "trained.unigram": float(np.mean(unigram))}
    for kind, by_seed in losses.items():
        over = [loss - none[seed] for seed, loss in by_seed.items() if seed in none]
        found[f"trained.{kind}"] = float(np.mean(list(by_seed.values())))
        found[f"trained.{kind}_over"] = float(np.mean(over))
        found[f"trained.{kind}_least"], found[f"trained.{kind}_most"] = min(over), max(over)
    return found


def read_reference_run(log: Path) -> dict[str, float]:
    """Losses and gradient norms of one run of reference/train.py.

    log: what its option `--log` writes, a line {"step", "loss", "grad_norm"} per step. Raises UserError (DATA) if the
    file is missing or damaged.
    """
    try:
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        losses = np.array([row["loss"] for row in rows])
        norms = np.array([row["grad_norm"] for row in rows])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read {log}", why=str(error), fix="run reference/train.py --log", code=DATA) from None
    steps = np.arange(len(losses))
    noise = losses - np.polyval(np.polyfit(steps, losses, 2), steps)
    return {
        "run.steps": float(len(losses)),
        "run.uniform": math.log(50257),
        "run.first": float(losses[0]),
        "run.last": float(losses[-1]),
        "run.last10": float(losses[-10:].mean()),
        "run.fall": float(losses[0] - losses[-1]),
        "run.rises": float((np.diff(losses) > 0).sum()),
        "run.noise": float(noise.std(ddof=3)),
        "run.norm_first": float(norms[0]),
        "run.norm_last": float(norms[-1]),
        "run.norm_least": float(norms.min()),
        "run.norm_most": float(norms.max()),
        "run.clipped": float((norms > 1).sum()),
    }
