"""`hectogpt completion bash|zsh`: tyro's completion script of all commands, their options and values."""

from __future__ import annotations

import importlib
from contextlib import suppress
from dataclasses import dataclass, field, make_dataclass
from typing import Annotated, Any, Literal, Union

import tyro

from hectogpt.cli import COMMANDS, argument_classes

EXAMPLES = """\
  hectogpt completion bash > ~/.local/share/bash-completion/completions/hectogpt
  hectogpt completion zsh > ~/.zfunc/_hectogpt"""


@dataclass(frozen=True)
class CompletionArguments:
    """Print a completion script for a shell: commands, options, values. Make it again after an update."""

    shell: Annotated[Literal["bash", "zsh"], tyro.conf.Positional]
    """Which shell."""


def main(argv: list[str]) -> None:
    """Run the command."""
    shell = tyro.cli(CompletionArguments, args=argv, prog="hectogpt completion").shell
    commands = [Annotated[command_class(name), tyro.conf.subcommand(name)] for name in COMMANDS]
    tree: Any = Union[tuple(commands)]  # noqa: UP007
    with suppress(SystemExit):  # tyro prints and leaves
        tyro.cli(tree, args=["--tyro-print-completion", shell], prog="hectogpt", config=(tyro.conf.AvoidSubcommands,))
    if shell == "bash":
        print("complete -o default -F _tyro_hectogpt hectogpt")  # names of files, which tyro's own line leaves out


def command_class(name: str) -> type:
    """The dataclass of what can follow a command; for `train` with the fields of the recipe top."""
    own = argument_classes(importlib.import_module(COMMANDS[name][0]))[0]
    if name != "train":
        return own
    from hectogpt.lab import recipes

    run = recipes.recipe("top")
    parts = [("options", own, field(default=own())), ("run", type(run), field(default=run))]
    return make_dataclass("Train", [(n, Annotated[c, tyro.conf.arg(name="")], f) for n, c, f in parts])
