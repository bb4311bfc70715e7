"""Drives a comparison for `hectogpt compare`: the plan, the trials with a live table, the results."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from hectogpt import errors
from hectogpt.cli.compare_engines import Runner, array_script, is_task, open_engine, write_script
from hectogpt.cli.compare_table import WIDE, LiveTable, results_table, state_of
from hectogpt.cli.console import note, output_console
from hectogpt.cli.options import CompareArguments
from hectogpt.data import open_corpus
from hectogpt.display import NGRAMS, printable
from hectogpt.errors import UserError
from hectogpt.files import write_atomic
from hectogpt.lab.compare import Comparison, Result, Trial, best_of, ngram_means
from hectogpt.lab.gains import gain_text
from hectogpt.lab.ngram import loss_standard_error
from hectogpt.lab.plan import old_names, plan
from hectogpt.lab.record import check_writable, notes_on
from hectogpt.lab.rounds import MOST_SEEDS, Rounds, duration_text, parse_duration
from hectogpt.lab.statistics import LEAST_DIFFERENCE, SIGNIFICANCE
from hectogpt.lab.tracks import broken_rules, find_track
from hectogpt.lab.verdict import Verdict, give_verdicts
from hectogpt.signals import WORDS, Stopped, raise_on_signal
from hectogpt.training.setup import check_corpus, count_parameters
from hectogpt.training.trackers import parse_names

SEEDS = 5  # if no number is given
FEW_TOKENS = 2000  # held-out tokens below which the third decimal of a loss means nothing
VERDICT_WORDS = (
    f"tie: within the noise or {LEAST_DIFFERENCE}. unproven: lower beyond both, but p >= {SIGNIFICANCE}; or a single "
    "seed."
)
SEQUENTIAL_WORDS = (
    f"Intervals and p are valid at every look. tie: the interval lies within {LEAST_DIFFERENCE} of 0. unproven: not "
    "decided."
)


@dataclass(frozen=True)
class Plan:
    """What a command asks for. rounds: where the number of seeds is found while it runs; else None."""

    arguments: CompareArguments
    comparison: Comparison
    rounds: Rounds | None
    trackers: tuple[str, ...]

    def results(self) -> list[Result]:
        """What the trials recorded so far say."""
        return self.comparison.results() if self.rounds is None else self.rounds.results()

    def note(self, line: str) -> None:
        """Write a remark to stderr, unless the command is quiet."""
        note(line, self.arguments.quiet)


@dataclass(frozen=True)
class Outcome:
    """A comparison that has run. ended: why there are no more seeds, in words; "" if their number was given."""

    comparison: Comparison
    results: list[Result]
    verdicts: list[Verdict]
    swept: bool
    ended: str


def compare(arguments: CompareArguments) -> None:
    """Run the missing trials and print what all of them say. Raises UserError, also for trials that crashed."""
    asked = make_plan(arguments)
    comparison, seed_by_seed = asked.comparison, asked.rounds is not None
    for line in size_notes(comparison):
        asked.note(f"note: {line}")
    missing = comparison.missing()
    if arguments.dry_run and arguments.engine == "slurm":
        print(array_script(arguments, comparison, seed_by_seed), end="")
    elif arguments.dry_run:
        show_plan(comparison, missing, asked.rounds)
    else:
        check_outputs(arguments)
        if not write_script(arguments, comparison, missing, seed_by_seed):
            run_and_report(asked, missing)


def make_plan(arguments: CompareArguments) -> Plan:
    """The arms, text, track and seeds that the arguments name. Raises UserError."""
    trackers = tuple(parse_names(arguments.trackers))
    budget = None if arguments.budget is None else parse_duration(arguments.budget)
    arms = plan(arguments.recipes, arguments.without, arguments.sweep, arguments.steps)
    for old, new in old_names((*arguments.recipes, *arguments.without), arguments.sweep, arms).items():
        note(f"note: {old} is now called {new}", arguments.quiet)
    if arguments.threads:
        arms = [replace(arm, run=replace(arm.run, threads=arguments.threads)) for arm in arms]
    track, corpus = find_track(arguments.track), open_corpus(arguments.corpus)
    for arm in arms:
        check_corpus(arm.run, corpus)
    first, seeds = arguments.first_seed, arguments.seeds
    wanted = range(first, first + (SEEDS if seeds is None else seeds))
    comparison = Comparison(arms, wanted, corpus, track, arguments.out, arguments.test)
    rounds = None
    if budget is not None or arguments.until is not None:
        rounds = Rounds(comparison, first, MOST_SEEDS if seeds is None else seeds, budget, arguments.until is not None)
    return Plan(arguments, comparison, rounds, trackers)


def check_outputs(arguments: CompareArguments) -> None:
    """Raise UserError for records or a page that could not be written after hours of trials."""
    check_writable(arguments.out)
    if arguments.html is not None:
        check_page(arguments.html)


def run_and_report(asked: Plan, missing: list[Trial]) -> None:
    """Run the trials and say what came of all; a task of an array leaves that to who follows the array."""
    arguments, comparison = asked.arguments, asked.comparison
    before = {record.key() for record in comparison.records.values()}
    with open_engine(arguments, comparison, asked.rounds is not None) as engine:
        if asked.rounds is None:
            perform_all(asked, missing, engine)
        else:
            perform_rounds(asked, asked.rounds, engine)
    if is_task(arguments):
        raise_for_crashes(comparison, bool(comparison.records))
        return
    results = asked.results()
    if asked.trackers:
        from hectogpt.lab.track_records import track_records

        added = [record for result in results for record in result.records if record.key() not in before]
        track_records(asked.trackers, added, arguments.out, asked.note)
    ended = asked.rounds.ended if asked.rounds else ""
    verdicts = give_verdicts(comparison, results, arguments.until is not None)
    report(asked, Outcome(comparison, results, verdicts, bool(arguments.sweep), ended))
    raise_for_lost_trials(comparison, results)


def report(asked: Plan, outcome: Outcome) -> None:
    """Print the outcome, as a table or as JSON, and write its page."""
    arguments, comparison, results = asked.arguments, asked.comparison, outcome.results
    if arguments.json:
        print(json.dumps(as_json(outcome), allow_nan=False))
    elif not arguments.quiet and results:
        show_results(outcome)
    if arguments.html is not None and results:
        from hectogpt.lab.comparison_page import page_data
        from hectogpt.web.page import fill

        notes = [*size_notes(comparison), *all_failures(comparison, results)]
        data = page_data(comparison, results, outcome.verdicts, notes, outcome.ended)
        write_atomic(arguments.html, fill("report", data))
        asked.note(f"page: {arguments.html}")


def check_page(path: Path) -> None:
    """Raise UserError (STORAGE) for a page that could not be written after hours of trials."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}", why=error.strerror or str(error), code=errors.STORAGE) from None
    if path.is_dir():
        raise UserError(f"cannot write {path}", why="it is a folder", fix=f"set html to {path / 'verdict.html'}")


