"""The one door: finds the command, runs it, and turns what goes wrong into one message and an exit code.

A command's module is imported only when it is called, so that `hectogpt --help` needs neither torch nor tyro.
"""

from __future__ import annotations

import importlib
import os
import sys

from hectogpt import __version__, errors
from hectogpt.errors import UserError

# command: (module, function, what it does)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "train": ("hectogpt.cli.train", "main", "train a recipe for its hundred steps; writes runs/NAME"),
    "generate": ("hectogpt.cli.generate", "main", "continue a prompt with a trained or imported model"),
    "compare": ("hectogpt.cli.lab", "compare", "run recipes over paired seeds and test the differences"),
    "report": ("hectogpt.cli.lab", "report", "draw the ladder's tables, pictures and page from its records"),
    "explore": ("hectogpt.cli.explore", "main", "attention and positions, in numbers and on interactive pages"),
    "data": ("hectogpt.cli.data", "main", "build, verify or repair a corpus of tokens"),
    "bench": ("hectogpt.cli.bench", "main", "show the recorded side-by-side timings"),
}

EXIT_CODES = """Exit codes: 0 done, 2 usage, 3 data, 4 unusable checkpoint or model, 5 exactness impossible, 6 diverged,
7 storage, 8 memory, 9 folder locked, 130 interrupted (Ctrl-C), 143 terminated."""


def usage() -> str:
    """The text of `hectogpt --help`."""
    lines = ["usage: hectogpt COMMAND [options]        hectogpt COMMAND --help tells the options", ""]
    lines += [f"  {name:<10}{what}" for name, (_, _, what) in COMMANDS.items()]
    lines += ["", "  --version   print the version", "  --debug     show the traceback of an error", ""]
    lines += ["Start with:  hectogpt train", "", EXIT_CODES]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run a command line; leaves by SystemExit unless all went well."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        raise SystemExit(0 if arguments else errors.USAGE)
    if arguments[0] in ("-V", "--version"):
        print(f"hectogpt {__version__}")
        return
    # Threads that wait for each other by spinning stall one another on a machine that does other work too: with five
    # busy processes beside it a step took 6 s spinning and 3 s not. libgomp reads this once, when torch loads it.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        _run(arguments[0], arguments[1:])
    except UserError as error:
        if debug:
            raise
        print(error, file=sys.stderr)
        raise SystemExit(error.code) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(errors.INTERRUPTED) from None
    except BrokenPipeError:  # `hectogpt ... | head` closed our output; nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def _run(command: str, arguments: list[str]) -> None:
    if command not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(command, COMMANDS, n=1)
        raise UserError(
            f"unknown command {command!r}",
            why=f"commands: {', '.join(COMMANDS)}",
            fix=f"did you mean `hectogpt {near[0]}`?" if near else "hectogpt --help",
        )
    module, function, _ = COMMANDS[command]
    getattr(importlib.import_module(module), function)(arguments)
