"""The command line: find the command, read its options, run it, and turn errors into messages.

A command's module is imported only when it is called, so `hectogpt --help` needs neither torch nor
tyro.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import inspect
import io
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING
from itertools import takewhile
from types import NoneType
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from hectogpt import __version__, errors
from hectogpt.cli.console import explain, steady_streams
from hectogpt.errors import Setting, SetTo, UserError
from hectogpt.signals import WORDS, code_of, ignore_more, raise_on_signal, stop_behind

# Command: what it does. `main` in cli/COMMAND.py gets the options, an instance of the class of
# this name in options.py; `main` of train gets the words of the command line.
COMMANDS = {
    "train": "train a recipe for its hundred steps; writes runs/NAME",
    "generate": "continue prompts with a trained or imported model",
    "export": "write a model for transformers, vLLM or llama.cpp",
    "score": "score models and n-gram models on held-out text",
    "compare": "run recipes over paired seeds and test the differences",
    "verdict": "test whether one file's losses are lower than another's",
    "yardstick": "losses of counting models; where a loss lies",
    "bisect": "the first step and module where two runs or models differ",
    "judge": "judge an idea against its base, and check its claims",
    "idea": "write an example of an idea of your own, in one file",
    "assignment": "write the assignment as a kit, or check your progress",
    "assignment drill": "questions on mistakes: do you understand your code?",
    "assignment exam": "such questions for a class: sheets, key, marks",
    "explore": "attention, positions and models on interactive pages",
    "explore export": "save such a page as one file",
    "data": "tokenise a corpus, or check its tokens",
    "show": "show a run, or list the runs here",
    "watch": "follow runs in the browser while they train",
    "check": "check a run's hashes; repair it, or compute a step again",
    "grade": "grade a solution of the assignment and name its mistakes",
    "doctor": "say what this installation can do here, and what is missing",
    "completion": "print a completion script for bash or zsh",
}

T = TypeVar("T")
IS_OPTION = re.compile("--?[A-Za-z]")
NO_DEFAULT = re.compile(r"\s*\(default:(\s+(None|False|''))?\s*\)")

EXIT_CODES = """Exit codes: 0 done, 1 a bug or a failed check, 2 usage, 3 data, 4 unusable
checkpoint or model, 5 exactness impossible, 6 diverged, 7 storage, 8 memory,
9 folder locked, 10 a peer failed, 129 hung up, 130 Ctrl-C, 143 terminated."""


def usage() -> str:
    """The text of `hectogpt --help`."""
    lines = ["usage: hectogpt COMMAND [options]      hectogpt COMMAND --help lists the options"]
    lines += [f"  {name:<17}{what}" for name, what in COMMANDS.items()]
    lines += ["Start with:  hectogpt train"]
    lines += ["  --version   print the version       --debug   show the traceback of an error"]
    lines += [EXIT_CODES]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run a command line. Raises SystemExit unless all goes well."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Threads that spin while they wait slow down a busy machine, and themselves: next to five busy
    # processes a step took 6 s with spinning and 3 s without. libgomp reads this variable once,
    # when torch loads the library.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if "RANK" in os.environ:
        # torch's messages about broken connections, with stack traces, would hide the cause.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    given = [a for a in arguments if a != "--debug"]
    perform(lambda: _run(given), "--debug" in arguments, last=argv is None)


def perform(work: Callable[[], None], debug: bool = False, last: bool = False) -> None:
    """Do a command's work. Print any error, and raise SystemExit with the error's code.

    Args:
        work: the work.
        debug: also print the traceback.
        last: True if the process ends afterwards.
    """
    with steady_streams(), raise_on_signal(last=last):
        try:
            _print_errors(work, debug)
        except (
            BrokenPipeError
        ):  # the reader closed our output, as in `hectogpt ... | head`; nothing to report
            raise SystemExit(0) from None
        except KeyboardInterrupt as stop:
            ignore_more()
            print(WORDS[code_of(stop)], file=sys.stderr)
            raise SystemExit(code_of(stop)) from None


def _print_errors(work: Callable[[], None], debug: bool) -> None:
    try:
        try:
            work()
        finally:
            sys.stdout.flush()  # flush while a failure can still be reported
    except BrokenPipeError:
        raise
    except (Exception, SystemExit) as error:
        if stop := stop_behind(error):
            raise stop from None
        ignore_more()
        ideas = sys.modules.get("hectogpt.idea_file")
        # Not None if the user's own file raised the error.
        own: UserError | None = None if ideas is None else ideas.explain(error)
        if debug or (own is None and isinstance(error, SystemExit)):
            raise
        if own is not None:
            own.amended(fix=(own.fix, "; " if own.fix else "", "--debug shows the traceback"))
        shown = error if isinstance(error, UserError) else own or explain(error)
        print(shown, file=sys.stderr)
        raise SystemExit(shown.code) from None


def _run(arguments: list[str]) -> None:
    """Find the command, read its options, and call `main` in cli/COMMAND.py."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        raise SystemExit(0 if arguments else errors.USAGE)
    if arguments[0] in ("-V", "--version"):
        print(f"hectogpt {__version__}")
        return
    command = next(
        (name for name in (" ".join(arguments[:2]), arguments[0]) if name in COMMANDS), None
    )
    if command is None:
        raise errors.unknown(f"unknown command {arguments[0]!r}", arguments[0], COMMANDS)
    from hectogpt.cli.options import TrainHelp

    words: Any = arguments[len(command.split()) :]
    kind = None if command == "train" else options_of(command)
    if kind is not None:
        words = read_options(kind, words, command)
    elif {"-h", "--help"} & set(words):
        read_options(TrainHelp, ["--help"], command)
    try:
        importlib.import_module(f"hectogpt.cli.{command.split()[0]}").main(words)
    except UserError as error:
        if kind is not None:
            with_default(error, options_in(kind))
        error.spell(lambda setting: as_option(setting, kind))
        raise


