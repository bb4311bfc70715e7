"""`hectogpt generate MODEL PROMPT`: text on stdout as it comes (or one JSON object), remarks on stderr."""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import tyro

from hectogpt import errors
from hectogpt.cli.console import note, printable
from hectogpt.errors import UserError


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
    """Print one JSON object: texts, ids, log-probabilities, seconds."""
    quiet: bool = False
    """Print the text and errors only."""


def main(argv: list[str]) -> None:
    """Run the command."""
    run(tyro.cli(GenerateArguments, args=argv, prog="hectogpt generate"))


def run(arguments: GenerateArguments) -> None:
    """Load, generate, print. Raises UserError."""
    import torch

    from hectogpt.generate import Sampling, Token, generate
    from hectogpt.generate.quantize import QuantizedTransformer
    from hectogpt.generate.text import TextStream
    from hectogpt.interop.open import open_model

    if arguments.threads is not None:
        if arguments.threads < 1:
            raise UserError(f"threads = {arguments.threads}", why="it must be at least 1")
        torch.set_num_threads(arguments.threads)
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    try:
        model, tokenizer = open_model(arguments.model, download=True)
    except UserError as error:
        if error.code == errors.CHECKPOINT and not error.fix:
            error.fix = "copy the model's folder again from where it came, or train it again with hectogpt train"
        raise
    sampling = Sampling(**sampling_options(arguments, tokenizer.end_of_text))
    ids = tokenizer.encode(prompt).tolist()
    check_length(arguments, len(ids), model.config.context_length)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda", why="torch finds no CUDA device", fix="--device cpu")
    cuda = arguments.device != "cpu" and torch.cuda.is_available()
    compile = arguments.compile
    if compile is None:
        parameters = sum(p.numel() for p in model.parameters())
        compile = not cuda and worth_compiling(parameters, arguments.precision, sampling.max_new_tokens)
    if compile or arguments.precision != "float32":
        model = QuantizedTransformer(model, arguments.precision, compile=compile)
    model.to("cuda" if cuda else "cpu")

    rows: list[list[Token]] = [[] for _ in range(sampling.num_return_sequences)]
    live = not arguments.json and len(rows) == 1
    stream = TextStream()
    clock = Clock(len(ids), model.config.context_length, arguments.quiet)
    if live:
        show(prompt)
    for token in generate(
        model, [ids], sampling, seed=arguments.seed, decode_bytes=tokenizer.decode_bytes, start=tokenizer.end_of_text
    ):
        rows[token.row].append(token)
        clock.tick(len(rows[token.row]))
        if live and token.id not in sampling.eos_token_id:
            show(stream.add(tokenizer.decode_bytes([token.id])))
    if live:
        show(stream.end() + "\n")
    texts = [tokenizer.decode([t.id for t in row if t.id not in sampling.eos_token_id]) for row in rows]
    if arguments.json:
        result = {
            "model": arguments.model,
            "prompt": prompt,
            "precision": arguments.precision,
            "seed": arguments.seed,
            "seconds": clock.seconds,
            "texts": [
                {"text": text, "ids": [t.id for t in row], "logprobs": [t.logprob for t in row]}
                for text, row in zip(texts, rows, strict=True)
            ],
        }
        print(json.dumps(result, allow_nan=False))
    elif not live:
        for number, text in enumerate(texts, start=1):
            show(f"--- {number} of {len(texts)} ---\n{prompt}{text}\n")
    if clock.rounds:
        note(clock.summary(arguments.precision), arguments.quiet)


def sampling_options(arguments: GenerateArguments, end_of_text: int) -> dict[str, Any]:
    """The arguments as those of Sampling."""
    from hectogpt.generate import Sampling

    same: dict[str, Any] = {f.name: getattr(arguments, f.name) for f in fields(Sampling)}
    asked = ("temperature", "top_k", "top_p", "min_p", "num_return_sequences")
    if arguments.do_sample is None:
        defaults = {f.name: f.default for f in fields(GenerateArguments)}
        same["do_sample"] = any(same[name] != defaults[name] for name in asked) and arguments.temperature != 0
    eos = end_of_text if arguments.eos_token_id is None else arguments.eos_token_id
    same["eos_token_id"] = () if eos < 0 else (eos,)
    return same


def check_length(arguments: GenerateArguments, tokens: int, context_length: int) -> None:
    """Say that a prompt is longer than the context, or refuse it."""
    dropped = tokens - context_length
    if dropped > 0:
        if arguments.strict:
            raise UserError(
                f"the prompt has {tokens} tokens",
                why=f"the model's context is {context_length}",
                fix="shorten the prompt, or leave out --strict to use its end",
            )
        note(f"note: the prompt's first {dropped} tokens lie outside the model's context", arguments.quiet)


def worth_compiling(parameters: int, precision: str, tokens: int) -> bool:
    """Whether the plain one-token steps would take longer than the compiler (about 8 s; a plain step reads its weights
    at about 12 GB/s in float32, and takes three times as long where it has to widen them first)."""
    step = 4 * parameters / 12e9 * (1 if precision == "float32" else 3)
    return tokens * step > 10


class Clock:
    """When the tokens came. Says once how much slower they get past the context, where each is computed from its last
    `context_length` tokens without a cache."""

    def __init__(self, prompt_tokens: int, context_length: int, quiet: bool) -> None:
        self.prompt_tokens, self.context_length, self.quiet = prompt_tokens, context_length, quiet
        # An empty prompt starts from one token. Token number `last_fast` is the last one that the cache serves.
        self.last_fast = context_length - min(max(prompt_tokens, 1), context_length) + 1
        self.begun = self.newest = time.perf_counter()
        self.rounds: list[float] = []  # when the first text got its token, round by round
        self.texts = self.tokens = 0

    def tick(self, length: int) -> None:
        """A text has its token number `length`."""
        self.newest = time.perf_counter()
        self.tokens += 1
        self.texts += length == 1
        if length > len(self.rounds):
            self.rounds.append(self.newest)
            if length == self.last_fast + 1:
                self._tell()

    def _tell(self) -> None:
        steps = [after - before for before, after in zip(self.rounds, self.rounds[1:], strict=False)]
        factor = steps[-1] / statistics.median(steps[:-1]) if len(steps) > 1 else 0.0
        slower = f": about {factor:.0f} times slower" if factor >= 2 else ""
        start = "\n" if sys.stdout.isatty() and sys.stderr.isatty() else ""  # in the middle of the text
        n = self.context_length
        note(f"{start}note: past the context of {n} tokens each token recomputes the last {n}{slower}", self.quiet)

    @property
    def seconds(self) -> float:
        """From the start to the newest token."""
        return self.newest - self.begun

    def summary(self, precision: str) -> str:
        """The speed in words."""
        first = self.rounds[0]
        line = f"{self.prompt_tokens} prompt tokens and the first new one in {first - self.begun:.2f} s"
        if self.tokens > self.texts and self.newest > first:
            line += f"; then {(self.tokens - self.texts) / (self.newest - first):.1f} tokens per second"
        return f"{line} ({precision})"


def show(text: str) -> None:
    """Write text to stdout now; on a terminal control characters are made visible."""
    if text:
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()
