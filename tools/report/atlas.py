"""`python -m tools.report.atlas`: docs/atlas.md and docs/atlas.html, from results/atlas*.jsonl and docs/literature/.

Ideas without trials have rows too. `python -m tools.research.atlas` runs trials, and writes both pages at its end."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
import statistics
import textwrap
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from itertools import pairwise
from operator import getitem
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from hectogpt.files import write_atomic
from hectogpt.lab.ideas import find_run
from hectogpt.lab.record import Record, read_records
from hectogpt.lab.sequential import pair_of
from hectogpt.lab.statistics import Paired
from hectogpt.web.page import fill
from tools import ROOT
from tools.report import ladder_names
from tools.report.tables import format_gain

LITERATURE = ROOT / "docs" / "literature"
TEMPLATE = LITERATURE / "atlas.template.md"  # of docs/atlas.md; the page shows its lists too
RESULTS = ROOT / "results"
BASE = "docs/literature/base.py:base@half_minute"
BASE_RECIPE = BASE.rpartition("/")[2]  # as records name it
RECORDS = "results/atlas.jsonl"
SWEEPS = "results/atlas_sweeps.jsonl"
SECONDS = "results/atlas_seconds.jsonl"
TEXTS = {"tinystories": "TinyStories", "sotu": "State of the Union"}
FIRST_SEEDS = {"tinystories": 401, "sotu": 201}
SWEEP_SEED = 400  # of both texts
FEWEST, MOST = 5, 12  # seeds
WORTH_MORE = 0.02  # nats per token: a smaller effect gets no further seeds
STEPS = 100
HORIZONS = (25, 50, STEPS, 200)
FRESH = 50  # interactions use seeds that are this much larger, because the ideas were chosen by the others
WORDS = ("better", "worse", "tie", "unproven", "not measured")
Trials = Mapping[tuple[str, str, int, frozenset[str]], Mapping[int, Record]]  # see `trials_of`
Figure = dict[str, Any]  # heading, text, table (its head first) and perhaps chart, as pages/atlas.js shows them
Experiment = tuple[str, frozenset[str]]  # recipe, hashes of its files


@dataclass(frozen=True)
class Idea:
    """A file of docs/literature/, as its docstring describes it."""

    kind: str
    name: str
    what: str
    source: str
    claim: str
    expected: str
    sweep: str

    @property
    def path(self) -> str:
        """Its name for `compare`, from the root of the checkout."""
        return f"docs/literature/{self.kind}/{self.name}.py:{self.name}"

    @property
    def recipe(self) -> str:
        """Its name in records."""
        return f"{self.name}.py:{self.name}@{BASE_RECIPE}"

    @property
    def code(self) -> str:
        """The file's source."""
        return (LITERATURE / self.kind / f"{self.name}.py").read_text(encoding="utf-8")


