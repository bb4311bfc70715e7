"""`hectogpt data build SOURCE`: tokenise a corpus into its cache, or a folder with --vocab."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from hectogpt.cli.console import note, show
from hectogpt.cli.options import DataOptions
from hectogpt.data.corpus import build_with_vocabulary, open_corpus
from hectogpt.errors import UserError


def main(options: DataOptions) -> None:
    """Build the corpus, then print the size and hash of each split.

    Raises UserError (DATA) for damaged files.
    """
    if options.vocab is None and options.out is not None:
        raise UserError(
            "--out needs --vocab", fix=f"hectogpt data build {shlex.quote(options.source)}"
        )
    if options.vocab is None:
        corpus = open_corpus(options.source)
    else:
        stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(options.source).stem).strip("-") or "text"
        folder = options.out or Path(f"{stem}-vocab-{options.vocab}")
        corpus = build_with_vocabulary(options.source, options.vocab, folder)
    splits = {
        split: {
            "tokens": len(ids),
            "documents": corpus.n_documents[split],
            "sha256": corpus.sha256[split],
        }
        for split, ids in corpus.tokens.items()
    }
    answer = {
        "corpus": corpus.name,
        "folder": str(corpus.folder),
        "n_vocab": corpus.n_vocab,
        "splits": splits,
    }
    line = "{:<6}{tokens:>12,} tokens {documents:>8,} documents"
    lines = [line.format(split, **facts) for split, facts in splits.items()]
    size = corpus.tokenizer.token_bytes[corpus.dev].sum() / max(len(corpus.dev), 1)
    epochs = 100 * 8192 / max(len(corpus.train), 1)
    lines.append(f"{size:.2f} bytes per token; 100 steps of 8,192 tokens are {epochs:.2f} epochs")
    own = f"A vocabulary of {corpus.n_vocab:,} tokens: " if options.vocab is not None else ""
    lines.append(f"{own}hectogpt train --corpus {shlex.quote(corpus.name)}")
    show(options.json, answer | {"problems": list(corpus.problems)}, lines)
    for problem in () if options.json else corpus.problems:
        note(f"note: {problem}")
