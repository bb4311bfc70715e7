"""Continues prompts for `hectogpt generate`: text on stdout as it comes (or one JSON object), remarks on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import torch

from hectogpt import errors
from hectogpt.cli.console import note
from hectogpt.cli.options import GenerateArguments
from hectogpt.data import Tokenizer
from hectogpt.display import printable
from hectogpt.errors import UserError
from hectogpt.generation import Sampling, Token, generate
from hectogpt.generation.quantize import quantize
from hectogpt.generation.text import TextStream, check_memory
from hectogpt.interop.open import open_model
from hectogpt.kernels.build import describe, find
from hectogpt.model import Transformer

BATCH_ROWS = 16  # texts that are continued side by side; their caches bound the memory (GPT-2 small: 75 MB a text)


TOKEN_BYTES = 200  # what is kept of each new token until all are printed
MOST_THREADS = 1024


class Prompt(NamedTuple):
    """A prompt and its tokens."""

    text: str
    ids: list[int]


def continue_prompts(arguments: GenerateArguments, texts: list[str]) -> None:
    """Load, generate, print. Raises UserError."""
    if arguments.threads is not None:
        if not 1 <= arguments.threads <= MOST_THREADS:
            raise UserError(f"threads = {arguments.threads}", why=f"it must lie between 1 and {MOST_THREADS:,}")
        torch.set_num_threads(arguments.threads)
    model, tokenizer = open_for(arguments)
    sampling = Sampling(**sampling_options(arguments, tokenizer.end_of_text))
    prompts = [Prompt(text, tokenizer.encode(text).tolist()) for text in texts]
    for number, prompt in enumerate(prompts, start=1):
        name = f"prompt {number}" if len(prompts) > 1 else "the prompt"
        check_length(arguments, name, len(prompt.ids), model.config.context_length)
    batch = sorted(len(prompt.ids) for prompt in prompts)[-max(1, BATCH_ROWS // sampling.num_return_sequences) :]
    check_memory(model, batch, sampling, TOKEN_BYTES * -(-len(prompts) // len(batch)))
    model = place(model, arguments)
    clock = Clock(model.config.context_length, arguments.quiet)
    total = len(prompts) * sampling.num_return_sequences
    live = total == 1 and not arguments.json
    found: list[dict[str, Any]] = []
    for text in continue_all(model, tokenizer, sampling, prompts, arguments.seed, clock, live):
        found.append(text)
        if not arguments.json and not live:
            show(f"--- {len(found)} of {total} ---\n{text['prompt']}{text['text']}\n")
    if arguments.json:
        result: dict[str, Any] = {"model": arguments.model, "prompts": texts}
        result |= {"prompt": texts[0]} if len(texts) == 1 else {}
        result |= {"precision": arguments.precision, "seed": arguments.seed, "seconds": clock.seconds, "texts": found}
        print(json.dumps(result, allow_nan=False))
    if clock.tokens:
        note(clock.summary(arguments.precision), arguments.quiet)


def open_for(arguments: GenerateArguments) -> tuple[Transformer, Tokenizer]:
    """The model and its tokenizer. Raises UserError."""
    try:
        return open_model(
            arguments.model,
            step=arguments.step,
            download=True,
            idea=arguments.idea,
            note=lambda text: note(f"note: {text}", arguments.quiet),
        )
    except UserError as error:
        if error.code == errors.CHECKPOINT and not error.fix:
            error.fix = "copy the model's folder again from where it came, or train it again with hectogpt train"
        raise


def place(model: Transformer, arguments: GenerateArguments) -> Transformer:
    """The model on its device, in its weights' format."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda", why="torch finds no CUDA device", fix="--device cpu")
    cuda = arguments.device != "cpu" and torch.cuda.is_available()
    form = arguments.precision
    if form != "float32" and not cuda and find().library is None:
        note(f"note: {form} saves memory here, but no time: {describe()}", arguments.quiet)
    model = model.to("cuda" if cuda else "cpu")
    # The copy also multiplies the head's embedding map out, which would be done anew for every token.
    copied = form != "float32" or model.lm_head.embedding_map is not None
    return quantize(model, form) if copied else model