def ideas(names: Sequence[str] = ()) -> list[Idea]:
    """Ideas that state a claim, by kind and name: only those in `names`, if there are any."""
    found = []
    for path in sorted(LITERATURE.glob("*/*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        (function,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == path.stem)
        what, *rest = (ast.get_docstring(function) or "").replace("->", "→").split("\n\n")
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


def files_of(*named: Idea) -> frozenset[str]:
    """The hashes of these ideas' files."""
    return frozenset(sha_of(idea.code) for idea in named)


# --- from records to rows


@dataclass(frozen=True)
class Effect:
    """The effect of an idea on one text, over the seeds that it shares with the base. pairs: (seed, loss of the base,
    loss of the idea). found: the gain after the last seed; None with fewer than `FEWEST` seeds. crash: why there is no
    pair, if the trials crashed."""

    pairs: list[tuple[int, float, float]]
    found: Paired | None
    parameters: int | None
    commits: list[str]
    diverged: int
    crash: str = ""

    @property
    def word(self) -> str:
        """One of WORDS."""
        return self.found.verdict if self.found else "not measured"

    @property
    def is_open(self) -> bool:
        """True if the rule asks for more seeds."""
        found = self.found
        return found is None or (found.verdict == "unproven" and abs(found.gain) > WORTH_MORE and found.n < MOST)

    def __str__(self) -> str:
        if self.found is None:
            why = f"{len(self.pairs)} of {FEWEST} seeds" if self.pairs else self.crash
            return f"not measured: {why}" if why else "not measured"
        more = (", more to come" if self.is_open else "") + (f", {self.diverged} diverged" if self.diverged else "")
        return f"{self.word} {format_gain(self.found)}, {self.found.n} seeds{more}"


@dataclass(frozen=True)
class Row:
    """An idea and its effect on each text."""

    idea: Idea
    effects: dict[str, Effect]
    quiet: float | None = None  # time of a step divided by the base's, on a quiet machine

    @property
    def gain(self) -> float | None:
        """The mean gain over the texts, once each has a verdict: one text does not stand for both."""
        gains = [effect.found.gain for effect in self.effects.values() if effect.found]
        return statistics.mean(gains) if len(gains) == len(self.effects) else None

    @property
    def costs(self) -> list[str]:
        """Time and parameters; "" if not measured."""
        sizes = [effect.parameters for effect in self.effects.values() if effect.parameters is not None]
        size = f"{sizes[0]:+,}" if sizes and sizes[0] else "same" if sizes else ""
        return [f"× {self.quiet:.2f}" if self.quiet else "", size]


def trials_of(records: Sequence[Record]) -> Trials:
    """(recipe, text, steps, hashes of the files) -> seed -> trial, of the newest experiment with that key.

    Only trials that follow the rule count: one thread, a test score, and no field changed but the number of steps.
    """
    groups = defaultdict(list)
    for record in records:
        by_rule = record.run.get("threads") == 1 and set(record.overrides) <= {"steps"}
        if record.counts and record.test_loss is not None and by_rule:
            files = frozenset(record.run.get("ideas", ())[1:])  # the first is the base's; the run has its settings
            groups[record.recipe, record.corpus, int(record.run["steps"]), files].append(record)
    newest = {key: group[-1].experiment() for key, group in groups.items()}
    return {key: {r.seed: r for r in group if r.experiment() == newest[key]} for key, group in groups.items()}


def effect_of(base: Mapping[int, Record], idea: Mapping[int, Record], first: int) -> Effect:
    """The effect on one text. first: the first seed that counts."""
    both = [(base[n], idea[n]) for n in range(first, first + MOST) if n in base and n in idea]
    both = [(a, b) for a, b in both if (a.corpus_sha256, a.run["ideas"][:1]) == (b.corpus_sha256, b.run["ideas"][:1])]
    pairs = [(a.seed, round(a.test_loss or 0, 5), round(b.test_loss or 0, 5)) for a, b in both]
    found = pair_of([before - after for _, before, after in pairs]) if len(pairs) >= FEWEST else None
    parameters = (both[0][1].params or 0) - (both[0][0].params or 0) if both else None
    commits = sorted({(b.commit or "unknown")[:8] for _, b in both})
    return Effect(pairs, found, parameters, commits, sum(b.status == "diverged" for _, b in both))


def read_rows(records: Path = RESULTS) -> tuple[Trials, list[Row]]:
    """All trials in a folder's files of records, and a row for each idea, the largest gain first."""
    for idea in ideas():  # a record is read with defaults for newer fields only if its idea is loaded
        find_run(f"{idea.path}@{BASE}")
    found = read_records(records / Path(RECORDS).name)
    trials = trials_of(found)
    seconds = records / Path(SECONDS).name
    timings = map(json.loads, seconds.read_text(encoding="utf-8").splitlines() if seconds.exists() else [])
    rows = []
    newest = {(frozenset(line["files"]), line["corpus"]): float(line["ratio"]) for line in timings}
    for idea in ideas():
        effects = {}
        for text, first in FIRST_SEEDS.items():
            old = trials.get((BASE_RECIPE, text, STEPS, files_of()), {})
            effect = effect_of(old, trials.get((idea.recipe, text, STEPS, files_of(idea)), {}), first)
            errors = [r.error or "" for r in found if (r.recipe, r.corpus, r.status) == (idea.recipe, text, "failed")]
            crash = errors[-1].partition("\n")[0] if errors and not effect.pairs else ""
            effects[text] = replace(effect, crash=crash)
        ratios = [newest[files_of(idea), text] for text in TEXTS if (files_of(idea), text) in newest]
        rows.append(Row(idea, effects, statistics.mean(ratios) if ratios else None))
    rows.sort(key=lambda row: (-row.gain if row.gain is not None else 99.0, row.idea.kind, row.idea.name))
    return trials, rows


def word_of(sentence: str) -> str:
    """The verdict that a claim or an expectation begins with."""
    return re.split(r"\W", sentence)[0]


def summary_of(rows: Sequence[Row]) -> str:
    """A few sentences on how much is measured, and on the results."""
    effects = [(row.idea, effect) for row in rows for effect in row.effects.values() if effect.found]
    words = Counter(effect.word for _, effect in effects)
    right = sum(word_of(idea.expected) == effect.word for idea, effect in effects)
    whole = sum(all(effect.found for effect in row.effects.values()) for row in rows)
    text = f"{len(rows)} ideas are tried on two texts: {whole} are measured on both, {len(rows) - whole} not yet."
    if effects:
        text += f" Effects measured so far: {', '.join(f'{words[word]} {word}' for word in WORDS[:4])}."
        text += f" {sum(effect.is_open for _, effect in effects) or 'None'} of these {len(effects)} need more seeds."
        text += f" Our expectation was right for {right} of {len(effects) - words['unproven']} clear verdicts."
    return text


def tally_of(rows: Sequence[Row]) -> list[list[str]]:
    """A table of the effects on both texts by the claim of the source, its head first."""
    found = Counter((word_of(row.idea.claim), effect.word) for row in rows for effect in row.effects.values())
    claims = {"better": "better", "tie": "a tie", "worse": "worse", "none": "nothing"}
    lines = [[told, *(str(found[claim, word]) for word in WORDS)] for claim, told in claims.items()]
    return [["the source claims", *WORDS], *lines]


def figures_of(trials: Trials, rows: Sequence[Row]) -> list[Figure]:
    """The figures that have trials."""
    base = (BASE_RECIPE, files_of())
    effects = {row.idea.name: (base, (row.idea.recipe, files_of(row.idea))) for row in reversed(rows)}
    rungs = {new: ((old, frozenset[str]()), (new, frozenset[str]())) for old, new in pairwise(ladder_names())}
    lives = half_life(trials, "ideas", "base", effects), half_life(trials, "ladder's rungs", "rung below", rungs)
    return [one for one in (*lives, agreement(rows), interactions(trials)) if len(one["table"]) > 1]


def half_life(trials: Trials, what: str, over: str, pairs: dict[str, tuple[Experiment, Experiment]]) -> Figure:
    """Gains of runs of different lengths: of each pair's second experiment over its first."""
    table, curves = [["name", "text", *(f"{steps} steps" for steps in HORIZONS)]], {text: list[Any]() for text in TEXTS}
    for name, two in pairs.items():
        for text, first in FIRST_SEEDS.items():
            effects = [between(trials, *two, text, first, steps) for steps in HORIZONS]
            known = [(steps, pair) for steps, pair in zip(HORIZONS, effects, strict=True) if pair]
            if len(known) > 1:
                table.append([name, TEXTS[text], *map(format_gain, effects)])
                errors = [pair.high - pair.gain if pair.high is not None else 0.0 for _, pair in known]
                curves[text].append({"name": name, "points": [[n, pair.gain] for n, pair in known], "errors": errors})
    words = f"Gains over the {over}; each length is a run of its own. The chart shows the last six on TinyStories."
    chart = {"label": words, "xLabel": "steps", "yLabel": "gain", "curves": curves["tinystories"][-6:], "zero": True}
    return {"heading": f"Half-life of the {what}", "text": words, "table": table, "chart": chart}


def between(trials: Trials, old: Experiment, new: Experiment, text: str, first: int, steps: int = STEPS) -> Any:
    """The gain of one experiment over another; None with too few seeds."""
    before, after = (trials.get((recipe, text, steps, files), {}) for recipe, files in (old, new))
    return effect_of(before, after, first).found


def agreement(rows: Sequence[Row]) -> Figure:
    """Our gains and those that were published for larger models, and their rank correlation."""
    ours = {row.idea.name: row.gain for row in rows if row.gain is not None}
    told = json.loads((RESULTS / "published.json").read_text(encoding="utf-8"))
    known = [(ours[one["idea"]], one) for one in told["effects"] if one["idea"] in ours]
    table = [["idea", "here", "published", "where"]]
    table += [[one["idea"], f"{gain:+z.3f}", f"{one['gain']:+.3f}", one["source"]] for gain, one in known]
    words = f"This table compares the gains of {len(known)} ideas here with those in {told['about']}"
    if len(known) > 4:
        rank = float(spearmanr([gain for gain, _ in known], [one["gain"] for _, one in known]).statistic)
        half = 1.96 * math.sqrt((1 + rank**2 / 2) / (len(known) - 3))  # Bonett and Wright 2000
        low, high = (math.tanh(math.atanh(max(-0.999, min(0.999, rank))) + side * half) for side in (-1, 1))
        words += f" Spearman's rank correlation is {rank:+.2f}, 95 % interval {low:+.2f} to {high:+.2f}."
    return {"heading": "Agreement with larger models", "text": words, "table": table}


def interactions(trials: Trials) -> Figure:
    """The gain of ideas of different kinds in one run, and the gain that each adds to the others."""
    end = f"@{BASE_RECIPE}"
    chains = {tuple(key[0].removesuffix(end).split("@")): (key[0], key[3]) for key in trials if end in key[0]}
    whole = max(chains, key=len, default=())
    table = [["idea", *(f"adds on {text}" for text in TEXTS.values())]]
    lines = {"all together": (BASE_RECIPE, files_of())}
    lines |= {one.partition(":")[2]: chains.get(tuple(o for o in whole if o != one), ("", files_of())) for one in whole}
    for name, rest in lines.items() if len(whole) > 2 else ():
        gains = [between(trials, rest, chains[whole], text, first + FRESH) for text, first in FIRST_SEEDS.items()]
        table.append([name, *map(format_gain, gains)])
    words = "The largest gain of each kind when these runs began, whatever its verdict, without ideas that double the"
    words += " time of a run: all in one run, on fresh seeds, and each left out."
    return {"heading": "Interactions", "text": words, "table": table}


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its head first."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (lines[0], ["---"] * len(lines[0]), *lines[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def atlas_markdown(rows: Sequence[Row], figures: Sequence[Figure]) -> str:
    """docs/atlas.md."""
    lines = [["idea", "kind", *TEXTS.values(), "time", "parameters", "the source claims", "we expected"]]
    for row in rows:
        idea, effects = row.idea, (str(row.effects[text]) for text in TEXTS)
        name = f"[{idea.name}](literature/{idea.kind}/{idea.name}.py)"
        lines.append([name, idea.kind, *effects, *row.costs, idea.claim, idea.expected])
    shown = [
        f"## {one['heading']}\n\n{textwrap.fill(one['text'], 120)}\n\n{markdown(one['table'])}\n" for one in figures
    ]
    parts = {
        "summary": textwrap.fill(summary_of(rows), 120),
        "tally": markdown(tally_of(rows)),
        "rows": markdown(lines),
    }
    return TEMPLATE.read_text(encoding="utf-8").format(**parts, figures="\n".join(shown)).rstrip() + "\n"


def sweeps_of(records: Sequence[Record]) -> dict[str, list[list[Any]]]:
    """Recipe -> [text, setting, dev loss] of the search for a learning rate."""
    found = defaultdict(list)
    fields = {idea.recipe: idea.sweep.partition(" of ")[0] for idea in ideas() if idea.sweep}
    for record in records:
        if record.counts and record.dev_loss is not None and record.recipe in fields:
            field = fields[record.recipe]
            setting = f"{field} {reduce(getitem, field.split('.'), record.run)}"
            found[record.recipe].append([TEXTS.get(record.corpus, record.corpus), setting, round(record.dev_loss, 4)])
    return found


def page_row(row: Row, sweep: Sequence[Any]) -> dict[str, Any]:
    """The data of an idea for the page."""
    texts: dict[str, dict[str, Any]] = {}
    for text, effect in row.effects.items():
        found = effect.found
        interval = found and found.low is not None and [found.low, found.high]
        texts[text] = {"word": effect.word, "said": str(effect), "pairs": effect.pairs, "commits": effect.commits}
        texts[text] |= {"gain": found and found.gain, "interval": interval or None}
    idea = row.idea
    more = {"path": idea.path, "code": idea.code, "sha256": sha_of(idea.code), "gain": row.gain, "costs": row.costs}
    return asdict(idea) | more | {"sweep": sweep, "texts": texts}


def atlas_page(rows: Sequence[Row], figures: Sequence[Figure], sweeps: Mapping[str, list[list[Any]]]) -> str:
    """docs/atlas.html."""
    text = TEMPLATE.read_text(encoding="utf-8")
    marks = {"rules": r"\*", "surprises": r"\d+\."}
    base = {"code": base_code(), "sha256": sha_of(base_code())}
    lists = {name: re.findall(rf"^{mark} (.*(?:\n  .*)*)", text, re.MULTILINE) for name, mark in marks.items()}
    data: dict[str, Any] = {"summary": summary_of(rows), "tally": tally_of(rows), "lists": lists}
    data |= {"texts": TEXTS, "firstSeeds": FIRST_SEEDS, "margin": WORTH_MORE, "words": WORDS, "base": base}
    data |= {"rows": [page_row(row, sweeps.get(row.idea.recipe, [])) for row in rows], "figures": figures}
    return fill("atlas", json.loads(json.dumps(data), parse_float=lambda number: round(float(number), 5)))


def write_pages(records: Path = RESULTS, out: Path = ROOT / "docs") -> list[Path]:
    """Write both pages, from the files of records in a folder. Returns their paths."""
    trials, rows = read_rows(records)
    figures = figures_of(trials, rows)
    sweeps = sweeps_of(read_records(records / Path(SWEEPS).name))
    pages = {"atlas.md": atlas_markdown(rows, figures), "atlas.html": atlas_page(rows, figures, sweeps)}
    for name, text in pages.items():
        write_atomic(out / name, text)
    return [out / name for name in pages]


if __name__ == "__main__":
    print(*write_pages(), sep="\n")
