"""`hectogpt show [RUN]`: a run's folder in one table: numbers, picture, samples, and what differs from its recipe."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import tyro

from hectogpt import errors
from hectogpt.cli.console import columns, one_line
from hectogpt.cli.run_records import (
    IDEA,
    PICTURE,
    RUNNING,
    UNFINISHED,
    RunRecord,
    bytes_text,
    count_of,
    find_runs,
    number_of,
    read_record,
    text_of,
)
from hectogpt.display import facts_text, printable
from hectogpt.errors import UserError
from hectogpt.serialization import did_you_mean

EXAMPLES = """\
  hectogpt show
  hectogpt show runs/minute --json"""

NGRAMS = {
    "uniform": "uniform",
    "unigram": "unigram counts",
    "kn2": "Kneser-Ney bigram",
    "kn3": "Kneser-Ney trigram",
    "mkn5": "Kneser-Ney of order 5",
    "best": "best counting",
}
STATES = {
    "done": "trained and scored",
    "interrupted": "a signal ended it early; `hectogpt train --resume FOLDER` goes on",
    "diverged": "its numbers were no longer finite; `hectogpt check FOLDER --diagnose` finds where",
    "unscored": "trained, but its scoring was ended; `hectogpt check FOLDER --repair` scores it",
    RUNNING: "a process is training in it now",
    UNFINISHED: "it was killed: `hectogpt train --resume FOLDER` goes on",
}


@dataclass(frozen=True)
class ShowArguments:
    """Show a run: its numbers, its picture's path, its samples, and the fields that differ from its recipe."""

    run: Annotated[str, tyro.conf.Positional] = ""
    """Folder that `hectogpt train` wrote, or its name below runs/. Default: the run here that was written last."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Differences:
    """How a run differs from its recipe as the recipe is today.

    fields: dotted field -> (the recipe's value, the run's). note: what is to be said about them, or why there are none.
    """

    recipe: str
    fields: dict[str, tuple[Any, Any]]
    note: str = ""


def main(argv: list[str]) -> None:
    """Run the command."""
    run(tyro.cli(ShowArguments, args=argv, prog="hectogpt show"))


def run(arguments: ShowArguments) -> None:
    """Print what the folder tells. Raises UserError (CHECKPOINT) for a folder that is no run's or is damaged."""
    record = read_record(choose(arguments.run, Path("runs")))
    differences = find_differences(record)
    if arguments.json:
        print(json.dumps(as_json(record, differences), allow_nan=False))
        return
    name = record.recipe + (" (modified)" if record.changed else "")
    print(facts_text(f"{one_line(str(record.folder))}: {one_line(name)}", {k: one_line(v) for k, v in facts(record)}))
    print("\n" + differences_text(differences))
    for kind, text in samples_of(record):
        print(f"\n{one_line(kind)}\n{textwrap.indent(printable(text), '  ')}")


def choose(name: str, root: Path) -> Path:
    """The folder of that name, as a path or below `root`; without a name the newest run. Raises UserError."""
    if not name:
        found, _ = find_runs(root)
        if not found:
            raise UserError(
                f"no run below {root}", fix="hectogpt train, or name a run's folder", code=errors.CHECKPOINT
            )
        return found[-1].folder
    for folder in (Path(name), root / name):
        if folder.is_dir():
            return folder
    here = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    raise UserError(
        f"no run {name!r}",
        why=f"there is neither a folder {name} nor {root / name}",
        fix=did_you_mean(name, here) if here else "hectogpt train",
        code=errors.CHECKPOINT,
    )


def find_differences(record: RunRecord) -> Differences:
    """The fields in which the run differs from its recipe; a run with an idea, from what the idea was applied to.

    Loads torch, and runs nothing of the folder: where the run's classes are not known here, values are compared as they
    are in run.json.
    """
    from hectogpt.lab import ideas, recipes
    from hectogpt.serialization import dump
    from hectogpt.training.run_folder import read_run

    name = ideas.base_name(text_of(record.run.get("recipe")) or "")
    try:
        base = recipes.recipe(name)
    except UserError as error:
        return Differences(name, {}, error.what)
    try:
        after, note = dump(read_run(record.folder)), ""
    except UserError as error:
        after, note = record.run, f"compared by the text of run.json: {error.what.partition(': ')[2] or error.what}"
    fields = dict(compare(dump(base), after))
    return Differences(
        base.recipe, {field: pair for field, pair in fields.items() if field not in ("recipe", "ideas")}, note
    )


