"""Comparisons from Python: runs over the same seeds, each trial in a process of its own, the results as data."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hectogpt.api.progress import Progress
from hectogpt.api.show import recipe_of, short
from hectogpt.data import Corpus, open_corpus
from hectogpt.display import printable, table_html, table_text
from hectogpt.errors import UserError
from hectogpt.lab import ideas
from hectogpt.lab.compare import Comparison, Result, Trial
from hectogpt.lab.engines import News, local_engine, run_trials
from hectogpt.lab.plan import Arm
from hectogpt.lab.record import NOT_IDENTITY, Record, check_writable, notes_on
from hectogpt.lab.statistics import Summary
from hectogpt.lab.tracks import find_track
from hectogpt.lab.verdict import Verdict, give_verdicts
from hectogpt.serialization import IDEA_MODULE, Value, diff
from hectogpt.training.run import Run
from hectogpt.training.setup import check_corpus

SHOWN = 3  # changed fields that a label names


@dataclass(frozen=True)
class ComparisonResult:
    """What a comparison came to: the data of what `hectogpt compare` prints.

    results: one for each run that has a trial, in the order of the runs: losses over the seeds, and the paired
        differences to the first run (`to_first`) and to the one before (`to_previous`).
    records: of all trials, those that crashed included. verdicts: one for each run after the first; `text` is a
        paragraph to quote, the other fields are its numbers.
    notes: a line for each way in which trials went wrong or broke the track's rules. split: what is compared.
    """

    results: tuple[Result, ...]
    records: tuple[Record, ...]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]
    corpus: str
    split: str
    seeds: tuple[int, ...]

    def _table(self) -> tuple[str, tuple[str, ...], list[tuple[str, ...]]]:
        title = f"{self.corpus}: {self.split} loss, nats/token, {len(self.seeds)} seed{'s' * (len(self.seeds) != 1)}"
        header = ("run", "n", "mean ± SD", "to the first [95 %]", "p", "verdict")
        return title, header, [_cells(result) for result in self.results]

    def __repr__(self) -> str:
        return f"<ComparisonResult {' / '.join(result.arm.label for result in self.results)}>"

    def __str__(self) -> str:
        verdicts = [str(verdict) for verdict in self.verdicts]
        return "\n".join([table_text(*self._table()), *verdicts, *map(printable, self.notes)])

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        remarks = [(str(text),) for text in (*self.verdicts, *self.notes)]
        return table_html(*self._table()) + (table_html("", (), remarks) if remarks else "")


def _cells(result: Result) -> tuple[str, ...]:
    losses, pair = result.compared, result.to_first
    cells = (result.arm.label, str(losses.n), _mean(losses))
    if pair is None:
        return (*cells, "", "", "")
    interval = "" if pair.low is None or pair.high is None else f" [{pair.low:+.3f}, {pair.high:+.3f}]"
    p = "" if pair.p is None else f"{pair.p:.1g}"
    return (*cells, f"{pair.difference:+.3f}{interval}", p, pair.verdict)


def _mean(losses: Summary) -> str:
    return f"{losses.mean:.4f}" + (f" ± {losses.sd:.4f}" if losses.sd is not None else "")


def compare(
    runs: Sequence[Run | str],
    *,
    seeds: int = 5,
    first_seed: int = 0,
    steps: int | None = None,
    corpus: Corpus | Path | str | None = None,
    track: str = "closed",
    threads: int = 0,
    workers: int = 1,
    test: bool = False,
    out: Path | str | None = None,
    quiet: bool = False,
) -> ComparisonResult:
    """Run every run at every seed and test the differences, as `hectogpt compare` does.

    runs: Runs, names of recipes, or FILE.py:FUNCTION; the first is what the others are compared to, and what a function
    of a file is applied to. Each trial is a process of its own, so classes of your own must be in a file.
    seeds, first_seed: the seeds are first_seed, first_seed + 1, ... steps: another number of steps for all.
    corpus: the text, by default the runs' own. threads: of a trial; 0 for as many as the track allows. workers: trials
    at a time, each on its own cores, or on a GPU of its own where there are several; the bits do not depend on it.
    test: score the test split too and compare by it. out: the file of records; trials that it holds are not run
    again. None keeps no records.

    Raises UserError, also if no trial gave a result. KeyboardInterrupt ends it; finished trials are in `out`.
    """
    arms = make_arms(runs, steps, threads)
    text = corpus if isinstance(corpus, Corpus) else open_corpus(str(corpus) if corpus else _common_corpus(arms))
    for arm in arms:
        check_corpus(arm.run, text)
    with _records_file(out) as path:
        wanted = range(first_seed, first_seed + seeds)
        comparison = Comparison(arms, wanted, text, find_track(track), path, test)
        missing = comparison.missing()
        check_writable(path)
        engine = local_engine(comparison, workers)
        _follow(run_trials(comparison, missing, engine), missing, comparison.split, Progress(quiet))
        comparison.missing()
        results = comparison.results()
        verdicts = give_verdicts(comparison, results)
    records = [record for result in results for record in result.records] + comparison.failed
    if not results:
        raise UserError(
            f"none of {len(comparison.trials())} trials gave a result",
            why=str(comparison.failed[0].error) if comparison.failed else "",
            code=1,
        )
    return ComparisonResult(
        results=tuple(results),
        records=tuple(records),
        verdicts=tuple(verdicts),
        notes=tuple(notes_on(records)),
        corpus=text.name,
        split=comparison.split,
        seeds=tuple(comparison.seeds),
    )


@contextmanager
def _records_file(out: Path | str | None) -> Iterator[Path]:
    """The file of records; one that is gone afterwards if none is asked for."""
    if out is not None:
        yield Path(out).expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="hectogpt-") as folder:
        yield Path(folder) / "compare.jsonl"


def _follow(news: Generator[News, None, None], trials: Sequence[Trial], split: str, progress: Progress) -> None:
    """Run the trials to their end: a bar for all of them on a terminal, and a line for what came of each."""
    done, told = dict.fromkeys((trial.name for trial in trials), 0), 0
    total = sum(trial.arm.run.steps for trial in trials)
    with closing(news), progress.bar(total, f"{len(trials)} trials") as show:
        for new in news:
            trial, name = new.trial, f"{new.trial.arm.label}, seed {new.trial.seed}"
            ended = new.elsewhere or new.record is not None
            done[trial.name] = trial.arm.run.steps if ended else new.step
            show(sum(done.values()), f"{name}: loss {new.loss:.3f}" if new.step else name)
            if new.record is not None:
                told += 1
                progress.line(f"{told} of {len(trials)}: {name}: {_outcome(new.record, split)}")


def _outcome(record: Record, split: str) -> str:
    """What came of a trial, in a line."""
    told = f"{record.status}: {record.error}" if record.status != "ok" else f"{split} loss {record.loss(split):.4f}"
    return told + (f", {record.seconds:.1f} s" if record.seconds is not None else "")


# --- arms -------------------------------------------------------------------------------------------------------------


def make_arms(runs: Sequence[Run | str], steps: int | None = None, threads: int = 0) -> list[Arm]:
    """The arms of a comparison of runs and names. Raises UserError for equal runs and for classes without a file."""
    if isinstance(runs, (str, Run)) or not runs:
        raise UserError("no runs to compare", why="compare takes a list", fix='compare(["baseline", "top"])')
    first = runs[0]
    base = ideas.bases_for([first]) if isinstance(first, str) else "top" if ideas.is_idea(first.recipe) else first
    arms: list[Arm] = []
    for item in runs:
        run = ideas.find_run(item, base) if isinstance(item, str) else item
        check_classes(run)
        changed = _overrides(base if isinstance(base, Run) and isinstance(item, str) and run.ideas else run)
        if steps is not None and steps != run.steps:
            run, changed = replace(run, steps=steps), changed | {"steps": steps}
        run = replace(run, threads=threads or run.threads)
        arms.append(Arm(run.recipe, run, changed))
    labels = _labels([arm.run for arm in arms])
    return [replace(arm, label=label) for arm, label in zip(arms, labels, strict=True)]


def _overrides(run: Run) -> dict[str, Any]:
    """What was changed in a run's recipe, as dotted field -> value; {} for a run that is no recipe's."""
    own = recipe_of(run)
    return {} if own is None else {path: pair[1] for path, pair in _differences(own, run).items()}


def _differences(before: Run, after: Run) -> dict[str, tuple[Any, Any]]:
    """The fields in which two runs differ as experiments: seed, threads and the text's name aside."""
    left_out = (*NOT_IDENTITY, "recipe", "ideas")
    return {path: pair for path, pair in diff(before, after).items() if path.split(".")[0] not in left_out}


