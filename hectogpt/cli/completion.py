"""`hectogpt completion bash|zsh`: tyro's completion script for commands, options and values."""

from __future__ import annotations

import io
from contextlib import redirect_stdout, suppress
from typing import Annotated, Any, Union

import tyro

from hectogpt.cli import COMMANDS, options_of
from hectogpt.cli.options import CompletionOptions
from hectogpt.cli.train import arguments_of
from hectogpt.lab.recipes import recipe


def main(options: CompletionOptions) -> None:
    """Print the script. For `train` it offers the fields of the recipe top."""
    kinds = {name: options_of(name) for name in COMMANDS if " " not in name} | {
        "train": arguments_of(recipe("top"))
    }
    tree: Any = Union[  # noqa: UP007  its members are in a tuple
        tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in kinds.items())
    ]
    script = io.StringIO()
    with suppress(SystemExit), redirect_stdout(script):  # tyro prints and exits
        tyro.cli(tree, args=["--tyro-print-completion", options.shell], prog="hectogpt")
    for line in script.getvalue().splitlines():
        # A description of two lines would become two completions.
        print(line.replace("\\n", " ") if line.startswith("COMPLETION_SPEC") else line)
    if options.shell == "bash":
        # Adds file names, which tyro's own line lacks.
        print("complete -o default -F _tyro_hectogpt hectogpt")
