"""`hectogpt show [RUN]`: a run's results and its differences from the recipe, or all runs.

Only the differences need torch.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hectogpt.cli.console import remarks, show
from hectogpt.cli.options import ShowOptions
from hectogpt.display import (
    NGRAMS,
    OTHER_TOKENS,
    columns,
    facts_text,
    one_line,
    printable,
    value_text,
)
from hectogpt.errors import UserError
from hectogpt.run_records import (
    HASH,
    IDEA,
    METRICS,
    PICTURE,
    RUNNING,
    UNFINISHED,
    RunRecord,
    count_of,
    find_runs,
    locate_run,
    number_of,
    object_of,
    read_record,
    read_rows,
    text_of,
)
from hectogpt.serialization import diff, dump

STATES = {
    "done": "trained and scored",
    "interrupted": "a signal ended it early; `hectogpt train --resume FOLDER` resumes it",
    "diverged": "its values were not finite; `hectogpt check FOLDER --diagnose` finds where",
    "unscored": "trained, but not completely scored; `hectogpt check FOLDER --repair` scores it",
    RUNNING: "a process is training it now",
    UNFINISHED: "it was killed: `hectogpt train --resume FOLDER` resumes it",
}
# Each line of the table: label, then formats for values of the run, its summary and its machine. A
# format is left out if one of its values is missing.
FACTS = (
    ("corpus", "{corpus}"),
    ("seed", "{seed}"),
    ("branch", "of {trunk}", "after its step {trunk_step}"),
    ("training tokens", "{train_tokens:,}"),
    ("parameters", "{params:,}"),
    ("held-out loss", "{dev_loss:.4f} nats per token", "{dev_bpb:.4f} bits per byte"),
    ("before training", "{dev_loss_before:.4f} nats per token", "with the weights of {source}"),
    (
        "training loss",
        "{train_loss_last:.4f} on the last batch",
        "{train_loss_last10:.4f} over the last ten",
    ),
    ("training loss", "{batch_loss:.4f} on the batch of step {batch_step}"),
    ("seconds", "{seconds:,.1f} for building and training"),
    ("peak memory", "{peak_mb:,.0f} MiB"),
    (
        "machine",
        "{device}",
        "{dtype} blocks",
        "{head_dtype} head",
        "threads {threads}",
        "torch {torch}",
    ),
)


def main(options: ShowOptions) -> None:
    """Show a run, or the runs in this folder. Raises UserError."""
    if options.step is not None:
        show_step(options, options.step)
    elif options.run:
        show_run(read_record(locate_run(options.run)), options.json)
    else:
        show_runs(options.json)


# --- one run


def show_run(record: RunRecord, as_json: bool) -> None:
    """Print a run."""
    base, differences, remark = find_differences(record)
    picture = record.folder / PICTURE
    answer = record.as_json() | {
        "picture": str(picture) if picture.is_file() else None,
        "base": base,
        "note": remark,
        "differences": differences,
        "samples": record.samples(),
        "ngrams": record.ngrams(),
        "summary": record.summary,
        "run": record.run,
    }
    show(as_json, answer, run_lines(record, base, differences, remark))


def run_lines(
    record: RunRecord, base: str, differences: dict[str, tuple[Any, Any]], remark: str
) -> Iterator[str]:
    """The lines about a run."""
    facts = dict(read_facts(record))
    if said := usual(record):
        facts["is it normal?"] = said
    yield facts_text(f"{record.folder}: {recipe_of(record)}", facts) + "\n"
    if differences:
        yield one_line(f"Differs from the recipe {base}" + (f" ({remark})" if remark else ""))
        rows = [[field, *map(value_text, pair)] for field, pair in differences.items()]
        yield from columns(["field", "recipe", "this run"], rows, left=3)
    elif remark:
        yield f"Not compared with a recipe: {one_line(remark)}"
    else:
        yield f"Every field has the value of the recipe {base}."
    yield from sample_lines(record.samples())


def show_step(options: ShowOptions, step: int) -> None:
    """Print the metrics of a step, and texts generated with the weights after it.

    Raises UserError.
    """
    from hectogpt.lab.full_run import samples
    from hectogpt.model.weights import hash_weights
    from hectogpt.training.history import History
    from hectogpt.web.model_page import own_prompt

    folder = locate_run(options.run)
    history = History(folder, options.idea, remarks())
    model, tokenizer = history.model_after(step)
    rows = (row for row in read_rows(folder / METRICS) if row["step"] == step)
    row = {name: value for one in rows for name, value in one.items()}
    row |= {"step": step, HASH: hash_weights(model)}
    texts = samples(model, tokenizer, own_prompt(folder), count_of(row.get("seed")) or 0)
    facts = {name: f"{v:.6g}" if isinstance(v, float) else str(v) for name, v in row.items()}
    lines = [facts_text(f"{folder}: after step {step} of {len(history.steps)}", facts)]
    lines += sample_lines(texts)
    show(options.json, row | {"folder": str(folder), "samples": texts}, lines)


def sample_lines(texts: dict[str, str]) -> Iterator[str]:
    """The lines that show continuations of the prompt."""
    for how, text in texts.items():
        yield f"\n{one_line(how)}\n{textwrap.indent(printable(text), '  ')}"


def usual(record: RunRecord) -> str:
    """A sentence that compares a finished run's held-out loss with recorded ones; "" if none."""
    if record.modified or record.state != "done" or record.dev_loss is None:
        return ""
    from hectogpt.lab.full_run import is_it_usual

    return is_it_usual(
        record.recipe, str(record.run.get("corpus", "")), record.planned_steps, record.dev_loss
    )


