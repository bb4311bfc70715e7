"""Read a command's options with tyro, and find the wrong one, which tyro does not correct."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import io
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import MISSING
from itertools import takewhile
from types import NoneType
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import DisallowNone, FlagCreatePairsOff, PositionalMetavarFromFieldName

from hectogpt.errors import UserError, set_to

T = TypeVar("T")
IS_OPTION = re.compile("--?[A-Za-z]")
CONFIG = (FlagCreatePairsOff, PositionalMetavarFromFieldName, DisallowNone)
NO_DEFAULT = re.compile(r"\s*\(default:(\s+(None|False|''))?\s*\)")


class Option(NamedTuple):
    """An option such as "--steps", or an argument such as "MODEL"."""

    name: str
    kind: Any
    default: Any


def read_options(kind: type[T], argv: list[str], command: str) -> T:
    """The options in a command's arguments. Raises UserError for a wrong one."""
    return parse(kind, argv, argv, command, options_in(kind), config=CONFIG)


def parse(
    kind: type[T],
    argv: list[str],
    typed: list[str],
    command: str,
    known: Iterable[Option],
    **settings: Any,
) -> T:
    """Read arguments with tyro; for --help, print its text and raise SystemExit.

    Args:
        kind: the class of the options.
        argv: the words that tyro reads.
        typed: all words after the command.
        command: the command's name.
        known: the options that tyro accepts.
        settings: of `tyro.cli`.

    Raises UserError for arguments that tyro refuses.
    """
    text = io.StringIO()
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(text):
            return tyro.cli(kind, args=argv, prog=f"hectogpt {command}", **settings)
    except UserError as error:  # the class of the options refuses a value
        raise with_default(error, known) from None
    except SystemExit as stop:
        if not stop.code:
            print(readable(text.getvalue()))
            raise
    what, why, right = find_mistake(typed, f"hectogpt {command}", list(known))
    example = (inspect.getdoc(kind) or "").partition("\nExamples\n  ")[2]
    fix = (
        shlex.join(["hectogpt", *command.split(), *right])
        if right
        else re.split("  |\n", example)[0]
    )
    raise UserError(what, why=why, fix=fix)


def readable(text: str) -> str:
    """tyro's help without defaults and values that mean "none", and with wrapped paragraphs."""
    text = NO_DEFAULT.sub("", text).replace("{None}|", "")
    columns = shutil.get_terminal_size().columns
    lines = []
    for line in map(str.rstrip, text.strip().splitlines()):
        lines += [line] if line[:1] in ("", " ") else textwrap.wrap(line, columns)
    return "\n".join(lines)


def find_mistake(
    typed: list[str], command: str, known: list[Option]
) -> tuple[str, str, list[str]]:
    """The first mistake in words that tyro refuses, the reason, and corrected words.

    The corrected words are [] if none are known.
    """
    options = {one.name: one for one in known}
    loose = list[int]()
    at = 0
    while (begin := at) < len(typed):
        name, equals, value = typed[begin].partition("=")
        at += 1
        if not IS_OPTION.match(name):
            loose.append(begin)
            continue
        option = options.get(re.sub(r"\bno-(?=[^.]*$)", "", name.replace("_", "-")))
        _, _, most = shape_of(option.kind if option else str)
        values = (
            [value]
            if equals
            else list(takewhile(lambda word: not IS_OPTION.match(word), typed[at : at + most]))
        )
        at += 0 if equals else len(values)
        why = f"{command} has no option {name}"
        right = nearest(name, options)
        if option:
            why, near = misfit(option, values)
            right = [option.name, near] if near else []
        elif right:
            right += values
        if why:
            return (
                " ".join([name, *values]),
                why,
                [*typed[:begin], *right, *typed[at:]] if right else ["--help"],
            )
    arguments = [one for one in known if one.name.isupper()]
    for argument, place in zip(arguments, loose, strict=False):
        why, near = misfit(argument, [typed[place]])
        if why:
            return (
                f"{argument.name} {typed[place]}",
                why,
                [*typed[:place], near, *typed[place + 1 :]],
            )
    names = [one.name if one.default is MISSING else f"[{one.name}]" for one in arguments]
    why = f"{command} takes {' '.join(names) or 'options only'}"
    if missing := [one.name for one in arguments[len(loose) :] if one.default is MISSING]:
        return f"no {' and no '.join(missing)}", why, []
    rest = [word for place, word in enumerate(typed) if place not in loose]
    words = [typed[place] for place in loose]
    first = words[: len(names)]
    extra = words[len(names) :]
    if names[-1:] == ["[PROMPT]"]:  # a prompt without quotes
        first[-1] = " ".join([first[-1], *extra])
    return f"unexpected {' '.join(extra or words)}", why, [*first, *rest]


def misfit(option: Option, values: list[str]) -> tuple[str, str]:
    """Why these values do not fit an option, and a value that would.

    Either is "": the first if they fit, the second if no value is known.
    """
    kind, least, _ = shape_of(option.kind)
    choices = list(map(str, get_args(kind)))
    needed, usual = {int: ("a whole number", "1"), float: ("a number", "0.1")}.get(
        kind, ("a value", "")
    )
    with contextlib.suppress(ValueError):
        read = [kind(value) for value in values] if kind in (int, float) else values
        if least <= len(read) and (not choices or {*read} <= {*choices}):
            return "", ""
    if choices:
        needed = f"one of {', '.join(choices)}"
        usual = (difflib.get_close_matches(" ".join(values), choices, 1) or choices)[0]
    elif isinstance(option.default, (int, float, str)):
        usual = str(option.default)
    return f"it needs {needed}", usual


def with_default(error: UserError, known: Iterable[Option]) -> UserError:
    """The error, with the option's default as its fix if it is about one option and has no fix."""
    field = error.what.partition(" = ")[0]
    for option in known:
        if option.name == f"--{field.replace('_', '-')}" and isinstance(
            option.default, (int, float, str)
        ):
            error.fix = error.fix or set_to(field, option.default)
    return error


def nearest(name: str, options: Iterable[str]) -> list[str]:
    """The option that an unknown name probably means: --data.batch-size for --batch-size."""
    wanted = name[2:].replace("learning-rate", "lr")
    same = [option for option in options if option[2:].rpartition(".")[2] == wanted]
    return same[:1] or difflib.get_close_matches(name, options, 1)


def shape_of(kind: Any) -> tuple[Any, int, int]:
    """The type of an option's values, and the least and most values that it takes."""
    inner = [one for one in get_args(kind) if one is not NoneType]
    if get_origin(kind) is tuple:
        return (inner[0], 0, 1000) if ... in inner else (inner[0], len(inner), len(inner))
    return (
        shape_of(inner[0])
        if NoneType in get_args(kind)
        else (kind, kind is not bool, kind is not bool)
    )


def options_in(kind: type, value: Any = None, prefix: str = "--") -> Iterator[Option]:
    """Yield the options that tyro makes of a class, or of a value whose parts have options too."""
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        default = field.default if value is None else getattr(value, field.name)
        name = prefix + field.name.replace("_", "-")
        notes = getattr(hints[field.name], "__metadata__", ())
        inner = get_args(hints[field.name])[0] if notes else hints[field.name]
        if dataclasses.is_dataclass(default):
            yield from options_in(type(default), default, f"{name}.")
        else:
            yield Option(
                field.name.upper() if "Positional" in repr(notes) else name, inner, default
            )
        for number, part in enumerate(default if isinstance(default, tuple) else ()):
            if dataclasses.is_dataclass(part):
                yield from options_in(type(part), part, f"{name}.{number}.")