def _labels(runs: Sequence[Run]) -> list[str]:
    """A label for each run: its recipe's name, and, where another run has the same, how it differs from the first of
    that name. Raises UserError for two runs that are the same experiment."""
    labels: list[str] = []
    for place, run in enumerate(runs):
        namesakes = [other for other in runs[:place] if other.recipe == run.recipe]
        label = run.recipe
        if namesakes:
            found = _differences(namesakes[0], run)
            told = [f"{path}={short(pair[1])}" for path, pair in found.items()]
            more = [f"and {len(told) - SHOWN} more"] if len(told) > SHOWN else []
            label = " ".join([run.recipe, *told[:SHOWN], *more])
        for earlier, other in enumerate(runs[:place]):
            if (other.recipe, other.ideas) == (run.recipe, run.ideas) and not _differences(other, run):
                raise UserError(
                    f"runs {earlier + 1} and {place + 1} are the same",
                    why="seed, threads and corpus are the comparison's, so runs that differ in these alone are equal",
                    fix="leave one out, or change a field: replace(run, steps=50)",
                )
        labels.append(label if label not in labels else f"{label} ({place + 1})")
    return labels


def _common_corpus(arms: Sequence[Arm]) -> str:
    """The corpus that the runs name. Raises UserError if they name several."""
    names = list(dict.fromkeys(arm.run.corpus for arm in arms))
    if len(names) > 1:
        raise UserError(
            f"the runs read different texts: {', '.join(names)}",
            why="losses on different texts cannot be compared",
            fix=f"set corpus to {names[0]}",
        )
    return names[0]


def check_classes(run: Run) -> None:
    """Raise UserError for a part of the run whose class another process could not import."""
    for part in _parts(run):
        module = type(part).__module__
        if module.partition(".")[0] != "hectogpt" and not module.startswith(IDEA_MODULE):
            name = type(part).__name__
            where = "a notebook or script" if module == "__main__" else f"the module {module}"
            raise UserError(
                f"{name} is defined in {where}",
                why="each trial is a process of its own, which cannot import it from there",
                fix=f"put {name} and a function that takes a Run and returns one that uses it into a file, "
                'and compare "FILE.py:FUNCTION"',
            )


def _parts(value: Any) -> Iterator[Value]:
    """The exchangeable parts inside a value, whatever their depth."""
    if isinstance(value, Value):
        yield value
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _parts(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _parts(item)
