"""`hectogpt generate MODEL PROMPT ...`: text on stdout as it comes (or one JSON object), remarks on stderr."""

from __future__ import annotations

import codecs
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch

from hectogpt import errors
from hectogpt.cli.console import note, remarks
from hectogpt.cli.options import GenerateOptions
from hectogpt.data import Tokenizer
from hectogpt.display import printable
from hectogpt.errors import UserError
from hectogpt.generation import Sampling, Token, generate
from hectogpt.generation.decode import check_memory
from hectogpt.generation.quantize import quantize
from hectogpt.interop.open import open_model
from hectogpt.kernels.build import describe, find
from hectogpt.model import Transformer

BATCH_ROWS = 16  # texts that are continued side by side; their caches bound the memory (GPT-2 small: 75 MB a text)
TOKEN_BYTES = 200  # what is kept of each new token until all are printed


def main(options: GenerateOptions) -> None:
    """Load, generate, print. Raises UserError."""
    texts = options.prompt or ("",)
    model, tokenizer = open_for(options)
    sampling = Sampling(**sampling_options(options, tokenizer.end_of_text))
    prompts = [tokenizer.encode(text).tolist() for text in texts]
    say_lengths(options, prompts, model.config.context_length)
    batch = sorted(map(len, prompts))[-max(1, BATCH_ROWS // sampling.num_return_sequences) :]
    check_memory(model, batch, sampling, TOKEN_BYTES * -(-len(prompts) // len(batch)))
    model = place(model, options)
    begun, total = time.perf_counter(), len(prompts) * sampling.num_return_sequences
    live = total == 1 and not options.json
    if live:
        write(texts[0])
    done: list[dict[str, Any]] = []
    for number, text in enumerate(continue_all(model, tokenizer, sampling, prompts, options.seed, live)):
        done.append({"prompt": texts[number // sampling.num_return_sequences], "seed": options.seed + number} | text)
        if not options.json and not live:
            write(f"--- {len(done)} of {total} ---\n{done[-1]['prompt']}{text['text']}\n")
    seconds, tokens = time.perf_counter() - begun, sum(len(text["ids"]) for text in done)
    if options.json:
        result: dict[str, Any] = {"model": options.model, "prompts": texts}
        result |= {"prompt": texts[0]} if len(texts) == 1 else {}
        result |= {"precision": options.precision, "seed": options.seed, "seconds": seconds, "texts": done}
        print(json.dumps(result, allow_nan=False))
    speed = f"{tokens / seconds:.1f} a second, prompts included"
    note(f"{tokens} tokens in {seconds:.2f} s, {speed} ({options.precision})", options.quiet)


def open_for(options: GenerateOptions) -> tuple[Transformer, Tokenizer]:
    """The model and its tokenizer. Raises UserError."""
    try:
        note = remarks(options.quiet)
        return open_model(options.model, step=options.step, download=True, idea=options.idea, note=note)
    except UserError as error:
        if error.code == errors.CHECKPOINT and not error.fix:
            error.fix = "copy the model's folder again from where it came, or train it again with hectogpt train"
        raise


def place(model: Transformer, options: GenerateOptions) -> Transformer:
    """The model on its device, in its weights' format."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda", why="torch finds no CUDA device", fix="--device cpu")
    cuda = options.device != "cpu" and torch.cuda.is_available()
    form = options.precision
    if form != "float32" and not cuda and find().library is None:
        remarks(options.quiet)(f"{form} saves memory here, but no time: {describe()}")
    model = model.to("cuda" if cuda else "cpu")
    # The copy also multiplies the head's embedding map out, which would be done anew for every token.
    copied = form != "float32" or model.lm_head.embedding_map is not None
    return quantize(model, form) if copied else model


def sampling_options(options: GenerateOptions, end_of_text: int) -> dict[str, Any]:
    """The options as those of Sampling."""
    same: dict[str, Any] = {f.name: getattr(options, f.name) for f in fields(Sampling) if f.name != "do_sample"}
    eos = end_of_text if options.eos_token_id is None else options.eos_token_id
    return same | {"do_sample": not options.greedy, "eos_token_id": () if eos < 0 else (eos,)}


def say_lengths(options: GenerateOptions, prompts: Sequence[Sequence[int]], context: int) -> None:
    """Say that prompts are longer than the context, or that texts may become so."""
    remark = remarks(options.quiet)
    for number, prompt in enumerate(prompts, start=1):
        name = f"prompt {number}" if len(prompts) > 1 else "the prompt"
        if len(prompt) > context:
            remark(f"{name}'s first {len(prompt) - context} tokens lie outside the model's context")
    if min(max(map(len, prompts)), context) + options.max_new_tokens - 1 > context:
        remark(f"past the context of {context} tokens each token recomputes the last {context}, which is slower")


def continue_all(
    model: Transformer, tokenizer: Tokenizer, sampling: Sampling, prompts: Sequence[list[int]], seed: int, live: bool
) -> Iterator[dict[str, Any]]:
    """Continue the prompts, BATCH_ROWS texts at a time; yield each text when its batch is done. live: show the tokens
    as they come."""
    copies, stops = sampling.num_return_sequences, sampling.eos_token_id
    characters = codecs.getincrementaldecoder("utf-8")(errors="replace")  # of tokens that end inside a character
    for first in range(0, len(prompts), size := max(1, BATCH_ROWS // copies)):
        batch = prompts[first : first + size]
        rows: list[list[Token]] = [[] for _ in range(len(batch) * copies)]
        for token in generate(
            model,
            batch,
            sampling,
            seed=seed + first * copies,
            decode_bytes=tokenizer.decode_bytes,
            start=tokenizer.end_of_text,
        ):
            rows[token.row].append(token)
            if live and token.id not in stops:
                write(characters.decode(tokenizer.decode_bytes([token.id])))
        for row in rows:
            yield {
                "text": tokenizer.decode([token.id for token in row if token.id not in stops]),
                "ids": [token.id for token in row],
                "logprobs": [token.logprob for token in row],
            }
    if live:
        write(characters.decode(b"", final=True) + "\n")


def write(text: str) -> None:
    """Write text to stdout now; on a terminal control characters are made visible."""
    if text:
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()
