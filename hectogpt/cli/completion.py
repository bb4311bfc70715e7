"""`hectogpt completion bash|zsh`: tyro's completion script of all commands, their options and values."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

import tyro
from tyro.conf import Positional

from hectogpt.cli import COMMANDS, options_of


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
    """Print the script. `train` has the fields of the recipe top."""
    from hectogpt.cli.train import arguments_of
    from hectogpt.lab.recipes import recipe

    kinds = {name: options_of(name) or arguments_of(recipe("top")) for name in COMMANDS}
    tree: Any = Union[tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in kinds.items())]  # noqa: UP007
    asked = ["--tyro-print-completion", options.shell]
    with suppress(SystemExit):  # tyro prints and leaves
        tyro.cli(tree, args=asked, prog="hectogpt", config=(tyro.conf.AvoidSubcommands,))
    if options.shell == "bash":
        print("complete -o default -F _tyro_hectogpt hectogpt")  # names of files, which tyro's own line leaves out
