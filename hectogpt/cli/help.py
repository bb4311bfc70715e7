"""Reads a command's options, and writes the text of `hectogpt COMMAND --help`, from the class of the options."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import shutil
import textwrap
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro

from hectogpt.cli.options import RUN_FIELDS

T = TypeVar("T")
COLUMN = 26  # where the texts of options begin
NAMES = {int: "N", float: "X", Path: "FILE", str: "TEXT"}


def read_options(kind: type[T], argv: list[str], command: str) -> T:
    """The options in a command's arguments. A wrong one leaves by SystemExit, as tyro does."""
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName)
    return tyro.cli(kind, args=argv, prog=f"hectogpt {command}", config=config)


def command_help(kind: type, command: str) -> str:
    """Usage, what the command does, its arguments, its options with their defaults, examples."""
    columns, rows = max(60, min(shutil.get_terminal_size().columns, 100)), rows_of(kind)
    arguments = [(left, text) for left, text in rows if not left.startswith("--")]
    required = [field.default is dataclasses.MISSING for field in dataclasses.fields(kind)]
    usage = [left if needed else f"[{left}]" for (left, _), needed in zip(arguments, required, strict=False)]
    options, listed = rows[len(arguments) :], []
    if command == "train":
        usage, options = ["[RECIPE | FILE.py:FUNCTION[@BASE]]"], [*RUN_FIELDS.values(), *options]
        listed = ["", "Recipes: the ladder from the baseline up, each with what it adds; then others"]
        for name, sentence in recipe_lines():
            listed.append(f"  {name:<22}{textwrap.shorten(sentence, columns - 24, placeholder=' ...')}")
    about, title, examples = (inspect.getdoc(kind) or "").partition("\nExamples\n")
    lines = [" ".join([f"usage: hectogpt {command}", *usage, "[options]"]), ""]
    for paragraph in about.strip().split("\n\n"):
        lines += [*textwrap.wrap(" ".join(paragraph.split()), columns), ""]
    for left, text in [*arguments, *options]:
        lines += lines_of(left, text, columns)
    return "\n".join([*lines, title + examples.rstrip(), *listed])


def rows_of(kind: type) -> list[tuple[str, str]]:
    """How each field is written (arguments without dashes), and its text with its default."""
    texts, rows = read_texts(kind), []
    for field, hint in zip(dataclasses.fields(kind), get_type_hints(kind, include_extras=True).values(), strict=True):
        notes = getattr(hint, "__metadata__", ())
        inner = get_args(hint)[0] if notes else hint
        text = next((note.help for note in notes if getattr(note, "help", None)), texts.get(field.name, ""))
        value = next((note.metavar for note in notes if getattr(note, "metavar", None)), value_of(inner))
        if any("Positional" in repr(note) for note in notes):
            rows.append((field.name.upper(), text or value))
        else:
            option = f"--{field.name.replace('_', '-')} {value}".rstrip()
            rows.append((option, text + default_of(field.default, text)))
    return rows


def lines_of(left: str, text: str, columns: int) -> list[str]:
    """An option and its text in two columns."""
    indent, begin = " " * COLUMN, f"  {left:<{COLUMN - 2}}"
    if begin.endswith("  "):
        return textwrap.wrap(text, columns, initial_indent=begin, subsequent_indent=indent) or [begin.rstrip()]
    return [begin.rstrip(), *textwrap.wrap(text, columns, initial_indent=indent, subsequent_indent=indent)]


def read_texts(kind: type) -> dict[str, str]:
    """Field -> the string below it in the class, on one line."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    texts = {}
    for before, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            texts[ast.unparse(before.target)] = " ".join(str(after.value.value).split())
    return texts


def value_of(kind: Any) -> str:
    """How the value of an option is written: "N", "FILE ...", "local|ray"; "" for one without a value."""
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"{value_of(get_args(kind)[0])} ..."
    inner = [one for one in get_args(kind) if one is not NoneType]
    return value_of(inner[0]) if inner else NAMES.get(kind, "")


def default_of(default: Any, text: str) -> str:
    """ " (default 0.8)" where an option has a value, and its text does not name the default."""
    if "default" in text or isinstance(default, bool) or default in (None, "", (), dataclasses.MISSING):
        return ""
    return f" (default {' '.join(default) if isinstance(default, tuple) else default})"


def recipe_lines() -> list[tuple[str, str]]:
    """Every recipe's name and the first sentence about it, from a file that tools/recipes.py writes: importing the
    recipes would load torch."""
    text = (Path(__file__).parent.parent / "lab" / "recipes.txt").read_text(encoding="utf-8")
    return [(name, sentence) for name, _, sentence in (line.partition("\t") for line in text.splitlines())]
