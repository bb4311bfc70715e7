"""`hectogpt data build|verify|repair SOURCE`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from hectogpt.display import printable

EXAMPLES = """\
  hectogpt data build stories.txt
  hectogpt data verify sotu --json"""


@dataclass(frozen=True)
class DataArguments:
    """Tokenise a corpus into its cache (build), check the cache against its hashes (verify), or rebuild it (repair)."""

    action: Annotated[Literal["build", "verify", "repair"], tyro.conf.Positional]
    source: Annotated[str, tyro.conf.Positional] = "sotu"
    """sotu, tinystories, hf:NAME, a text file, a folder, .jsonl, FILE.jsonl:COLUMN, or .bin"""
    encoding: str = "utf-8"
    """Of text files."""
    force: bool = False
    """Read a file that looks binary, or a table, as plain text; leave out files of a folder that cannot be decoded."""
    json: bool = False
    """Print one JSON object."""


def main(argv: list[str]) -> None:
    """Run the command."""
    run(tyro.cli(DataArguments, args=argv, prog="hectogpt data"))


def run(arguments: DataArguments) -> None:
    """Do what the arguments say, then print each split's size and hash. Raises UserError (DATA) for damaged files."""
    from hectogpt import errors
    from hectogpt.data import CorpusCache
    from hectogpt.errors import UserError

    cache = CorpusCache(arguments.source, encoding=arguments.encoding, force=arguments.force)
    if arguments.action == "verify" and (damage := cache.verify()):
        raise UserError(damage[0], fix=cache.fix, code=errors.DATA)
    repaired = cache.repair() if arguments.action == "repair" else []
    for damaged in repaired:
        print(f"repaired: {printable(damaged)}", file=sys.stderr)
    corpus = cache.open()
    if arguments.json:
        splits = {
            split: {"tokens": len(ids), "documents": corpus.n_documents[split], "sha256": corpus.sha256[split]}
            for split, ids in corpus.tokens.items()
        }
        facts = {"corpus": corpus.name, "folder": str(corpus.folder), "splits": splits}
        print(json.dumps(facts | {"repaired": repaired, "problems": list(corpus.problems)}, allow_nan=False))
        return
    for split, tokens in corpus.tokens.items():
        print(f"{split:<6}{len(tokens):>12,} tokens {corpus.n_documents[split]:>8,} documents  {corpus.sha256[split]}")
    for problem in corpus.problems:
        print(f"note: {printable(problem)}", file=sys.stderr)
