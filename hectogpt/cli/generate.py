"""`hectogpt generate MODEL PROMPT`: the arguments. Knows no torch, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class GenerateArguments:
    """Continue a prompt.

    The model is a folder that `hectogpt train` wrote, a folder in Hugging Face's GPT-2 layout, or a name on the hub.
    """

    model: Annotated[str, tyro.conf.Positional]
    """Folder or hub name, such as runs/baseline or gpt2."""
    prompt: Annotated[str, tyro.conf.Positional] = ""
    """Text to continue; - reads it from standard input; empty starts a new text."""
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
    """Continuations of the prompt."""
    stop_strings: tuple[str, ...] = ()
    """End the text after one of these."""
    eos_token_id: int | None = None
    """Token that ends a text. Default: end-of-text; -1: none."""
    seed: int = 0
    """Of the draws; continuation i uses seed + i."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """Format of the weights; the two smaller ones are faster and slightly inexact."""
    compile: bool | None = None
    """Generate machine code for the one-token step, seconds at the first use. Default: if that pays."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    threads: int | None = None
    """Processor threads. Default: torch's choice."""
    strict: bool = False
    """Refuse a prompt longer than the model's context instead of using its end."""
    json: bool = False
    """Print one JSON object: texts, ids, log-probabilities, speed."""
    quiet: bool = False
    """Print the text and errors only."""


def main(argv: list[str]) -> None:
    """Run the command."""
    arguments = tyro.cli(GenerateArguments, args=argv, prog="hectogpt generate")
    from hectogpt.cli import generation

    generation.run(arguments)
