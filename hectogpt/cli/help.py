"""The text of `hectogpt COMMAND --help`, from the class of the command's options."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import shutil
import textwrap
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

COLUMN = 26  # where the texts of options begin
NAMES = {int: "N", float: "X", Path: "FILE", str: "TEXT"}


def command_help(kind: type, command: str) -> str:
    """Usage, what the command does, its arguments, its options with their defaults, examples."""
    width = max(60, min(shutil.get_terminal_size().columns, 100))
    described, usage = read_texts(kind), [f"usage: hectogpt {command}"]
    arguments, options = list[tuple[str, str]](), list[tuple[str, str]]()
    for field, hint in zip(dataclasses.fields(kind), get_type_hints(kind, include_extras=True).values(), strict=True):
        inner, notes = (get_args(hint)[0], hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())
        told = [getattr(note, "help", None) for note in notes]
        text = next(filter(None, told), described.get(field.name, ""))
        if any("Positional" in repr(note) for note in notes):
            required, name = field.default is dataclasses.MISSING, field.name.upper()
            usage.append(name if required else f"[{name}]")
            arguments.append((name, text or value_of(inner)))
        else:
            named = next(filter(None, [getattr(note, "metavar", None) for note in notes]), value_of(inner))
            option = f"--{field.name.replace('_', '-')} {named}".rstrip()
            options.append((option, text + default_of(field.default, text)))
    about, _, examples = (inspect.getdoc(kind) or "").partition("\nExamples\n")
    paragraphs = [textwrap.fill(" ".join(part.split()), width) for part in about.strip().split("\n\n")]
    lines = [" ".join([*usage, "[options]"]), "", "\n\n".join(paragraphs), ""]
    for name, text in [*arguments, *options]:
        body = textwrap.wrap(text, width - COLUMN) or [""]
        if len(name) > COLUMN - 4:
            lines.append(f"  {name}")
            name = ""
        lines += [f"  {name:<{COLUMN - 2}}{body[0]}".rstrip(), *(" " * COLUMN + line for line in body[1:])]
    return "\n".join([*lines, *(["", "Examples", examples.rstrip()] if examples else [])])


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
    shown = " ".join(default) if isinstance(default, tuple) else default
    return "" if hidden or "efault" in text else f" (default {shown})"
