"""`hectogpt judge FILE.py:FUNCTION`: find out whether an idea is better than its base.

The judge trusts no statement of the idea.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hectogpt import sandbox
from hectogpt.cli.console import note, remarks, show
from hectogpt.cli.options import JudgeOptions
from hectogpt.data import Corpus, open_corpus
from hectogpt.display import printable
from hectogpt.errors import Setting, SetTo, UserError
from hectogpt.lab.compare import short_name
from hectogpt.lab.judge import Replay, judge, replay
from hectogpt.lab.judgement import Judgement, find_entrant, read_judgement
from hectogpt.lab.statistics import OPENINGS
from hectogpt.lab.verdict import COSTS, Cost, costs_text
from hectogpt.signals import WORDS

NOT_BETTER = 1
CODES = {"better": 0, "refused": 2, "dishonest": 3}


def main(options: JudgeOptions) -> None:
    """Judge, and exit with the code of the verdict."""
    if bool(options.idea) + (options.replay is not None) + (options.queue is not None) != 1:
        raise UserError(
            "judge takes an idea, or replay, or queue", fix="hectogpt judge my_idea.py:idea"
        )
    for name, value, usual in (
        ("seeds", options.seeds, 12),
        ("minutes", options.minutes, 30),
        ("hours", options.hours, 8),
    ):
        if not value > 0:
            raise UserError(
                Setting(name, f"{value:g}"), why="it must be positive", fix=SetTo(name, usual)
            )
    if options.replay is not None:
        sys.exit(NOT_BETTER if replay_record(options, options.replay).faults else 0)
    if options.queue is not None:
        work_off(options, options.queue)
    else:
        sys.exit(exit_code(judge_idea(options)))


def exit_code(found: Judgement) -> int:
    """The exit code: 0 better in sealed processes, 2 refused, 3 dishonest, 1 everything else."""
    if found.word == "better" and not found.is_sealed:
        return NOT_BETTER
    return CODES.get(found.word, NOT_BETTER)


def open_corpora(names: Sequence[str], quiet: bool) -> list[Corpus]:
    """Open the texts to judge on; tinystories is left out if it is not available.

    Raises UserError for any other text that cannot be opened.
    """
    corpora = []
    for name in names:
        try:
            corpora.append(open_corpus(name))
        except UserError as error:
            if name != "tinystories" or len(names) == 1:
                raise
            remarks(quiet)(f"judged without tinystories: {error.line}")
    return corpora


def judge_idea(options: JudgeOptions) -> Judgement:
    """Judge an idea and print its verdict."""
    entrant = find_entrant(options.idea, options.on)
    corpora = open_corpora(options.corpus, options.quiet)
    limits: dict[str, Any] = {
        "minutes": options.minutes,
        "most_seeds": options.seeds,
        "threads": options.threads,
    }

    def tell(line: str) -> None:
        note(line, options.quiet and not (options.commit and line.startswith("commitment")))

    found = judge(entrant, corpora, options.out, **limits, tell=tell)
    # Of many verdicts on an idea, one may be lucky.
    earlier = [
        one
        for one in records_in(found.path.parent)
        if one.path != found.path and one.name == found.name
    ]
    show(options.json, as_json(found, earlier), [verdict_text(found, earlier)])
    return found


def replay_record(options: JudgeOptions, path: Path) -> Replay:
    """Repeat a judgement, and print which of its statements do not hold."""
    judgement = read_judgement(path)
    if sandbox.bubblewrap() is None:
        remarks()(f"no sandbox here: the code in {path} runs with your rights ({sandbox.HOW})")
    corpora = [
        open_corpus(name)
        for name in options.corpus
        if short_name(name) in judgement.begin["corpora"]
    ]
    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        found = replay(judgement, corpora, lambda line: note(line, options.quiet), Path(folder))
    equal = "the same processor: every loss is equal"
    if not judgement.trials:
        equal = "no seed has losses"
    elif found.largest:
        equal = f"a different processor: every loss within {found.largest:.1e} nats"
    pair = found.again.pair()
    answer = {"record": str(path), "holds": not found.faults, "differences": found.faults}
    answer |= {
        "verdict": found.again.word,
        "gain": pair and pair.gain,
        "largest_difference": found.largest,
    }
    holds = (
        f"{path} holds: {judgement.name} is {found.again.word}, gain {pair or 'unknown'}; {equal}"
    )
    show(options.json, answer, found.faults or [holds])
    return found


def work_off(options: JudgeOptions, folder: Path) -> None:
    """Judge `idea` in each file of a folder, unless it already has a verdict on the same base.

    Stops when the hours are over or a signal arrives.
    """
    if not folder.is_dir():
        raise UserError(
            f"no folder {folder}", fix="a folder of files that each have a function `idea`"
        )
    end = time.monotonic() + options.hours * 3600
    past = [
        one.entrant
        for one in records_in(options.out)
        if one.secret is not None and one.ended not in WORDS.values()
    ]
    done = {(one.sha256, one.base, one.base_source) for one in past}
    for idea in [f"{path}:idea" for path in sorted(folder.glob("*.py"))]:
        if (left := (end - time.monotonic()) / 60) <= 0:
            return note(f"the {options.hours:g} hours are over", options.quiet)
        try:
            entrant = find_entrant(idea, options.on)
            if (entrant.sha256, entrant.base, entrant.base_source) in done:
                note(f"{idea} has a verdict", options.quiet)
                continue
            found = judge_idea(replace(options, idea=idea, minutes=min(options.minutes, left)))
        except UserError as error:
            note(f"{idea}: {error}")
            continue
        if found.ended in WORDS.values():
            sys.exit(next(code for code, word in WORDS.items() if word == found.ended))


def records_in(folder: Path) -> list[Judgement]:
    """The judgements recorded in a folder, oldest first.

    A damaged record is reported and left out.
    """
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        try:
            found.append(read_judgement(path))
        except UserError as error:
            remarks()(error.line)
    return sorted(found, key=lambda judgement: str(judgement.begin["at"]))


# --- the text of the verdict ---


def verdict_text(found: Judgement, earlier: Sequence[Judgement]) -> str:
    """The verdict as a paragraph that can be quoted by itself."""
    begin = found.begin
    pair = found.pair()
    seeds = len(found.gains())
    corpora = " and ".join(begin["corpora"])
    unsealed = "" if found.is_sealed else "unsealed: "
    if found.word in OPENINGS:
        texts = [unsealed + OPENINGS[found.word].format(arm=begin["idea"], first=begin["base"])]
        if pair is None:
            texts[0] += f": no seed is complete ({found.ended})"
        else:
            texts[0] += f": gain {pair} nats per token of test text on {corpora}"
            texts[0] += (
                f", {seeds} seed{'' if seeds == 1 else 's'} drawn from a secret ({found.ended})"
            )
            if len(begin["corpora"]) > 1:
                texts += [f"{name}: {found.pair(name)}" for name in begin["corpora"]]
        texts += [line] if (line := costs_text("training", costs_of(found))) else []
        if rows := sorted({trial["rows"] for trial in found.trials.values()}):
            counts = " or ".join(map(str, rows))
            texts.append(f"Each seed was scored on {counts} rows of a text, drawn after training")
    else:
        texts = [
            f"{unsealed}{begin['idea']} on {begin['base']} is {found.word}: "
            f"{'; '.join(found.reasons)}"
        ]
    passed = sum(check["passed"] for check in found.checks.values())
    texts.append(f"{passed} of {len(found.checks)} checks passed")
    if not found.is_sealed:
        texts.append(f"Its processes were not sealed ({sandbox.HOW}), so the checks prove less")
    if earlier:
        times = f"{len(earlier)} time{'' if len(earlier) == 1 else 's'}"
        words = Counter(one.word for one in earlier)
        listed = ", ".join(f"{count} {word}" for word, count in words.items())
        texts.append(f"An idea of this name was judged {times} before: {listed}")
    return printable(". ".join(text.rstrip(".") for text in texts) + f".\nrecord: {found.path}")


def costs_of(found: Judgement) -> dict[str, Cost]:
    """The costs of one training run, for the base and for the idea."""
    return {
        name: {"first": found.cost(key, "base"), "arm": found.cost(key, "idea")}
        for name, (key, *_) in COSTS.items()
    }


def as_json(found: Judgement, earlier: Sequence[Judgement]) -> dict[str, Any]:
    """Convert the verdict to JSON values."""
    pairs = {corpus: found.pair(corpus) for corpus in (None, *found.begin["corpora"])}
    gains = {
        name: {"gain": p.gain, "interval": [p.low, p.high]}
        for name, p in pairs.items()
        if p is not None
    }
    return {
        "idea": found.begin["idea"],
        "base": found.begin["base"],
        "verdict": found.word,
        "sealed": found.is_sealed,
        "commitment": found.begin["commitment"],
        **gains.pop(None, {"gain": None, "interval": None}),
        "reasons": list(found.reasons),
        "gains": gains,
        "seeds": len(found.gains()),
        "ended": found.ended,
        "cost": {
            name: {"base": each["first"], "idea": each["arm"]}
            for name, each in costs_of(found).items()
        },
        "checks": [
            {name: check[name] for name in ("name", "passed", "seen")}
            for check in found.checks.values()
        ],
        "earlier": [judgement.word for judgement in earlier],
        "record": str(found.path),
    }
