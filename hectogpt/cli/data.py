"""`hectogpt data build|verify|repair SOURCE`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class DataArguments:
    """Tokenise a corpus into its cache, check the cache against its hashes, or rebuild it."""

    action: Annotated[Literal["build", "verify", "repair"], tyro.conf.Positional]
    source: Annotated[str, tyro.conf.Positional] = "sotu"
    """sotu, tinystories, hf:NAME, or a file, a folder, .jsonl or .bin"""
    encoding: str = "utf-8"
    force: bool = False
    """Accept text that looks binary."""


def main(argv: list[str]) -> None:
    """Run the command."""
    arguments = tyro.cli(DataArguments, args=argv, prog="hectogpt data")
    from hectogpt import data, errors
    from hectogpt.errors import UserError

    if arguments.action == "verify":
        damage = data.verify(arguments.source, encoding=arguments.encoding, force=arguments.force)
        if damage:
            raise UserError(
                f"{arguments.source}: {damage[0]}" + (f" (and {len(damage) - 1} more)" if len(damage) > 1 else ""),
                fix=f"hectogpt data repair {arguments.source}",
                code=errors.DATA,
            )
    elif arguments.action == "repair":
        for mended in data.repair(arguments.source, encoding=arguments.encoding, force=arguments.force):
            print(f"repaired: {mended}", file=sys.stderr)
    corpus = data.open_corpus(arguments.source, encoding=arguments.encoding, force=arguments.force)
    for split in ("train", "dev", "test"):
        tokens = getattr(corpus, split)
        print(f"{split:<6}{len(tokens):>12,} tokens {corpus.n_documents[split]:>8,} documents  {corpus.sha256[split]}")
    for problem in corpus.problems:
        print(f"note: {problem}", file=sys.stderr)
