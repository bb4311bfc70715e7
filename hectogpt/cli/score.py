"""`hectogpt score MODEL ...`: nats per token and bits per byte of models, beside n-gram models."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from hectogpt.cli.console import columns, note, one_line
from hectogpt.errors import UserError

EXAMPLES = """\
  hectogpt score runs/minute
  hectogpt score gpt2 runs/top --corpus stories.txt
  hectogpt score exported --corpus sotu --max-tokens 20000 --json"""
NGRAMS = {
    "uniform": "uniform",
    "unigram": "unigram counts",
    "kn2": "Kneser-Ney bigram",
    "kn3": "Kneser-Ney trigram",
    "mkn5": "modified Kneser-Ney, order 5",
    "best": "best counting",
}


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
    from hectogpt.api.score_models import score_model, score_ngrams, tokens_of_run  # loads torch
    from hectogpt.data import open_corpus

    corpus = open_corpus(arguments.corpus)

    def tell(text: str) -> None:
        note(f"note: {text}", arguments.quiet)

    split, most = arguments.split, arguments.max_tokens
    scores = [
        score_model(name, corpus, split, max_tokens=most, idea=arguments.idea, note=tell) for name in arguments.models
    ]
    counted = tokens_of_run(arguments.models[0], corpus) if len(arguments.models) == 1 else None
    ngrams = score_ngrams(corpus, split, counted, most)
    number = len(corpus.train) if counted is None else counted.size
    what = "the whole training text" if counted is None else "what the run has read"
    if arguments.json:
        told: dict[str, Any] = {"corpus": corpus.name, "corpus_sha256": corpus.sha256, "split": split}
        told |= {"models": [asdict(score) for score in scores], "ngrams": [asdict(score) for score in ngrams]}
        print(json.dumps(told | {"ngrams_counted": number}, allow_nan=False))
        return
    rows = []
    for score in (*ngrams, *scores):
        parameters = "" if score.parameters is None else f"{score.parameters:,}"
        name = NGRAMS.get(score.name, score.name) if score.parameters is None else one_line(score.name)
        rows.append([name, f"{score.loss:.4f}", f"{score.bits_per_byte:.4f}", f"{score.tokens:,}", parameters])
    print(f"{one_line(corpus.name)}: held-out loss ({split})")
    print("\n".join(columns(["model", "nats/token", "bits/byte", "tokens", "parameters"], rows)))
    print(f"The n-gram models count {what}, {number:,} tokens.")