def compare(before: Any, after: Any, where: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """(dotted field, (before, after)) of every leaf in which two parts of run files differ."""
    if isinstance(before, dict) and isinstance(after, dict) and before.get("type") == after.get("type"):
        for key in {**before, **after}:
            yield from compare(before.get(key), after.get(key), f"{where}.{key}" if where else key)
    elif before != after:
        yield where, (before, after)


def as_json(record: RunRecord, differences: Differences) -> dict[str, Any]:
    """Everything as one object."""
    picture = record.folder / PICTURE
    return record.as_json() | {
        "picture": str(picture) if picture.is_file() else None,
        "base": differences.recipe,
        "differences": {field: list(pair) for field, pair in differences.fields.items()},
        "note": differences.note,
        "samples": dict(samples_of(record)),
        "ngrams": ngrams_of(record),
        "summary": record.summary,
        "run": record.run,
    }


def facts(record: RunRecord) -> Iterator[tuple[str, str]]:
    """The lines of the table: what the folder does not say is left out."""
    summary = record.summary

    def number(key: str, form: str) -> str | None:
        value = number_of(summary.get(key))
        return None if value is None else format(value, form)

    told = STATES.get(record.state, "").replace("FOLDER", str(record.folder))
    yield "state", f"{record.state}: {told}" if told else record.state
    if record.steps is not None or record.planned is not None:
        yield "steps", f"{record.steps if record.steps is not None else '?'} of {record.planned or '?'}"
    yield "corpus", text_of(summary.get("corpus")) or text_of(record.run.get("corpus")) or "?"
    if (seed := count_of(record.run.get("seed"))) is not None:
        yield "seed", str(seed)
    for name, key in (("training tokens", "train_tokens"), ("parameters", "params")):
        if (count := count_of(summary.get(key))) is not None:
            yield name, f"{count:,}"
    for split, name in (("dev", "held-out loss"), ("test", "test loss")):
        if loss := number(f"{split}_loss", ".4f"):
            bits = number(f"{split}_bpb", ".4f")
            yield name, f"{loss} nats per token" + (f", {bits} bits per byte" if bits else "")
    if (before := number("dev_loss_before", ".4f")) and isinstance(first := summary.get("first_weights"), dict):
        yield "before training", f"{before} nats per token, with the weights of {text_of(first.get('source')) or '?'}"
    if record.state in (UNFINISHED, RUNNING) and (now := number_of(record.last_row.get("train/loss"))) is not None:
        yield "training loss", f"{now:.4f} on the batch of step {record.steps}"
    if last := number("train_loss_last", ".4f"):
        mean = number("train_loss_last10", ".4f")
        yield "training loss", f"{last} on the last batch" + (f", {mean} over the last ten" if mean else "")
    if ngrams := ngrams_of(record):
        yield "n-gram baselines", ", ".join(f"{NGRAMS[key]} {value:.3f}" for key, value in ngrams.items())
    if seconds := number("seconds", ",.1f"):
        yield "seconds", f"{seconds} for building and training"
    if memory := number("peak_mb", ",.0f"):
        yield "peak memory", f"{memory} MiB"
    if machine := machine_of(record):
        yield "machine", machine
    written = datetime.fromtimestamp(record.modified).strftime("%Y-%m-%d %H:%M:%S")
    yield "written", f"{written}, {bytes_text(record.size)}"
    for name, file in (("picture", PICTURE), ("idea", IDEA)):
        if (record.folder / file).is_file():
            yield name, str(record.folder / file)


def ngrams_of(record: RunRecord) -> dict[str, float]:
    """Held-out losses of the n-gram baselines; an old summary calls them anchors."""
    found = record.summary.get("ngrams", record.summary.get("anchors"))
    values = {key: number_of(found.get(key)) for key in NGRAMS} if isinstance(found, dict) else {}
    return {key: value for key, value in values.items() if value is not None}


def machine_of(record: RunRecord) -> str:
    """Device, dtypes, threads and versions in words."""
    machine = record.summary.get("machine")
    if not isinstance(machine, dict):
        return ""
    words = {"device": "{}", "dtype": "{} blocks", "head_dtype": "{} head", "threads": "{} threads"}
    words |= {"torch": "torch {}", "python": "Python {}"}
    values = {key: machine[key] for key in words if isinstance(machine.get(key), str | int)}
    return ", ".join(words[key].format(value) for key, value in values.items())


def samples_of(record: RunRecord) -> list[tuple[str, str]]:
    """The continuations in the summary: (how, text)."""
    samples = record.summary.get("samples")
    return [(how, text) for how, text in samples.items() if isinstance(text, str)] if isinstance(samples, dict) else []


def differences_text(differences: Differences) -> str:
    """The differing fields as a table."""
    recipe, note = one_line(differences.recipe), one_line(differences.note)
    if not differences.fields:
        return f"Not compared to a recipe: {note}" if note else f"Every field has the value of the recipe {recipe}."
    rows = [[one_line(field), *map(value_text, pair)] for field, pair in differences.fields.items()]
    title = f"Differs from the recipe {recipe}" + (f" ({note})" if note else "")
    return "\n".join([title, *columns(["field", "recipe", "this run"], rows, left=3)])


def value_text(value: Any) -> str:
    """A field's value on one line; a part with its own fields as Name(field=value)."""
    if isinstance(value, dict):
        inside = ", ".join(f"{key}={value_text(item)}" for key, item in value.items() if key != "type")
        return one_line(f"{value.get('type', '')}({inside})")
    if isinstance(value, list):
        return "(" + ", ".join(map(value_text, value)) + ")"
    return one_line(value if isinstance(value, str) else str(value))
