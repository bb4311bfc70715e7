"""`python -m tools.report.atlas`: docs/atlas.md and docs/atlas.html, from results/atlas*.jsonl and docs/literature/.

Ideas without enough trials are rows too. `python -m tools.research.atlas` runs the trials, and writes both at its end.
"""

from __future__ import annotations

import ast
import hashlib
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import hectogpt
from hectogpt.files import write_atomic
from hectogpt.lab.losses import LossVerdict
from hectogpt.lab.record import Record, read_records
from hectogpt.web.page import fill
from tools import ROOT

LITERATURE = ROOT / "docs" / "literature"
TEMPLATE = LITERATURE / "atlas.template.md"  # of docs/atlas.md; the page shows its list of rules too
RESULTS = ROOT / "results"
BASE = "docs/literature/base.py:base@half_minute"
BASE_RECIPE = BASE.rpartition("/")[2]  # as records name it
RECORDS = "results/atlas.jsonl"
SWEEPS = "results/atlas_sweeps.jsonl"
TEXTS = {"tinystories": "TinyStories", "sotu": "State of the Union"}
FIRST_SEEDS = {"tinystories": 401, "sotu": 201}
SWEEP_SEED = 400  # of both texts
FEWEST, MOST = 5, 12  # seeds
WORTH_MORE = 0.02  # nats per token: a smaller effect gets no further seeds
STEPS = 100
WORDS = ("better", "worse", "tie", "unproven", "not measured")
Trials = Mapping[tuple[str, str, int, frozenset[str]], Mapping[int, Record]]  # see `trials_of`


@dataclass(frozen=True)
class Idea:
    """A file of docs/literature/, as its docstring tells it."""

    kind: str
    name: str
    what: str
    source: str
    claim: str
    expected: str
    sweep: str

    @property
    def path(self) -> str:
        """How `compare` calls it, from the root of the checkout."""
        return f"docs/literature/{self.kind}/{self.name}.py:{self.name}"

    @property
    def recipe(self) -> str:
        """How records name it."""
        return f"{self.name}.py:{self.name}@{BASE_RECIPE}"

    @cached_property
    def code(self) -> str:
        """The file."""
        return (LITERATURE / self.kind / f"{self.name}.py").read_text(encoding="utf-8")


