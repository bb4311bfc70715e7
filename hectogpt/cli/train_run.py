"""`hectogpt train` once its options are read: trains (hectogpt.api.full_run) and prints the result.

Progress goes to stderr, the final table (or --json) to stdout.
"""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from hectogpt.api.full_run import PICTURE, find_corpus, label_of, run_to_folder, size_notes, tokens_of
from hectogpt.api.progress import Progress
from hectogpt.cli.console import output_console
from hectogpt.data import Corpus
from hectogpt.display import printable
from hectogpt.lab.baseline_curves import Curve
from hectogpt.serialization import dump
from hectogpt.train import setup
from hectogpt.train.run import Run


def train(
    run: Run,
    name: str,
    modified: bool,
    *,
    out: Path | None,
    prompt: str | None,
    encoding: str,
    force: bool,
    json: bool,
    quiet: bool,
    dry_run: bool,
) -> None:
    """Train, score, print; the arguments after `modified` are the command's options. Raises UserError."""
    progress = Progress(quiet)
    corpus = find_corpus(run, progress, encoding, force)
    if dry_run:
        show_plan(run, corpus, label_of(run, modified), progress)
        return
    done = run_to_folder(run, corpus, progress, name=name, modified=modified, out=out, prompt=prompt)
    if json:
        print(dumps(done.summary, allow_nan=False))
    elif not quiet:
        final_table(done.summary, done.baseline)


def show_plan(run: Run, corpus: Corpus, label: str, progress: Progress) -> None:
    """Print the run's size, what it would read, and its fields."""
    for line in size_notes(run, corpus):
        progress.line(f"note: {line}")
    tokens = tokens_of(run)
    print(f"{label}: {setup.count_parameters(run, corpus):,} parameters")
    epochs = tokens / len(corpus.train)
    print(printable(f"{tokens:,} training tokens of {len(corpus.train):,} in {corpus.name} ({epochs:.2f} epochs)"))
    print(dumps(dump(run), indent=2))


def final_table(summary: dict[str, Any], baseline: Curve | None) -> None:
    """Print the run beside the baseline and the n-gram models, then its two continuations and its files."""
    console = output_console()
    title = printable(f"{summary['corpus']}: held-out loss after {summary['steps']} steps")
    table = Table(title=escape(title), title_justify="left")
    for column in ("model", "nats/token", "bits/byte", "last training loss"):
        table.add_column(column, justify="left" if column == "model" else "right")
    per_nat = summary["dev_bpb"] / summary["dev_loss"]
    ngrams = summary["ngrams"]
    for name, key in (("uniform", "uniform"), ("unigram counts", "unigram")):
        table.add_row(name, f"{ngrams[key]:.3f}", f"{ngrams[key] * per_nat:.3f}", "")
    if baseline:
        table.add_row("baseline", f"{baseline.dev_loss:.3f}", f"{baseline.dev_bpb:.3f}", f"{baseline.losses[-1]:.3f}")
    for name, key in (("Kneser-Ney bigram", "kn2"), ("Kneser-Ney trigram", "kn3")):
        table.add_row(name, f"{ngrams[key]:.3f}", f"{ngrams[key] * per_nat:.3f}", "")
    label = summary["recipe"] + (" (modified)" if summary["modified"] else "")
    values = (summary["dev_loss"], summary["dev_bpb"], summary["train_loss_last"])
    table.add_row(f"[bold]{label}[/bold]", *(f"[bold]{v:.3f}[/bold]" for v in values))
    console.print(table)
    for name, text in summary["samples"].items():
        console.print(f"{name}: {printable(text)}", markup=False, highlight=False, soft_wrap=True)
    folder = printable(summary["folder"])
    console.print(f"\nThe picture: {folder}/{PICTURE}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"All of it:   {folder}", markup=False, highlight=False, soft_wrap=True)
