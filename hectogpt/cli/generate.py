"""`hectogpt generate MODEL PROMPT`: print text as it is generated, or one JSON object.

Remarks go to stderr.
"""

from __future__ import annotations

import codecs
import json
import sys
import time
from dataclasses import fields
from typing import Any

import torch

from hectogpt.cli.console import note, remarks
from hectogpt.cli.options import GenerateOptions
from hectogpt.display import printable
from hectogpt.errors import UserError
from hectogpt.generation import Sampling, Token, generate
from hectogpt.generation.decode import check_memory
from hectogpt.generation.quantize import quantize
from hectogpt.kernels.build import describe, find
from hectogpt.model import Transformer
from hectogpt.training.history import open_at

TOKEN_BYTES = 200  # memory for each new token until all are printed


def main(options: GenerateOptions) -> None:
    """Load the model, generate, and print. Raises UserError."""
    remark = remarks(options.quiet)
    model, tokenizer = open_at(options.model, options.step, options.idea, remark)
    same: dict[str, Any] = {
        f.name: getattr(options, f.name) for f in fields(Sampling) if f.name != "do_sample"
    }
    sampling = Sampling.of(tokenizer.end_of_text, do_sample=not options.greedy, **same)
    copies = sampling.num_return_sequences
    stops = sampling.eos_token_id
    prompt = tokenizer.encode(options.prompt)
    if len(prompt) + options.max_new_tokens - 1 > (context := model.config.context_length):
        remark(
            f"past the context of {context} tokens, each token sees only the last {context}, "
            "and recomputes them, which is slower"
        )
    check_memory(model, len(prompt), sampling, TOKEN_BYTES)
    model = place(model, options)
    begun = time.perf_counter()
    live = copies == 1 and not options.json
    rows: list[list[Token]] = [[] for _ in range(copies)]
    # Holds back the bytes of tokens that end inside a character.
    characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decode = tokenizer.decode_bytes
    if live:
        write(options.prompt)
    for token in generate(
        model, prompt.tolist(), sampling, seed=options.seed, decode_bytes=decode
    ):
        rows[token.row].append(token)
        if live and token.id not in stops:
            write(characters.decode(decode([token.id])))
    if live:
        write(characters.decode(b"", final=True) + "\n")
    seconds = time.perf_counter() - begun
    tokens = sum(map(len, rows))
    texts = [
        {
            "seed": options.seed + number,
            "text": tokenizer.decode([token.id for token in row if token.id not in stops]),
            "ids": [token.id for token in row],
            "logprobs": [token.logprob for token in row],
        }
        for number, row in enumerate(rows)
    ]
    if options.json:
        answer: dict[str, Any] = {
            name: getattr(options, name) for name in ("model", "prompt", "precision", "seed")
        }
        print(json.dumps(answer | {"seconds": seconds, "texts": texts}, allow_nan=False))
    for number, text in enumerate(() if options.json or live else texts, start=1):
        write(f"--- {number} of {copies} ---\n{options.prompt}{text['text']}\n")
    if tokens and not any(text["text"] for text in texts):
        remark("the model ended the text at once: change the prompt, or --seed")
    note(
        f"{tokens} {'token' if tokens == 1 else 'tokens'} in {seconds:.2f} s, "
        f"{tokens / seconds:.1f} a second, prompt included ({options.precision})",
        options.quiet,
    )


def place(model: Transformer, options: GenerateOptions) -> Transformer:
    """Move the model to its device and convert its weights' format."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda", why="torch finds no CUDA device", fix="--device cpu")
    cuda = options.device != "cpu" and torch.cuda.is_available()
    form = options.precision
    if form != "float32" and not cuda and find().library is None:
        remarks(options.quiet)(f"{form} saves memory here, but no time: {describe()}")
    model = model.to("cuda" if cuda else "cpu")
    # The copy also computes the head's embedding map once, instead of once per token.
    copied = form != "float32" or model.lm_head.embedding_map is not None
    return quantize(model, form) if copied else model


def write(text: str) -> None:
    """Write text to stdout now; on a terminal, control characters are made visible."""
    if text:
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()
