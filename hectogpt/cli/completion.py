"""`hectogpt completion bash|zsh`: tyro's completion script of all commands, their options and values."""

from __future__ import annotations

import importlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

import tyro
from tyro.conf import Positional

from hectogpt.cli import COMMANDS
from hectogpt.cli.options import OPTIONS


@dataclass(frozen=True)
class Options:
    """Print a completion script for a shell: commands, options, values, files. Make it again after an update.

    Examples
      hectogpt completion bash > ~/.local/share/bash-completion/completions/hectogpt
      hectogpt completion zsh > ~/.zfunc/_hectogpt
    """

    shell: Positional[Literal["bash", "zsh"]]
    """bash or zsh"""


def main(options: Options) -> None:
    """Print the script."""
    commands = [Annotated[options_of(name), tyro.conf.subcommand(name)] for name in COMMANDS]
    tree: Any = Union[tuple(commands)]  # noqa: UP007
    asked = ["--tyro-print-completion", options.shell]
    with suppress(SystemExit):  # tyro prints and leaves
        tyro.cli(tree, args=asked, prog="hectogpt", config=(tyro.conf.AvoidSubcommands,))
    if options.shell == "bash":
        print("complete -o default -F _tyro_hectogpt hectogpt")  # names of files, which tyro's own line leaves out


def options_of(command: str) -> Any:
    """The class of what can follow a command; for `train` with the fields of the recipe top."""
    if command in OPTIONS:
        return OPTIONS[command]
    module = importlib.import_module(COMMANDS[command][0])
    if command != "train":
        return module.Options
    from hectogpt.lab import recipes

    return module.arguments_of(recipes.recipe("top"))
