"""The command line: find the command, run it, and turn errors into a message and an exit code.

A command's module is imported only when it is called, so `hectogpt --help` needs neither torch nor
tyro.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from hectogpt import __version__, errors
from hectogpt.cli.console import explain, steady_streams
from hectogpt.errors import UserError
from hectogpt.signals import WORDS, code_of, ignore_more, raise_on_signal, stop_behind

# Command: what it does. `main` in cli/COMMAND.py gets the options, an instance of the class of
# this name in options.py; `main` of train gets the words of the command line.
COMMANDS = {
    "train": "train a recipe for its hundred steps; writes runs/NAME",
    "generate": "continue prompts with a trained or imported model",
    "export": "write a model for transformers, vLLM or llama.cpp",
    "score": "score models on held-out text, and n-gram models",
    "compare": "run recipes over paired seeds and test the differences",
    "verdict": "test whether one file's losses are lower than another's",
    "yardstick": "what counting reaches on a text; where a loss lies",
    "bisect": "the first step and module where two runs or models part",
    "judge": "judge an idea against its base, and check its claims",
    "idea": "write an example of an idea of your own, in one file",
    "assignment": "write the assignment as a kit, or check your progress",
    "assignment drill": "questions on mistakes: do you understand your code?",
    "assignment exam": "such questions for a class: sheets, key, marks",
    "explore": "attention, positions and models on interactive pages",
    "explore export": "save such a page as one file",
    "data": "tokenise a corpus, or check its tokens",
    "show": "show a run; without a name the runs here",
    "watch": "follow runs in the browser while they train",
    "check": "check a run's hashes; repair it, or compute a step again",
    "grade": "grade a solution of the assignment and name its mistakes",
    "doctor": "say what this installation can do here, and what is missing",
    "completion": "print a completion script for bash or zsh",
}

# "set FIELD to " from errors.set_to, or "FIELD = ", and True or False if that is the value.
SETTING = re.compile(r"\bset (?P<field>[a-z][\w.]*) to (?P<switch>(?:True|False)\b)?")
VALUE = re.compile(r"\b(?P<field>[a-z][\w.]*) = (?P<switch>(?:True|False)\b)?")

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
    # processes a step took 6 s with spinning and 3 s without. libgomp reads this once, when torch
    # loads it.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if "RANK" in os.environ:
        # torch's messages about broken connections, with stack traces, would hide the cause.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    given = [a for a in arguments if a != "--debug"]
    perform(lambda: _run(given), "--debug" in arguments, last=argv is None)


def perform(work: Callable[[], None], debug: bool = False, last: bool = False) -> None:
    """Do a command's work; after an error, print it and raise SystemExit with its code.

    Args:
        work: the work.
        debug: also print the traceback.
        last: the process ends afterwards.
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
        # The user's own file raised it.
        own: UserError | None = None if ideas is None else ideas.explain(error)
        if debug or (own is None and isinstance(error, SystemExit)):
            raise
        if own is not None:
            own.fix += ("; " if own.fix else "") + "--debug shows the traceback"
        shown = error if isinstance(error, UserError) else own or explain(error)
        print(shown, file=sys.stderr)
        raise SystemExit(shown.code) from None


def _run(arguments: list[str]) -> None:
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
    from hectogpt.cli import parsing
    from hectogpt.cli.options import TrainHelp

    words: Any = arguments[len(command.split()) :]
    kind = None if command == "train" else options_of(command)
    if kind is not None:
        words = parsing.read_options(kind, words, command)
    elif {"-h", "--help"} & set(words):
        parsing.read_options(TrainHelp, ["--help"], command)
    try:
        importlib.import_module(f"hectogpt.cli.{command.split()[0]}").main(words)
    except UserError as error:
        if kind is not None:
            parsing.with_default(error, parsing.options_in(kind))
        error.what = name_options(error.what, kind, VALUE)
        error.fix = re.sub("^--resume ", "hectogpt train --resume ", name_options(error.fix, kind))
        raise


def options_of(command: str) -> type | None:
    """The class of a command's options."""
    from hectogpt.cli import options

    return getattr(options, command.title().replace(" ", "") + "Options", None)


def name_options(text: str, kind: type | None = None, pattern: re.Pattern[str] = SETTING) -> str:
    """Write the settings in a part of an error as options.

    For example, "set data.seq_len to 64" becomes "--data.seq-len 64".

    Args:
        text: the part of the error.
        kind: the class of the command's options; a setting that it lacks stays unchanged.
        pattern: finds the settings.
    """

    def option(setting: re.Match[str]) -> str:
        if kind is not None and not hasattr(kind, setting["field"]):
            return setting[0]
        section, dot, name = setting["field"].replace("_", "-").rpartition(".")
        no = "no-" if setting["switch"] == "False" else ""
        return f"--{section}{dot}{no}{name}" + ("" if setting["switch"] else " ")

    return pattern.sub(option, text)