def ideas(names: Sequence[str] = ()) -> list[Idea]:
    """Ideas by kind and name: those that are named, or all that state a claim."""
    found = []
    for path in sorted(LITERATURE.glob("*/*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        (function,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == path.stem)
        what, *rest = (ast.get_docstring(function) or "").split("\n\n")
        parts = dict(re.findall(r"^(Source|Claim|Expected|Sweep): (.*(?:\n(?!\w+: ).*)*)", "\n".join(rest), re.M))
        if "Claim" in parts and (not names or path.stem in names):
            lines = (" ".join(parts.get(name, "").split()) for name in ("Source", "Claim", "Expected", "Sweep"))
            found.append(Idea(path.parent.name, path.stem, " ".join(what.split()), *lines))
    return found


def sha_of(code: str) -> str:
    """The hash by which records know a file."""
    return hashlib.sha256(code.encode()).hexdigest()


def base_code() -> str:
    """The base's file."""
    return (LITERATURE / "base.py").read_text(encoding="utf-8")


# --- from records to rows


@dataclass(frozen=True)
class Effect:
    """An idea on one text. pairs: (seed, loss of the base, loss of the idea). The verdict is None with fewer seeds than
    `FEWEST`."""

    pairs: list[tuple[int, float, float]]
    verdict: LossVerdict | None
    seconds: float | None
    parameters: int | None
    commits: list[str]
    diverged: list[int]

    @property
    def word(self) -> str:
        """One of WORDS."""
        return self.verdict.verdict if self.verdict else "not measured"

    @property
    def is_open(self) -> bool:
        """Whether the rule asks for more seeds."""
        found = self.verdict
        return not found or (found.verdict == "unproven" and abs(found.gain) > WORTH_MORE and found.pairs < MOST)


@dataclass(frozen=True)
class Row:
    """An idea and its effect on each text."""

    idea: Idea
    effects: dict[str, Effect]

    @property
    def gain(self) -> float | None:
        """The mean gain over the texts that have a verdict."""
        gains = [effect.verdict.gain for effect in self.effects.values() if effect.verdict]
        return statistics.mean(gains) if gains else None


def trials_of(records: Sequence[Record]) -> Trials:
    """(recipe, text, steps, hashes of the files) -> seed -> trial, of the newest experiment with that key.

    Trials of the rule alone: one thread, a test score, and no field changed but the number of steps.
    """
    groups = defaultdict(list)
    for record in records:
        by_rule = record.run.get("threads") == 1 and set(record.overrides) <= {"steps"}
        if record.counts and record.test_loss is not None and by_rule:
            files = frozenset(record.run.get("ideas", ()))
            groups[record.recipe, record.corpus, int(record.run["steps"]), files].append(record)
    newest = {key: group[-1].experiment() for key, group in groups.items()}
    return {
        key: {record.seed: record for record in group if record.experiment() == newest[key]}
        for key, group in groups.items()
    }


def effect_of(base: Mapping[int, Record], idea: Mapping[int, Record], seeds: Sequence[int]) -> Effect:
    """The effect on one text, from the seeds that both have."""
    both = [(base[seed], idea[seed]) for seed in seeds if seed in base and seed in idea]
    both = [(a, b) for a, b in both if a.corpus_sha256 == b.corpus_sha256]
    pairs = [(a.seed, round(a.test_loss or 0, 5), round(b.test_loss or 0, 5)) for a, b in both]
    ratios = [b.seconds / a.seconds for a, b in both if a.seconds and b.seconds]
    sizes = [(b.params or 0) - (a.params or 0) for a, b in both]
    before, after = ({str(pair[0]): pair[place] for pair in pairs} for place in (1, 2))
    return Effect(
        pairs=pairs,
        verdict=hectogpt.verdict(before, after) if len(pairs) >= FEWEST else None,
        seconds=round(statistics.median(ratios), 2) if ratios else None,
        parameters=sizes[0] if sizes else None,
        commits=sorted({(b.commit or "unknown")[:8] for _, b in both}),
        diverged=[b.seed for _, b in both if b.status == "diverged"],
    )


def rows_of(trials: Trials) -> list[Row]:
    """A row for each idea, the largest gain first, those without a verdict last."""
    found = []
    base = sha_of(base_code())
    for idea in ideas():
        effects = {}
        for text, first in FIRST_SEEDS.items():
            old = trials.get((BASE_RECIPE, text, STEPS, frozenset([base])), {})
            new = trials.get((idea.recipe, text, STEPS, frozenset([base, sha_of(idea.code)])), {})
            effects[text] = effect_of(old, new, range(first, first + MOST))
        found.append(Row(idea, effects))
    return sorted(found, key=lambda row: (-row.gain if row.gain is not None else 99.0, row.idea.kind, row.idea.name))


def word_of(sentence: str) -> str:
    """The verdict that a claim or an expectation begins with."""
    return re.split(r"\W", sentence)[0]


def summary_of(rows: Sequence[Row]) -> str:
    """How much is measured, and what came of it, in a few sentences."""
    effects = [(row.idea, effect) for row in rows for effect in row.effects.values()]
    words = Counter(effect.word for _, effect in effects)
    known = [(idea, effect) for idea, effect in effects if effect.word in ("better", "worse", "tie")]
    right = sum(word_of(idea.expected) == effect.word for idea, effect in known)
    whole = sum(not any(effect.word == "not measured" for effect in row.effects.values()) for row in rows)
    text = f"{len(rows)} ideas on two texts: {whole} measured on both, {len(rows) - whole} not yet."
    if len(effects) > words["not measured"]:
        counts = ", ".join(f"{words[word]} {word}" for word in WORDS[:4])
        text += f" Of {len(effects) - words['not measured']} effects: {counts}."
        waiting = sum(effect.is_open for _, effect in effects if effect.verdict)
        text += f" {waiting} of them wait for more seeds." if waiting else ""
        text += f" Our expectation was right for {right} of {len(known)} clear verdicts." if known else ""
    return text


def tally_of(rows: Sequence[Row]) -> list[list[str]]:
    """How the effects on both texts came out, by what the source claims: a table, its head first."""
    found = Counter((word_of(row.idea.claim), effect.word) for row in rows for effect in row.effects.values())
    claims = {"better": "better", "tie": "a tie", "worse": "worse", "none": "nothing"}
    lines = [[told, *(str(found[claim, word]) for word in WORDS)] for claim, told in claims.items()]
    return [["the source claims", *WORDS], *lines]


# --- the Markdown page


def markdown(lines: Sequence[Sequence[str]], numbers: bool = False) -> str:
    """A table in Markdown."""
    rule = ["---", *["--:" if numbers else "---"] * (len(lines[0]) - 1)]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (lines[0], rule, *lines[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def effect_text(effect: Effect) -> str:
    """The effect in a cell: verdict, gain, interval, seeds."""
    found = effect.verdict
    if found is None or found.interval is None:
        return f"not measured: {len(effect.pairs)} of {FEWEST} seeds" if effect.pairs else "not measured"
    text = (
        f"{found.verdict} {found.gain:+.3f} [{found.interval[0]:+.3f}, {found.interval[1]:+.3f}], {found.pairs} seeds"
    )
    text += ", more to come" if effect.is_open else ""
    return text + (f", {len(effect.diverged)} diverged" if effect.diverged else "")


def costs_of(row: Row) -> list[str]:
    """Time, as the mean of both texts, and parameters, of which a text without trials has none."""
    seconds = [effect.seconds for effect in row.effects.values() if effect.seconds]
    sizes = [effect.parameters for effect in row.effects.values() if effect.parameters is not None]
    return [
        f"× {statistics.mean(seconds):.2f}" if seconds else "",
        (f"{sizes[0]:+,}" if sizes[0] else "same") if sizes else "",
    ]


def atlas_markdown(rows: Sequence[Row]) -> str:
    """docs/atlas.md."""
    lines = [["idea", "kind", *TEXTS.values(), "time", "parameters", "the source claims", "we expected"]]
    for row in rows:
        idea = row.idea
        name = f"[{idea.name}](literature/{idea.kind}/{idea.name}.py)"
        effects = [effect_text(row.effects[text]) for text in TEXTS]
        lines.append([name, idea.kind, *effects, *costs_of(row), idea.claim, idea.expected])
    return TEMPLATE.read_text(encoding="utf-8").format(
        summary=summary_of(rows), tally=markdown(tally_of(rows), numbers=True), rows=markdown(lines)
    )


# --- the page for a browser


def sweeps_of(records: Sequence[Record]) -> dict[str, list[list[Any]]]:
    """Recipe -> [text, setting, dev loss] of the search for a learning rate."""
    found = defaultdict(list)
    for record in records:
        if record.counts and record.dev_loss is not None:
            setting = ", ".join(f"{name} {value}" for name, value in record.overrides.items()) or "as in the file"
            found[record.recipe].append([TEXTS.get(record.corpus, record.corpus), setting, round(record.dev_loss, 4)])
    return found


def page_row(row: Row, sweeps: Mapping[str, list[list[Any]]]) -> dict[str, Any]:
    """What the page shows of an idea."""
    texts = {}
    for text, effect in row.effects.items():
        found = effect.verdict
        interval = found.interval if found and found.interval else None
        texts[text] = {
            "word": effect.word,
            "gain": round(found.gain, 5) if found else None,
            "interval": [round(end, 5) for end in interval] if interval else None,
            "said": effect_text(effect),
            "pairs": effect.pairs,
            "commits": effect.commits,
        }
    idea = row.idea
    about = {
        name: getattr(idea, name) for name in ("kind", "name", "what", "source", "claim", "expected", "path", "code")
    }
    about |= {
        "sha256": sha_of(idea.code),
        "gain": row.gain and round(row.gain, 5),
        "sweep": sweeps.get(idea.recipe, []),
    }
    return about | {"costs": costs_of(row), "texts": texts}


def atlas_page(rows: Sequence[Row], sweeps: Mapping[str, list[list[Any]]], figures: Sequence[Any] = ()) -> str:
    """docs/atlas.html."""
    rules = re.findall(r"^\* (.*(?:\n  .*)*)", TEMPLATE.read_text(encoding="utf-8"), re.MULTILINE)
    return fill(
        "atlas",
        {
            "summary": summary_of(rows),
            "tally": tally_of(rows),
            "rules": [" ".join(rule.split()) for rule in rules],
            "texts": TEXTS,
            "firstSeeds": FIRST_SEEDS,
            "margin": WORTH_MORE,
            "words": WORDS,
            "base": {"code": base_code(), "sha256": sha_of(base_code())},
            "rows": [page_row(row, sweeps) for row in rows],
            "figures": figures,
        },
    )


def write_pages(records: Path = RESULTS, out: Path = ROOT / "docs") -> list[Path]:
    """Write both pages, from the files of records in a folder. Returns their paths."""
    trials = trials_of(read_records(records / Path(RECORDS).name))
    rows = rows_of(trials)
    sweeps = sweeps_of(read_records(records / Path(SWEEPS).name))
    write_atomic(out / "atlas.md", atlas_markdown(rows))
    write_atomic(out / "atlas.html", atlas_page(rows, sweeps))
    return [out / "atlas.md", out / "atlas.html"]


if __name__ == "__main__":
    for path in write_pages():
        print(path.relative_to(ROOT))
