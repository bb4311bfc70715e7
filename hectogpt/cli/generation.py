"""What `hectogpt generate` does: the text on stdout as it comes, everything else on stderr."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import fields
from typing import Any

import torch

from hectogpt.cli.generate import GenerateArguments
from hectogpt.cli.show import printable
from hectogpt.data import Tokenizer
from hectogpt.errors import UserError
from hectogpt.generate.quantize import Precision, QuantizedTransformer, copy_bandwidth, weight_bytes
from hectogpt.generate.sampling import Sampling, TextStream, Token, generate
from hectogpt.interop import open_model
from hectogpt.model.transformer import Transformer


def run(arguments: GenerateArguments) -> None:
    """Load, generate, print. Raises UserError."""
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise UserError(f"threads = {arguments.threads}", why="it must be at least 1")
        torch.set_num_threads(arguments.threads)
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    model, tokenizer = open_model(arguments.model, download=True)
    sampling = sampling_of(arguments, tokenizer.end_of_text)
    ids = tokenizer.encode(prompt).tolist()
    dropped = len(ids) - model.config.context_length
    if dropped > 0:
        if arguments.strict:
            raise UserError(
                f"the prompt has {len(ids)} tokens",
                why=f"the model's context is {model.config.context_length}",
                fix="shorten the prompt, or leave out --strict to use its end",
            )
        note(f"note: the prompt's first {dropped} tokens lie outside the model's context", arguments.quiet)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda", why="torch finds no CUDA device", fix="--device cpu")
    cuda = arguments.device != "cpu" and torch.cuda.is_available()
    compile = arguments.compile
    if compile is None:
        compile = not cuda and worth_compiling(model, arguments.precision, sampling.max_new_tokens)
    if compile or arguments.precision != "float32":
        model = QuantizedTransformer(model, arguments.precision, compile=compile)
    model.to("cuda" if cuda else "cpu")
    continue_prompt(arguments, model, tokenizer, sampling, ids, prompt)


def sampling_of(arguments: GenerateArguments, end_of_text: int) -> Sampling:
    """The arguments as numbers of generation."""
    same: dict[str, Any] = {f.name: getattr(arguments, f.name) for f in fields(Sampling)}
    asked = ("temperature", "top_k", "top_p", "min_p", "num_return_sequences")
    if arguments.do_sample is None:
        defaults = {f.name: f.default for f in fields(GenerateArguments)}
        same["do_sample"] = any(same[name] != defaults[name] for name in asked) and arguments.temperature != 0
    eos = end_of_text if arguments.eos_token_id is None else arguments.eos_token_id
    same["eos_token_id"] = () if eos < 0 else (eos,)
    return Sampling(**same)


def worth_compiling(model: Transformer, precision: Precision, tokens: int) -> bool:
    """Whether the plain one-token steps would take longer than the compiler (about 8 s; a plain step reads its weights
    at about 12 GB/s in float32, and takes three times as long where it has to widen them first)."""
    step = 4 * sum(p.numel() for p in model.parameters()) / 12e9 * (1 if precision == "float32" else 3)
    return tokens * step > 10


def continue_prompt(
    arguments: GenerateArguments,
    model: Transformer,
    tokenizer: Tokenizer,
    sampling: Sampling,
    ids: list[int],
    prompt: str,
) -> None:
    """Generate and print."""
    rows: list[list[Token]] = [[] for _ in range(sampling.num_return_sequences)]
    live = not arguments.json and len(rows) == 1
    stream = TextStream()
    times = [time.perf_counter()]
    if live:
        show(prompt)
    for token in generate(
        model,
        [ids],
        sampling,
        seed=arguments.seed,
        decode_bytes=tokenizer.decode_bytes,
        start=tokenizer.end_of_text,
    ):
        rows[token.row].append(token)
        times.append(time.perf_counter())
        if live and token.id not in sampling.eos_token_id:
            show(stream.add(tokenizer.decode_bytes([token.id])))
    if live:
        show(stream.end() + "\n")
    texts = [text_of(tokens, tokenizer, sampling) for tokens in rows]
    if arguments.json:
        result = {
            "model": arguments.model,
            "prompt": prompt,
            "precision": arguments.precision,
            "seed": arguments.seed,
            "seconds": times[-1] - times[0],
            "texts": [
                {"text": text, "ids": [t.id for t in tokens], "logprobs": [t.logprob for t in tokens]}
                for text, tokens in zip(texts, rows, strict=True)
            ],
        }
        print(json.dumps(result, allow_nan=False))
    elif not live:
        for number, text in enumerate(texts, start=1):
            show(f"--- {number} of {len(texts)} ---\n{prompt}{text}\n")
    report_speed(arguments, model, rows, times, len(ids))


def text_of(tokens: list[Token], tokenizer: Tokenizer, sampling: Sampling) -> str:
    """Text of one continuation, without its end-of-text token."""
    return tokenizer.decode([t.id for t in tokens if t.id not in sampling.eos_token_id])


def report_speed(
    arguments: GenerateArguments, model: Transformer, rows: list[list[Token]], times: list[float], prompt_tokens: int
) -> None:
    """Tokens per second, and what that means in bytes of weights per second beside a plain copy."""
    steps = max(map(len, rows)) - 1
    if arguments.quiet or steps < 0:
        return
    first = times[len([row for row in rows if row])]
    line = f"{prompt_tokens} prompt tokens and the first new one in {first - times[0]:.2f} s"
    if steps > 0 and times[-1] > first:
        rate = steps / (times[-1] - first)
        tokens = sum(len(row) - 1 for row in rows) / (times[-1] - first)
        line += f"; then {tokens:.1f} tokens/s"
        if model.embeddings.weight.device.type == "cpu":
            moved = rate * weight_bytes(model)
            line += f", {moved / 1e9:.1f} GB/s of weights, {moved / copy_bandwidth():.0%} of a copy's"
    note(line + f" ({arguments.precision})", quiet=False)


def show(text: str) -> None:
    """Write text to stdout now; on a terminal control characters are made visible."""
    if text:
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()


def note(line: str, quiet: bool) -> None:
    """A line on stderr."""
    if not quiet:
        print(line, file=sys.stderr)
