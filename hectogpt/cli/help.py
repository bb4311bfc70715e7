"""Reads a command's options, and writes the text of `hectogpt COMMAND --help`, from the class of the options; options
that several commands have."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import shutil
import textwrap
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import arg

T = TypeVar("T")
COLUMN = 26  # where the texts of options begin
NAMES = {int: "N", float: "X", Path: "FILE", str: "TEXT"}


def text(words: str, metavar: str | None = None) -> Any:
    """The text of an option, and how its value is written."""
    return arg(help=words, help_behavior_hint="", metavar=metavar)


# Options that several commands have.
Json = Annotated[bool, text("Print one JSON object.")]
Quiet = Annotated[bool, text("Print results and errors only.")]
Silent = Annotated[bool, text("Print errors only.")]
Corpus = Annotated[str, arg(help="sotu (default), tinystories, hf:NAME, or a file, a folder, .jsonl or .bin")]
STEP = (
    "Of runs: the weights of their checkpoint of this step. Without, those at their end; of a run that is not finished "
)
Step = Annotated[int | None, text(f"{STEP}those of its newest checkpoint.", metavar="INT")]
IDEA = (
    "Your own file, FILE.py, if a model has classes of it; it is imported. A file that you ran here and that has not "
)
Idea = Annotated[tuple[Path, ...], text(f"{IDEA}changed since need not be named.", metavar="FILE ...")]
# Fields of the run that --help names beside the options: how they are written, and their texts.
RUN_FIELDS = {
    "corpus": ("--corpus NAME", "sotu (default), tinystories, hf:NAME, or a file, a folder, .jsonl or .bin"),
    "steps": ("--steps N", "Gradient steps. (default 100)"),
    "seed": ("--seed N", "Draws the first weights and the data's order. (default 0)"),
    "device": ("--device NAME", "auto, cpu, cuda, cuda:1 or mps."),
    "dtype": ("--dtype NAME", "auto, float32, bfloat16 or float64; so --head-dtype."),
    "threads": ("--threads N", "0 for one on each physical core."),
}


def read_options(kind: type[T], argv: list[str], command: str) -> T:
    """The options in a command's arguments. --help prints them below the class's docstring, and leaves."""
    if {"--help", "-h"} & set(argv):
        print(command_help(kind, command))
        raise SystemExit(0)
    return tyro.cli(
        kind,
        args=argv,
        prog=f"hectogpt {command}",
        description=inspect.getdoc(kind),
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName),
    )


def command_help(kind: type, command: str) -> str:
    """Usage, what the command does, its arguments, its options with their defaults, examples."""
    columns, rows = width(), rows_of(kind)
    arguments = [left for left, _ in rows if not left.startswith("--")]
    required = [field.default is dataclasses.MISSING for field in dataclasses.fields(kind)]
    usage = [left if needed else f"[{left}]" for left, needed in zip(arguments, required, strict=False)]
    if command == "train":
        usage, rows = ["[RECIPE | FILE.py:FUNCTION[@BASE]]"], list(RUN_FIELDS.values()) + rows
    text, examples = about(kind, columns)
    lines = [" ".join([f"usage: hectogpt {command}", *usage, "[options]"]), "", text, ""]
    lines += [line for row in sorted(rows, key=lambda row: row[0][:2] == "--") for line in lines_of(*row, columns)]
    lines += ["", examples] if examples else []
    if command == "train":
        lines += ["", "Recipes: the ladder from the baseline up, each with what it adds; then others"]
        for name, sentence in recipe_lines():
            lines.append(f"  {name:<22}{textwrap.shorten(sentence, columns - 24, placeholder=' ...')}")
    return "\n".join(lines)


def width() -> int:
    """Columns of the text."""
    return max(60, min(shutil.get_terminal_size().columns, 100))


def about(kind: type, columns: int) -> tuple[str, str]:
    """The paragraphs of a class's docstring, wrapped, and its examples with their title."""
    text, title, examples = (inspect.getdoc(kind) or "").partition("\nExamples\n")
    paragraphs = [textwrap.fill(" ".join(part.split()), columns) for part in text.strip().split("\n\n")]
    return "\n\n".join(paragraphs), (title + examples).strip()


def rows_of(kind: type) -> list[tuple[str, str]]:
    """How each field is written (arguments without dashes), and its text with its default."""
    described, rows = read_texts(kind), []
    for field, hint in zip(dataclasses.fields(kind), get_type_hints(kind, include_extras=True).values(), strict=True):
        inner, notes = (get_args(hint)[0], hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())
        text = next(filter(None, (getattr(note, "help", None) for note in notes)), described.get(field.name, ""))
        value = next(filter(None, (getattr(note, "metavar", None) for note in notes)), value_of(inner))
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
    return [begin, *textwrap.wrap(text, columns, initial_indent=indent, subsequent_indent=indent)]


def read_texts(kind: type) -> dict[str, str]:
    """Field -> the string below it in the class, on one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
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
    """ " (default 0.8)" where an option has a value that its text does not name."""
    hidden = default in (None, "", (), dataclasses.MISSING) or isinstance(default, bool)
    shown = " ".join(default) if isinstance(default, tuple) else str(default)
    named = "efault" in text or shown in re.split(r"[ ,.;:]+", text)
    return "" if hidden or named else f" (default {shown})"


def recipe_lines() -> list[tuple[str, str]]:
    """Every recipe's name and the first sentence about it, from a file that tools/recipes.py writes: importing the
    recipes would load torch."""
    text = (Path(__file__).parent.parent / "lab" / "recipes.txt").read_text(encoding="utf-8")
    return [(name, sentence) for name, _, sentence in (line.partition("\t") for line in text.splitlines())]