def continue_all(
    model: Transformer,
    tokenizer: Tokenizer,
    sampling: Sampling,
    prompts: Sequence[Prompt],
    seed: int,
    clock: Clock,
    live: bool,
) -> Iterator[dict[str, Any]]:
    """Continue the prompts, BATCH_ROWS texts at a time; yield each text when its batch is done. live: show the tokens
    as they come."""
    copies, stops, stream = sampling.num_return_sequences, sampling.eos_token_id, TextStream()
    if live:
        show(prompts[0].text)
    for first in range(0, len(prompts), size := max(1, BATCH_ROWS // copies)):
        batch = [prompt.ids for prompt in prompts[first : first + size]]
        rows: list[list[Token]] = [[] for _ in range(len(batch) * copies)]
        clock.begin([len(ids) for ids in batch])
        tokens = generate(
            model,
            batch,
            sampling,
            seed=seed + first * copies,
            decode_bytes=tokenizer.decode_bytes,
            start=tokenizer.end_of_text,
        )
        for token in tokens:
            rows[token.row].append(token)
            clock.tick(len(rows[token.row]))
            if live and token.id not in stops:
                show(stream.add(tokenizer.decode_bytes([token.id])))
        for number, row in enumerate(rows, start=first * copies):
            yield {
                "prompt": prompts[number // copies].text,
                "seed": seed + number,
                "text": tokenizer.decode([token.id for token in row if token.id not in stops]),
                "ids": [token.id for token in row],
                "logprobs": [token.logprob for token in row],
            }
    if live:
        show(stream.end() + "\n")


def sampling_options(arguments: GenerateArguments, end_of_text: int) -> dict[str, Any]:
    """The arguments as those of Sampling."""
    same: dict[str, Any] = {f.name: getattr(arguments, f.name) for f in fields(Sampling) if f.name != "do_sample"}
    same["do_sample"] = not arguments.greedy
    eos = end_of_text if arguments.eos_token_id is None else arguments.eos_token_id
    same["eos_token_id"] = () if eos < 0 else (eos,)
    return same


def check_length(arguments: GenerateArguments, name: str, tokens: int, context_length: int) -> None:
    """Say that a prompt is longer than the context, or refuse it."""
    dropped = tokens - context_length
    if dropped > 0:
        if arguments.strict:
            raise UserError(
                f"{name} has {tokens} tokens",
                why=f"the model's context is {context_length}",
                fix="shorten the prompt, or leave out --strict to use its end",
            )
        note(f"note: {name}'s first {dropped} tokens lie outside the model's context", arguments.quiet)


class Clock:
    """When the tokens came. Says once when they are past the context, where each is computed from its last
    `context_length` tokens without a cache."""

    def __init__(self, context_length: int, quiet: bool) -> None:
        self.context_length, self.quiet, self.told = context_length, quiet, False
        self.started = self.begun = self.newest = time.perf_counter()
        self.prompt_tokens = self.texts = self.tokens = self.longest = 0
        self.first_seconds = self.later_seconds = 0.0  # of all batches: up to the first token, and from there on

    def begin(self, prompt_tokens: Sequence[int]) -> None:
        """A batch of prompts of these lengths begins."""
        self.prompt_tokens += sum(prompt_tokens)
        # An empty prompt starts from one token. Token number `last_fast` is the last one that the cache serves.
        self.last_fast = self.context_length - min(max(*prompt_tokens, 1), self.context_length) + 1
        self.begun, self.longest = time.perf_counter(), 0

    def tick(self, length: int) -> None:
        """A text has its token number `length`."""
        before, self.newest = self.newest, time.perf_counter()
        self.tokens += 1
        self.texts += length == 1
        if self.longest:
            self.later_seconds += self.newest - before
        else:
            self.first_seconds += self.newest - self.begun
        self.longest = max(self.longest, length)
        if self.longest > self.last_fast and not self.told:
            self.told, n = True, self.context_length
            start = "\n" if sys.stdout.isatty() and sys.stderr.isatty() else ""  # in the middle of the text
            slower = f"note: past the context of {n} tokens each token recomputes the last {n}, which is slower"
            note(start + slower, self.quiet)

    @property
    def seconds(self) -> float:
        """From the start to the newest token."""
        return self.newest - self.started

    def summary(self, precision: str) -> str:
        """The speed in words."""
        line = f"{self.prompt_tokens} prompt tokens and the first new one in {self.first_seconds:.2f} s"
        if self.tokens > self.texts and self.later_seconds > 0:
            line += f"; then {(self.tokens - self.texts) / self.later_seconds:.1f} tokens per second"
        return f"{line} ({precision})"


def show(text: str) -> None:
    """Write text to stdout now; on a terminal control characters are made visible."""
    if text:
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()