def perform_all(asked: Plan, missing: list[Trial], engine: Runner) -> None:
    """Run the trials. Raises UserError when a signal ends it."""
    comparison = asked.comparison
    with LiveTable(comparison, len(missing), asked.arguments.quiet, asked.results) as table, interruptible(comparison):
        perform(missing, engine, table)
        comparison.missing()  # of the others' trials too


def perform_rounds(asked: Plan, rounds: Rounds, engine: Runner) -> None:
    """Run the trials seed by seed until the rounds end. Raises UserError when a signal ends it."""
    comparison, rounds.workers = asked.comparison, engine.workers
    asked.note(rounds_line(rounds))
    with LiveTable(comparison, None, asked.arguments.quiet, asked.results) as table, interruptible(comparison, rounds):
        for trials in rounds:
            perform(trials, engine, table)
            comparison.missing()
            if rounds.until_decided and trials and not table.live:
                for verdict in give_verdicts(comparison, rounds.results(), sequential=True):
                    word = "not decided" if verdict.word == "unproven" else verdict.word
                    asked.note(f"  {verdict.arm}: gain {gain_text(verdict.pair)}, {word}")
    asked.note(rounds.ended)


def perform(trials: Sequence[Trial], engine: Runner, table: LiveTable) -> None:
    """Run those of the trials that nobody has run when it is their turn. An exception ends those under way."""
    with closing(engine.run(trials)) as all_news:
        for news in all_news:
            table.show(news)


@contextmanager
def interruptible(comparison: Comparison, rounds: Rounds | None = None) -> Iterator[None]:
    """Make SIGINT, SIGTERM and SIGHUP a UserError that tells what is kept."""
    try:
        with raise_on_signal():
            yield
    except KeyboardInterrupt as stop:
        left, all_trials = len(comparison.missing()), len(comparison.trials())
        where = f"{left} of {all_trials} trials missing" if rounds is None else f"at seed {comparison.seeds[-1]}"
        code = stop.code if isinstance(stop, Stopped) else errors.INTERRUPTED
        raise UserError(
            f"{WORDS[code]}, {where}",
            fix="the same command goes on where it stopped",
            kept=f"the finished trials, in {comparison.out}" if left < all_trials else "",
            code=code,
        ) from None


def raise_for_crashes(comparison: Comparison, kept: bool) -> None:
    """Raise UserError if trials of this call crashed. kept: whether there are records of others."""
    if comparison.failed:
        seeds: dict[tuple[str, str], list[str]] = {}
        for record in comparison.failed:
            seeds.setdefault((record.arm, str(record.error)), []).append(str(record.seed))
        whys = [f"{arm}, seed {', '.join(which)}: {error}" for (arm, error), which in seeds.items()]
        raise UserError(
            f"{len(comparison.failed)} of {len(comparison.trials())} trials crashed and are not counted",
            why="\n".join(whys),
            fix="the same command runs them again",
            kept=f"the other trials, in {comparison.out}" if kept else "",
            code=1,
        )


