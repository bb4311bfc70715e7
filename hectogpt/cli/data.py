"""`hectogpt data build|verify|repair SOURCE`: tokenises a corpus into its cache, checks the cache, builds it again."""

from __future__ import annotations

from hectogpt import errors
from hectogpt.cli.console import note, show
from hectogpt.cli.options import DataOptions
from hectogpt.data import CorpusCache
from hectogpt.errors import UserError


def main(options: DataOptions) -> None:
    """Do what the options say, then print each split's size and hash. Raises UserError (DATA) for damaged files."""
    cache = CorpusCache(options.source, encoding=options.encoding, force=options.force)
    if options.action == "verify" and (damage := cache.verify()):
        raise UserError(damage[0], fix=cache.fix, code=errors.DATA)
    repaired = cache.repair() if options.action == "repair" else []
    for line in repaired:
        note(f"repaired: {line}")
    corpus = cache.open()
    splits = {
        split: {"tokens": len(ids), "documents": corpus.n_documents[split], "sha256": corpus.sha256[split]}
        for split, ids in corpus.tokens.items()
    }
    answer = {"corpus": corpus.name, "folder": str(corpus.folder), "splits": splits}
    line = "{:<6}{tokens:>12,} tokens {documents:>8,} documents  {sha256}"
    lines = [line.format(split, **facts) for split, facts in splits.items()]
    show(options.json, answer | {"repaired": repaired, "problems": list(corpus.problems)}, lines)
    for problem in () if options.json else corpus.problems:
        note(f"note: {problem}")
