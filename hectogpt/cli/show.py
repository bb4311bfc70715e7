"""`hectogpt show [RUN]`: a run's numbers, samples and what differs from its recipe; without a name all runs."""

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
from hectogpt.cli.console import one_line
from hectogpt.display import NGRAMS, columns, facts_text, printable
from hectogpt.errors import UserError
from hectogpt.run_records import (
    IDEA,
    PICTURE,
    RUNNING,
    UNFINISHED,
    RunRecord,
    bytes_text,
    number_of,
    read_record,
    text_of,
)
from hectogpt.serialization import did_you_mean, diff, dump

EXAMPLES = """\
  hectogpt show
  hectogpt show runs/minute --json"""

STATES = {
    "done": "trained and scored",
    "interrupted": "a signal ended it early; `hectogpt train --resume FOLDER` goes on",
    "diverged": "its numbers were no longer finite; `hectogpt check FOLDER --diagnose` finds where",
    "unscored": "trained, but its scoring was ended; `hectogpt check FOLDER --repair` scores it",
    RUNNING: "a process is training in it now",
    UNFINISHED: "it was killed: `hectogpt train --resume FOLDER` goes on",
}
# Label, then formats of values of the run, its summary and its machine: each is left out if a value is not there.
FACTS = (
    ("corpus", "{corpus}"),
    ("seed", "{seed}"),
    ("training tokens", "{train_tokens:,}"),
    ("parameters", "{params:,}"),
    ("held-out loss", "{dev_loss:.4f} nats per token", "{dev_bpb:.4f} bits per byte"),
    ("test loss", "{test_loss:.4f} nats per token", "{test_bpb:.4f} bits per byte"),
    ("before training", "{dev_loss_before:.4f} nats per token", "with the weights of {source}"),
    ("training loss", "{train_loss_last:.4f} on the last batch", "{train_loss_last10:.4f} over the last ten"),
    ("training loss", "{batch_loss:.4f} on the batch of step {batch_step}"),
    ("seconds", "{seconds:,.1f} for building and training"),
    ("peak memory", "{peak_mb:,.0f} MiB"),
    (
        "machine",
        "{device}",
        "{dtype} blocks",
        "{head_dtype} head",
        "{threads} threads",
        "torch {torch}",
        "Python {python}",
    ),
)


@dataclass(frozen=True)
class ShowArguments:
    """Show a run: its numbers, its picture's path, its samples, and the fields that differ from its recipe. Without a
    name list the runs below ./runs, the recipes and the corpora."""

    run: Annotated[str, tyro.conf.Positional] = ""
    """Folder that `hectogpt train` wrote, or its name below runs/."""
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
    arguments = tyro.cli(ShowArguments, args=argv, prog="hectogpt show")
    if arguments.run:
        show_run(read_record(choose(arguments.run, Path("runs"))), arguments.json)
    else:
        from hectogpt.cli.show_all import show_all

        show_all(arguments.json)


def choose(name: str, root: Path) -> Path:
    """The folder of that name, as a path or below `root`. Raises UserError (CHECKPOINT)."""
    for folder in (Path(name), root / name):
        if folder.is_dir():
            return folder
    here = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    raise UserError(
        f"no run {name!r}",
        why=f"there is neither a folder {name} nor {root / name}" + (f"; runs here: {', '.join(here)}" if here else ""),
        fix=did_you_mean(name, here) if here else "hectogpt train",
        code=errors.CHECKPOINT,
    )


def show_run(record: RunRecord, as_json: bool) -> None:
    """Print a run."""
    differences = find_differences(record)
    if as_json:
        picture = record.folder / PICTURE
        answer = {
            "picture": str(picture) if picture.is_file() else None,
            "base": differences.recipe,
            "differences": {field: list(pair) for field, pair in differences.fields.items()},
            "note": differences.note,
            "samples": record.samples(),
            "ngrams": record.ngrams(),
            "summary": record.summary,
            "run": record.run,
        }
        print(json.dumps(record.as_json() | answer, allow_nan=False))
        return
    name = record.recipe + (" (modified)" if record.changed else "")
    facts = {label: one_line(fact) for label, fact in read_facts(record)}
    print(facts_text(f"{one_line(str(record.folder))}: {one_line(name)}", facts))
    print("\n" + differences_text(differences))
    for how, text in record.samples().items():
        print(f"\n{one_line(how)}\n{textwrap.indent(printable(text), '  ')}")


def find_differences(record: RunRecord) -> Differences:
    """The fields in which the run differs from its recipe; a run with an idea, from what the idea was applied to.

    Loads torch, and runs nothing of the folder: where the run's classes are not known here, values are compared as they
    are in run.json.
    """
    from hectogpt.lab import ideas, recipes
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
    changed = {field: pair for field, pair in diff(base, after).items() if field not in ("recipe", "ideas")}
    return Differences(base.recipe, changed, note)


def read_facts(record: RunRecord) -> Iterator[tuple[str, str]]:
    """Label and value of each line of the table; what the folder does not say is left out."""
    state = STATES.get(record.state, "").replace("FOLDER", str(record.folder))
    yield "state", f"{record.state}: {state}" if state else record.state
    if record.steps is not None or record.planned is not None:
        yield "steps", f"{'?' if record.steps is None else record.steps} of {record.planned or '?'}"
    values = {"corpus": record.run.get("corpus"), "seed": record.run.get("seed")} | record.summary
    for part in ("machine", "first_weights"):
        values |= inner if isinstance(inner := record.summary.get(part), dict) else {}
    if record.state in (UNFINISHED, RUNNING):
        values |= {"batch_loss": record.last_row.get("train/loss"), "batch_step": record.steps}
    values = {key: value for key, value in values.items() if text_of(value) or number_of(value) is not None}
    for label, *forms in FACTS:
        if words := ", ".join(text for form in forms if (text := fill(form, values))):
            yield label, words
    if ngrams := record.ngrams():
        yield "n-gram models", ", ".join(f"{NGRAMS[k]} {value:.3f}" for k, value in ngrams.items() if k in NGRAMS)
    written = datetime.fromtimestamp(record.modified).strftime("%Y-%m-%d %H:%M:%S")
    yield "written", f"{written}, {bytes_text(record.size)}"
    for label, file in (("picture", PICTURE), ("idea", IDEA)):
        if (record.folder / file).is_file():
            yield label, str(record.folder / file)


def fill(form: str, values: dict[str, Any]) -> str:
    """The form with its values; "" if one is not there or is not of the form's kind."""
    try:
        return form.format_map(values)
    except (KeyError, ValueError):
        return ""


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