def raise_for_lost_trials(comparison: Comparison, results: Sequence[Result]) -> None:
    """Raise UserError if trials of this call crashed, or if no trial gave a model."""
    raise_for_crashes(comparison, bool(results))
    records = [record for result in results for record in result.records]
    if all(record.status == "diverged" for record in records):
        raise UserError(
            f"none of {len(records)} trials gave a model",
            why=str(records[0].error),
            fix=f"a lower learning rate; to run them again, remove their lines from {comparison.out}",
            code=errors.DIVERGED,
        )


def size_notes(comparison: Comparison) -> list[str]:
    """What there is to say about a small held-out text."""
    corpus, held_out = comparison.corpus, comparison.corpus.tokens[comparison.split]
    if len(held_out) >= FEW_TOKENS:
        return []
    error = loss_standard_error(corpus.train, held_out, corpus.n_vocab)
    return [
        f"the {comparison.split} text has only {len(held_out):,} tokens: a loss on it has a standard error of about "
        f"{error:.2g} nats (a trigram's), so its last decimals mean nothing"
    ]


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The results as plain values."""
    comparison, results = outcome.comparison, outcome.results
    answer: dict[str, Any] = {
        "corpus": comparison.corpus.name,
        "track": comparison.track.name,
        "metric": f"{comparison.split}_loss",
        "seeds": comparison.seeds,
        "arms": [result.as_json() for result in results],
        "verdicts": [verdict.as_json() for verdict in outcome.verdicts],
        "ended": outcome.ended or None,
        "ngrams": ngram_means(results),
        "notes": [*size_notes(comparison), *all_failures(comparison, results)],
    }
    if outcome.swept and len(results) > 1:
        best, bias = best_of(results)
        answer["best"] = {"arm": best.arm.label, "of": len(results), "selection_bias": bias}
    return answer


def all_failures(comparison: Comparison, results: Sequence[Result]) -> list[str]:
    """A line for each way in which trials went wrong, those of this call that crashed included."""
    return notes_on([*(record for result in results for record in result.records), *comparison.failed])


def show_plan(comparison: Comparison, missing: Sequence[Trial], rounds: Rounds | None = None) -> None:
    """Print what would be run."""
    table = Table(box=box.SIMPLE)
    for name in ("arm", "parameters", "steps", "tokens a step", "trials to run"):
        table.add_column(name, justify="left" if name == "arm" else "right", overflow="fold")
    lines = []
    for arm in comparison.arms:
        count, data = count_parameters(arm.run, comparison.corpus), arm.run.data
        todo = sum(trial.arm.label == arm.label for trial in missing)
        trials = str(todo) if rounds is None else f"{todo} a seed"
        table.add_row(
            Text(printable(arm.label)), f"{count:,}", str(arm.run.steps), f"{data.batch_size * data.seq_len:,}", trials
        )
        broken = broken_rules(comparison.track, arm.run, comparison.corpus, count)
        if broken:
            lines.append(f"{arm.label} breaks the rules of {comparison.track.name}: {'; '.join(broken)}")
    stdout().print(table)
    for line in [*lines, state_of(comparison, len(missing)) if rounds is None else rounds_line(rounds)]:
        print(printable(line))


def rounds_line(rounds: Rounds) -> str:
    """What ends a comparison whose number of seeds is open, on one line."""
    comparison, most = rounds.comparison, len(rounds.seeds)
    ends = [f"at most {most} seed{'s' * (most != 1)}"]
    ends += [duration_text(rounds.budget)] if rounds.budget is not None else []
    ends += ["until decided"] if rounds.until_decided else []
    return f"{comparison.corpus.name}, {comparison.track.name}: seed by seed, {', '.join(ends)}; {comparison.out}"


def show_results(outcome: Outcome) -> None:
    """Print the final table, the n-gram baselines, what must be said about single trials, and the verdicts."""
    comparison, results = outcome.comparison, outcome.results
    console = stdout()
    table = results_table(comparison, results, console.width)
    levels = ", ".join(f"{NGRAMS[name]} {level:.3f}" for name, level in ngram_means(results).items())
    lines = [
        *table,
        "",
        f"N-gram baselines of the same tokens ({comparison.split}): {levels}",
        f"Gains: {comparison.split} nats/token over paired seeds, positive is better. Noise: 2 SD of the gains / "
        "sqrt(n). " + (SEQUENTIAL_WORDS if any(verdict.sequential for verdict in outcome.verdicts) else VERDICT_WORDS),
    ]
    if outcome.swept and len(results) > 1:
        best, bias = best_of(results)
        again = comparison.seeds[-1] + 1
        lines.append(
            f"Best of {len(results)}: {best.arm.label}. The best of so many equal settings would lie about {bias:.3f} "
            f"below its true mean by luck alone: run it again on fresh seeds (--first-seed {again}) and quote those."
        )
    lines += notes_on(record for result in results for record in result.records)
    lines += [""] * bool(outcome.verdicts) + [verdict.text for verdict in outcome.verdicts]
    lines += [f"Seeds: {outcome.ended}."] * bool(outcome.ended)
    for line in lines:
        console.print(printable(line), highlight=False, markup=False)


def stdout() -> Any:
    """The console for stdout. A pipe is WIDE columns wide unless $COLUMNS says otherwise."""
    console = output_console()
    piped = not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit()
    return output_console(width=WIDE) if piped else console
