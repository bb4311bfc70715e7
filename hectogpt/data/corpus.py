"""A corpus: three token streams, train, dev and test, made from a named source once and cached.

A document's split depends on its SHA-256 alone, so equal documents are never in two splits.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from hectogpt import errors, files
from hectogpt.data import token_files
from hectogpt.data.documents import (
    MANY_DOCUMENTS,
    SPLIT_RULE,
    Document,
    Source,
    assign_splits,
    cannot_use,
    split_of,
)
from hectogpt.data.sources import find_source
from hectogpt.data.token_files import INDEX, SPLITS, find_tokenizer
from hectogpt.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from hectogpt.display import Progress
from hectogpt.errors import UserError

NOTED = 20  # left-out items that a corpus lists one by one; the others are only counted


@dataclass(frozen=True, eq=False)
class Corpus:
    """Three token streams and what is known about them.

    tokens: split -> read-only uint16 [n]; each document is followed by the tokenizer's
        end_of_text.
        sha256: split ->
    hash of its tokens, little-endian. n_documents: split -> count.
    folder: where the token files are. problems: messages about the source, such as what was left
        out of it and why.
    """

    name: str
    tokens: dict[str, np.ndarray]
    sha256: dict[str, str]
    n_documents: dict[str, int]
    tokenizer: Tokenizer
    folder: Path
    problems: tuple[str, ...] = ()

    @property
    def train(self) -> np.ndarray:
        """The training tokens [n]."""
        return self.tokens["train"]

    @property
    def dev(self) -> np.ndarray:
        """The held-out tokens to compare runs by [n]."""
        return self.tokens["dev"]

    @property
    def test(self) -> np.ndarray:
        """The held-out tokens that no choice depends on [n]."""
        return self.tokens["test"]

    @property
    def n_vocab(self) -> int:
        """Number of ids of the tokenizer."""
        return self.tokenizer.n_vocab


def beginning(dev: np.ndarray, tokenizer: Tokenizer, tokens: int) -> str:
    """Return the first tokens of a held-out text, as text. A last character that is cut is left
    out.
    """
    ids = dev[: 4 * tokens]
    return tokenizer.decode_bytes(ids[ids != tokenizer.end_of_text][:tokens].tolist()).decode(
        "utf-8", "ignore"
    )


def open_corpus(
    source: str = "sotu",
    *,
    cache: Path | str | None = None,
    progress: bool = True,
    check: bool = True,
) -> Corpus:
    """Return the corpus of a source; it is tokenised on first use and read from the cache
    afterwards.

    source: sotu; tinystories (the assignment's 1 %); hf:NAME or hf:NAME:COLUMN; a text file (one
    document); a folder of text files; a .jsonl (one document a line, in its field "text"), or
    FILE.jsonl:COLUMN; a .bin of GPT-2's ids, read as the text they stand for; a folder with
    train.bin, dev.bin and test.bin, or its train.bin (uint16 ids that are used as they are, of
    GPT-2's vocabulary or that of a merges.txt there). A source with so few documents that dev or
    test would stay (nearly) empty is cut into about 128 passages, at blank lines, else at line
    ends or spaces, and these are split. Text is UTF-8. cache: the folder for token files, None for
    `files.cache_dir()`. progress: show a bar if stderr is a terminal. check: compare the token
    files with their hashes; without, another process of this machine does.

    Raises UserError: DATA for anything wrong with the source, the vocabulary or the token files,
    STORAGE for a cache that cannot be written, LOCKED if another process builds it for ten
    minutes."""
    tokenizer = find_tokenizer(source)
    folder = token_files.find_splits(source)
    problems = ()
    if folder is None:
        text = find_source(source)
        folder = cache_folder(text, cache)
        if not _is_fresh(folder, text):
            with token_files.lock_folder(folder):
                if not _is_fresh(
                    folder, text
                ):  # another process may have built it while this one waited
                    tokenise(text, tokenizer, folder, progress)
    if os.path.lexists(folder / INDEX):
        index = token_files.read_index(folder)
        tokens = token_files.read_splits(folder, index, tokenizer, check)
        sha256, documents = (
            {s: index["splits"][s][key] for s in SPLITS} for key in ("sha256", "documents")
        )
        problems = tuple(index["problems"])
    else:
        tokens = {
            split: token_files.read_unchecked(folder / f"{split}.bin", tokenizer)
            for split in SPLITS
        }
        end_of_text = tokenizer.end_of_text
        sha256 = {split: hashlib.sha256(ids.data).hexdigest() for split, ids in tokens.items()}
        # One more than separators if the last document has none.
        documents = {
            s: int((ids == end_of_text).sum() + (ids[-1] != end_of_text))
            for s, ids in tokens.items()
        }
    return Corpus(source, tokens, sha256, documents, tokenizer, folder, problems)


def cache_folder(source: Source, cache: Path | str | None = None) -> Path:
    """Where the cache has the token files of a source of text, or will have them."""
    key = f"{token_files.FORMAT}\0{source.identity}\0{load_tokenizer().sha256}"
    slug = re.sub(r"[^A-Za-z0-9]+", "-", source.identity)[-40:].strip("-") or "corpus"
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    return files.cache_dir(cache) / f"{slug}-{digest[:12]}"


def _is_fresh(folder: Path, source: Source) -> bool:
    """Whether a folder has token files of the source as it is now. Raises UserError (DATA) for a
    damaged index.
    """
    if not os.path.exists(
        folder
    ):  # False also for a cache that one may not enter, which the lock names
        return False
    return source.fingerprint in ("", token_files.read_index(folder)["fingerprint"])


def build_with_vocabulary(name: str, n_vocab: int, folder: Path) -> Corpus:
    """Train a vocabulary of `n_vocab` ids on the training documents of a text alone, and write the
    text's tokens in it into `folder`, which is a corpus from then on. An earlier one there is
    replaced.

    Raises UserError: DATA for token files, and for too little text; USAGE for a folder that holds
    other files."""
    if token_files.find_splits(name) is not None:
        why = "it holds ids, and a vocabulary is trained on text"
        fix = "name the text they come from"
        raise cannot_use(name, why, fix)
    token_files.check_folder(folder)
    source = find_source(name)
    texts = (text for split, text in split_texts(source, []) if split == "train")
    tokenizer = train_tokenizer(texts, n_vocab, folder.name)
    with token_files.lock_folder(folder):
        tokenise(source, tokenizer, folder, progress=True)
    return open_corpus(str(folder))


def split_texts(source: Source, noted: list[str]) -> Iterator[tuple[str, str]]:
    """Split and text of each document, or of each passage where they are few. What the source
    leaves out is added to `noted`, a message each, and at the end how many there are beyond
    NOTED."""
    documents = _documents(source, noted)
    first = list(islice(documents, MANY_DOCUMENTS))
    if not first:
        raise UserError(
            f"{source.name} holds no text",
            why="; ".join(noted[:3]) or "it has no documents",
            fix="name a text file, or a folder with some",
            code=errors.DATA,
        )
    if len(first) < MANY_DOCUMENTS:
        return (
            (document.split, document.text)
            for document in assign_splits(first, source.name, noted)
        )
    # No document's split depends on the others.
    return ((split_of(document.text), document.text) for document in chain(first, documents))


def _documents(source: Source, noted: list[str]) -> Iterator[Document]:
    for item in source.read():
        if isinstance(item, Document):
            yield item
        else:
            noted.append(item)
    if len(noted) > NOTED:
        noted[NOTED:] = [f"left out {len(noted) - NOTED:,} more"]


def tokenise(source: Source, tokenizer: Tokenizer, folder: Path, progress: bool) -> None:
    """Tokenise a source and replace the folder; the caller holds `lock_folder(folder)`."""
    noted: list[str] = []
    texts = split_texts(source, noted)
    fingerprint = source.fingerprint
    what = f"tokenising {source.name}"
    about = {
        "source": source.identity,
        "fingerprint": fingerprint,
        "split": SPLIT_RULE,
        "problems": noted,
    }
    with Progress(quiet=not progress).bar(source.size, what) as show:

        def encoded() -> Iterator[tuple[str, np.ndarray]]:
            done = 0
            for split, text in texts:
                ids = tokenizer.encode(text)
                yield split, np.append(ids, tokenizer.end_of_text)
                show(done := done + int(tokenizer.token_bytes[ids].sum()), what)
            if fingerprint and find_source(source.name).fingerprint != fingerprint:
                why = (
                    "its hash is another one than before: token files of it would be of neither "
                    "version"
                )
                raise UserError(
                    f"{source.name} has changed while it was read",
                    why=why,
                    fix="run the command again",
                )

        token_files.write_folder(folder, tokenizer, encoded(), about)
