"""`hectogpt data build|verify|repair SOURCE`: tokenises a corpus into its cache, checks the cache, builds it again."""

from __future__ import annotations

import json
import sys

from hectogpt import errors
from hectogpt.cli.console import note
from hectogpt.cli.options import DataOptions
from hectogpt.data import CorpusCache
from hectogpt.display import printable
from hectogpt.errors import UserError


def main(options: DataOptions) -> None:
    """Do what the options say, then print each split's size and hash. Raises UserError (DATA) for damaged files."""
    cache = CorpusCache(options.source, encoding=options.encoding, force=options.force)
    if options.action == "verify" and (damage := cache.verify()):
        raise UserError(damage[0], fix=cache.fix, code=errors.DATA)
    repaired = cache.repair() if options.action == "repair" else []
    for line in repaired:
        print(f"repaired: {printable(line)}", file=sys.stderr)
    corpus = cache.open()
    if options.json:
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
        note(f"note: {problem}")