def recipe_of(record: RunRecord) -> str:
    """The recipe's name, marked if the run was modified."""
    return record.recipe + (" (modified)" if record.modified else "")


def find_differences(record: RunRecord) -> tuple[str, dict[str, tuple[Any, Any]], str]:
    """Compare a run with its recipe as it is today.

    Returns the recipe's name, the fields that differ (each with the recipe's value and the run's),
    and a remark about them, or about why there are none. For a run with an idea, the recipe is the
    one that the idea was applied to.

    Loads torch, but runs no code from the folder: if the run's classes are unknown here, the
    values in run.json are compared.
    """
    from hectogpt.lab import ideas, recipes
    from hectogpt.training.run_folder import read_run

    name = ideas.base_name(text_of(record.run.get("recipe")) or "")
    try:
        base = recipes.recipe(name)
    except UserError as error:
        return name, {}, error.what
    try:
        after = dump(read_run(record.folder))
        remark = ""
    except UserError as error:
        after = record.run
        remark = f"only run.json was compared: {error.what.partition(': ')[2] or error.what}"
    changed = {
        field: pair
        for field, pair in diff(base, after).items()
        if field not in ("recipe", "ideas")
    }
    return base.recipe, changed, remark


def read_facts(record: RunRecord) -> Iterator[tuple[str, str]]:
    """Yield label and value of each line of the table; missing facts are left out."""
    state = STATES.get(record.state, "").replace("FOLDER", str(record.folder))
    yield "state", f"{record.state}: {state}" if state else record.state
    if record.steps is not None or record.planned_steps is not None:
        yield (
            "steps",
            f"{'?' if record.steps is None else record.steps} of {record.planned_steps or '?'}",
        )
    values = {"corpus": record.run.get("corpus"), "seed": record.run.get("seed")} | record.summary
    for part in ("machine", "first_weights", "branch"):
        values |= object_of(record.summary.get(part))
    if record.state in (UNFINISHED, RUNNING):
        values |= {"batch_loss": record.last_row.get("train/loss"), "batch_step": record.steps}
    values = {
        key: value
        for key, value in values.items()
        if text_of(value) or number_of(value) is not None
    }
    for label, *forms in FACTS:
        words = ", ".join(filter(None, (fill(form, values) for form in forms)))
        if words:
            yield label, words
    if ngrams := record.ngrams():
        yield (
            "n-gram models",
            ", ".join(f"{NGRAMS[k]} {value:.3f}" for k, value in ngrams.items() if k in NGRAMS),
        )
    yield "written", record.written
    if record.hashes_lost:
        yield "hashes", record.hashes_lost
    for label, file in (("picture", PICTURE), ("idea", IDEA)):
        if (record.folder / file).is_file():
            yield label, str(record.folder / file)


def fill(form: str, values: dict[str, Any]) -> str:
    """Fill in a format; "" if a value is missing or has the wrong type."""
    try:
        return form.format_map(values)
    except (KeyError, ValueError):
        return ""


# --- all runs in this folder


def show_runs(as_json: bool) -> None:
    """Print a line for each run; remarks about folders that are left out go to stderr."""
    runs, notes = find_runs(Path("runs"))
    if len({record.n_vocab for record in runs}) > 1:
        notes.append(OTHER_TOKENS)
    header = ["folder", "recipe", "state", "steps", "dev loss", "seconds", "written"]
    lines = [
        "Runs below runs/, the newest last",
        *columns(header, list(map(run_cells, runs)), left=3),
    ]
    answer = {"runs": [record.as_json() for record in runs], "notes": notes}
    show(as_json, answer, lines if runs else ["no run below runs/ yet: hectogpt train"])
    for line in () if as_json else notes:
        remarks()(one_line(line))


def run_cells(record: RunRecord) -> list[str]:
    """The cells of a run in the table of all runs."""
    steps = "" if record.steps is None else str(record.steps)
    return [
        str(record.folder),
        recipe_of(record),
        record.state,
        steps
        if record.planned_steps in (None, record.steps)
        else f"{steps or 0} of {record.planned_steps}",
        "" if record.dev_loss is None else f"{record.dev_loss:.4f}",
        "" if record.seconds is None else f"{record.seconds:.0f}",
        record.written[:16],
    ]