def options_of(command: str) -> type | None:
    """The class of a command's options."""
    from hectogpt.cli import options

    return getattr(options, command.title().replace(" ", "") + "Options", None)


def as_option(setting: Setting, kind: type | None = None) -> str:
    """Spell a setting in an error as an option: "--data.seq-len 64" for "set data.seq_len to 64".

    Args:
        setting: the setting.
        kind: the class of the command's options; a setting that it lacks stays a field.
    """
    if kind is not None and not hasattr(kind, setting.field):
        return str(setting)
    section, dot, name = setting.field.replace("_", "-").rpartition(".")
    if isinstance(setting.value, bool):
        return f"--{section}{dot}{'' if setting.value else 'no-'}{name}"
    command = "hectogpt train " if setting.field == "resume" else ""
    return f"{command}--{section}{dot}{name} {setting.value}"


# --- reading options with tyro; if it refuses them, finding the mistake and a correction ---


class Option(NamedTuple):
    """An option such as "--steps", or an argument such as "MODEL"."""

    name: str
    kind: Any
    default: Any


def read_options(kind: type[T], argv: list[str], command: str) -> T:
    """Read the options in a command's arguments. Raises UserError for a wrong option."""
    from tyro.conf import DisallowNone, FlagCreatePairsOff, PositionalMetavarFromFieldName

    config = (FlagCreatePairsOff, PositionalMetavarFromFieldName, DisallowNone)
    return read_words(kind, argv, argv, command, options_in(kind), config=config)


def read_words(
    kind: type[T],
    argv: list[str],
    typed: list[str],
    command: str,
    known: Iterable[Option],
    **settings: Any,
) -> T:
    """Read arguments with tyro; for --help, print tyro's help and raise SystemExit.

    Args:
        kind: the class of the options.
        argv: the words that tyro reads.
        typed: all words after the command.
        command: the command's name.
        known: the options that tyro accepts.
        settings: more arguments of `tyro.cli`.

    Raises UserError for arguments that tyro refuses.
    """
    import tyro

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
    """Wrap the paragraphs of tyro's help, and drop defaults and values that mean "none"."""
    text = NO_DEFAULT.sub("", text).replace("{None}|", "")
    columns = shutil.get_terminal_size().columns
    lines = []
    for line in map(str.rstrip, text.strip().splitlines()):
        lines += [line] if line[:1] in ("", " ") else textwrap.wrap(line, columns)
    return "\n".join(lines)


def find_mistake(
    typed: list[str], command: str, known: list[Option]
) -> tuple[str, str, list[str]]:
    """Find the first mistake in words that tyro refuses.

    Returns the mistake, the reason, and corrected words ([] if no correction is known).
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
    """Return why these values do not fit an option, and a value that would fit.

    The reason is "" if they fit; the value is "" if none is known.
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
    """Return the error. If it is about one option and has no fix, suggest the option's default."""
    refused = error.what_parts[0]
    if isinstance(refused, Setting) and not error.fix:
        name = f"--{refused.field.replace('_', '-')}"
        for option in known:
            if option.name == name and isinstance(option.default, (int, float, str)):
                error.amended(fix=SetTo(refused.field, option.default))
    return error


def nearest(name: str, options: Iterable[str]) -> list[str]:
    """The option that an unknown name probably means: --data.batch-size for --batch-size."""
    wanted = name[2:].replace("learning-rate", "lr")
    same = [option for option in options if option[2:].rpartition(".")[2] == wanted]
    return same[:1] or difflib.get_close_matches(name, options, 1)


def shape_of(kind: Any) -> tuple[Any, int, int]:
    """The type of an option's values, and their minimum and maximum number."""
    inner = [one for one in get_args(kind) if one is not NoneType]
    if get_origin(kind) is tuple:
        return (inner[0], 0, 1000) if ... in inner else (inner[0], len(inner), len(inner))
    return (
        shape_of(inner[0])
        if NoneType in get_args(kind)
        else (kind, kind is not bool, kind is not bool)
    )


def options_in(kind: type, value: Any = None, prefix: str = "--") -> Iterator[Option]:
    """Yield tyro's options for a class, or for a value whose parts have options too."""
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
