"""`hectogpt generate MODEL PROMPT ...`: the options, and the reading of the prompts. generate_run.py does the work."""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path

import tyro

from hectogpt import errors
from hectogpt.cli.console import note
from hectogpt.cli.options import GenerateArguments
from hectogpt.errors import UserError

LARGEST = 64 << 20  # bytes of prompts
EXAMPLES = """\
  hectogpt generate runs/minute "My fellow citizens" --max-new-tokens 40
  hectogpt generate runs/minute "First" "Second" --temperature 0.5 --json
  hectogpt generate gpt2 --prompts prompts.txt > texts.txt"""


def main(argv: list[str]) -> None:
    """Run the command."""
    run(tyro.cli(GenerateArguments, args=argv, prog="hectogpt generate"))


def run(arguments: GenerateArguments) -> None:
    """Continue the prompts. Raises UserError."""
    prompts = read_prompts(arguments)
    from hectogpt.cli.generate_run import continue_prompts  # loads torch

    continue_prompts(arguments, prompts)


def read_prompts(arguments: GenerateArguments) -> list[str]:
    """The prompts in their order; one empty prompt if none is given. Raises UserError."""
    prompts, file = list(arguments.prompt), arguments.prompts
    words = [prompt for prompt in prompts if prompt != "-" and prompt.split() == [prompt]]
    if len(words) == len(prompts) >= 3:
        quoted = shlex.quote(" ".join(words))
        note(
            f"note: {len(words)} prompts of one word each; several words are one prompt if quoted: {quoted}",
            arguments.quiet,
        )
    if prompts.count("-") + (str(file) == "-") > 1:
        raise UserError("standard input is named twice", why="it can be read once", fix="name - once")
    prompts = [read_text("-") if prompt == "-" else prompt for prompt in prompts]
    if file is not None:
        lines = [line.removesuffix("\r") for line in read_text(str(file)).split("\n")]
        found = [line for line in lines if line.strip()]
        if not found:
            raise UserError(f"no prompt in {file}", why="it has no line with text", code=errors.DATA)
        prompts += found
    return prompts or [""]


def read_text(name: str) -> str:
    """A UTF-8 file's text; "-" is standard input. Raises UserError (DATA)."""
    if "\0" in name:
        raise UserError(f"cannot read {name[:200]!r}", why="no path has a NUL character", code=errors.DATA)
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb") as file:
            raw = file.read(LARGEST + 1)  # a device may have no end; a pipe is welcome
        if len(raw) > LARGEST:
            raise UserError(f"{name} is too long", why=f"at most {LARGEST:,} bytes are read", code=errors.DATA)
        return raw.decode("utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise UserError(f"cannot read {name[:200]}", why=error.strerror or str(error), code=errors.DATA) from None
    except UnicodeDecodeError as error:
        name = "standard input" if name == "-" else name
        raise UserError(
            f"{name[:200]} is not UTF-8 text", why=str(error), fix="convert it to UTF-8", code=errors.DATA
        ) from None
