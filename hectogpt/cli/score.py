"""`hectogpt score MODEL ...`: nats per token and bits per byte of models, beside n-gram models."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from hectogpt.cli.console import note, one_line
from hectogpt.display import NGRAMS, columns
from hectogpt.errors import UserError

EXAMPLES = """\
  hectogpt score runs/minute
  hectogpt score gpt2 runs/top --corpus stories.txt
  hectogpt score exported --corpus sotu --max-tokens 20000 --json"""


@dataclass(frozen=True)
class ScoreArguments:
    """Score models on the held-out text of a corpus.

    Every token after the first is predicted once, in rows of up to 512 tokens, in float32. Bits per byte compare models
    with different tokenizers.
    """

    models: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Runs' folders, folders in Hugging Face's layout, or names on the hub."""
    corpus: str = "sotu"
    """sotu, tinystories, hf:NAME, or a file, a folder, .jsonl or .bin"""
    split: Literal["dev", "test"] = "dev"
    """The held-out text; test is for the last word."""
    max_tokens: int | None = None
    """Score only the first tokens; GPT-2 small takes some seconds per thousand on two cores."""
    step: int | None = None
    """Of runs: the weights of their checkpoint of this step (default: those at their end; of a run that is not finished
    those of its newest checkpoint)."""
    idea: tuple[Path, ...] = ()
    """Your own file, FILE.py, if a model has classes of it; it is imported."""
    json: bool = False
    """Print one JSON object."""
    quiet: bool = False
    """Print the table and errors only."""


def main(argv: list[str]) -> None:
    """Run the command."""
    run(tyro.cli(ScoreArguments, args=argv, prog="hectogpt score"))


def run(arguments: ScoreArguments) -> None:
    """Score and print a line for each model. Raises UserError."""
    if not arguments.models:
        raise UserError("no model to score", fix="hectogpt score MODEL, such as runs/minute or gpt2")
    from hectogpt.cli.score_models import score_models  # loads torch
    from hectogpt.data import open_corpus

    corpus, split = open_corpus(arguments.corpus), arguments.split

    def tell(text: str) -> None:
        note(f"note: {text}", arguments.quiet)

    found = score_models(
        arguments.models,
        corpus,
        split,
        step=arguments.step,
        max_tokens=arguments.max_tokens,
        idea=arguments.idea,
        note=tell,
    )
    if arguments.json:
        scores: dict[str, Any] = {"corpus": corpus.name, "corpus_sha256": corpus.sha256, "split": split}
        print(json.dumps(scores | asdict(found), allow_nan=False))
        return
    rows = [(NGRAMS[score.name], score.loss, score, "") for score in found.ngrams]
    for score in found.models:
        name = one_line(score.name)
        rows.append((name, score.loss, score, f"{score.parameters:,}"))
        if score.with_ngrams is not None:
            rows.append((f"{name} + n-grams", score.with_ngrams, score, ""))
    cells = [
        [name, f"{loss:.4f}", f"{loss * score.bits_per_byte / score.loss:.4f}", f"{score.tokens:,}", parameters]
        for name, loss, score, parameters in rows
    ]
    print(f"{one_line(corpus.name)}: held-out loss ({split})")
    print("\n".join(columns(["model", "nats/token", "bits/byte", "tokens", "parameters"], cells)))
    what = "the whole training text" if found.counted == len(corpus.train) else "what the run has read"
    print(f"The n-gram models count {what}, {found.counted:,} tokens.")
