"""`hectogpt completion bash|zsh`: tyro's completion script of all commands, their options and values."""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import Annotated, Any, Union

import tyro

from hectogpt.cli import COMMANDS
from hectogpt.cli.options import OPTIONS, CompletionOptions


def main(options: CompletionOptions) -> None:
    """Print the script."""
    commands = [Annotated[options_of(name), tyro.conf.subcommand(name)] for name in COMMANDS]
    tree: Any = Union[tuple(commands)]  # noqa: UP007
    asked = ["--tyro-print-completion", options.shell]
    with suppress(SystemExit):  # tyro prints and leaves
        tyro.cli(tree, args=asked, prog="hectogpt", config=(tyro.conf.AvoidSubcommands,))
    if options.shell == "bash":
        print("complete -o default -F _tyro_hectogpt hectogpt")  # names of files, which tyro's own line leaves out


def options_of(command: str) -> type:
    """The class of what can follow a command; for `train` with the fields of the recipe top."""
    if command in OPTIONS:
        found: type = OPTIONS[command]
        return found
    if command != "train":
        module = importlib.import_module(COMMANDS[command][0])
        return next(kind for name, kind in vars(module).items() if name.endswith("Arguments"))
    from hectogpt.cli.train import arguments_of
    from hectogpt.lab import recipes

    return arguments_of(recipes.recipe("top"))
