"""`hectogpt generate MODEL PROMPT ...`: the options, and the reading of the prompts. generate_run.py does the work."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hectogpt import errors
from hectogpt.cli.console import note
from hectogpt.errors import UserError

EXAMPLES = """\
  hectogpt generate runs/top "My fellow citizens" --max-new-tokens 40
  hectogpt generate runs/top "First prompt" "Second prompt" --temperature 0.8 --seed 1 --json
  hectogpt generate gpt2 --prompts prompts.txt > texts.txt"""


@dataclass(frozen=True)
class GenerateArguments:
    """Continue one prompt or several.

    The model is a folder that `hectogpt train` wrote, a folder in Hugging Face's GPT-2 layout, or a name on the hub.
    Texts come in the order of the prompts, all continuations of one before those of the next.
    """

    model: Annotated[str, tyro.conf.Positional]
    """Folder or hub name, such as runs/top or gpt2."""
    prompt: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Texts to continue. Quote each: unquoted words are a prompt each. - reads one from standard input; without a
    prompt a new text is started."""
    prompts: Path | None = None
    """File with a prompt on each line, after those above; empty lines are skipped. - is standard input."""
    idea: tuple[Path, ...] = ()
    """Your own file, FILE.py, if the model has classes of it; it is imported. A file that you ran here and that has
    not changed since need not be named."""
    max_new_tokens: int = 100
    """Tokens to add at most."""
    do_sample: bool | None = None
    """Draw tokens rather than take the likeliest. Default: if another option below asks for a draw."""
    temperature: float = 1.0
    """Divides the logits before a draw; 0 takes the likeliest token."""
    top_k: int = 50
    """Draw among the k likeliest tokens; 0: among all."""
    top_p: float = 1.0
    """Draw among the likeliest tokens whose probabilities reach p."""
    min_p: float = 0.0
    """Drop tokens less likely than min_p times the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1: tokens already in the text become less likely."""
    num_return_sequences: int = 1
    """Continuations of each prompt."""
    stop_strings: tuple[str, ...] = ()
    """End the text after one of these."""
    eos_token_id: int | None = None
    """Token that ends a text. Default: end-of-text; -1: none."""
    seed: int = 0
    """Of the draws; text number i, counted from 0 through all prompts, uses seed + i."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """Format of the weights; the two smaller ones are faster and slightly inexact."""
    compile: bool | None = None
    """Generate machine code for the one-token step, seconds at the first use; needs a C++ compiler. Default: if that
    pays."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    threads: int | None = None
    """Processor threads. Default: torch's choice."""
    strict: bool = False
    """Refuse a prompt longer than the model's context instead of using its end."""
    json: bool = False
    """Print one JSON object: prompts, texts, ids, log-probabilities, seconds."""
    quiet: bool = False
    """Print the texts and errors only."""


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
    try:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return raw.decode("utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise UserError(f"cannot read {name}", why=error.strerror or str(error), code=errors.DATA) from None
    except UnicodeDecodeError as error:
        name = "standard input" if name == "-" else name
        raise UserError(
            f"{name} is not UTF-8 text", why=str(error), fix="convert it to UTF-8", code=errors.DATA
        ) from None
