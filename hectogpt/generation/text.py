"""Texts continued by a model, several at once, token by token.

`generate` works on ids and yields tokens as they come; `complete` takes a text and returns its continuation. Both
refuse ids outside the vocabulary before the model sees them, and logits that are not numbers after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hectogpt import errors, hardware
from hectogpt.data import Tokenizer
from hectogpt.data.tokenizer import check_ids
from hectogpt.errors import UserError, set_to
from hectogpt.generation.decode import Decoder, Sampling, choose
from hectogpt.model.transformer import Transformer, evaluating

DecodeBytes = Callable[[Sequence[int]], bytes]


class Token(NamedTuple):
    """One new token: of which text, its id, and its log-probability in nats under the model's own softmax (before
    temperature and truncation)."""

    row: int
    id: int
    logprob: float


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling | None = None,
    *,
    seed: int = 0,
    decode_bytes: DecodeBytes | None = None,
    start: int | None = None,
) -> Iterator[Token]:
    """Yield the new tokens of all texts, one per text and round, in the order of the texts.

    Text r continues prompt r // num_return_sequences. Its generator is seeded with seed + r and draws one number per
    token, so a text does not depend on its neighbours. A text's last token is its stop token,
    the one completing a stop string (for which `decode_bytes` is needed), or number max_new_tokens. An empty prompt
    starts from `start`, by default the first eos_token_id, else the last id (end-of-text in GPT-2's vocabulary).
    Past the context length L each token is conditioned on the last L tokens of its text.

    Raises UserError before the first token for ids outside the vocabulary (DATA), for seeds outside [-2^63, 2^63) and
    for texts that do not fit into memory (MEMORY), and for NaN or infinite logits (DIVERGED). Weights are not changed;
    a model in training mode is switched to evaluation while tokens are computed.
    """
    sampling = sampling or Sampling()
    if start is None:
        start = (*sampling.eos_token_id, model.config.vocab_size - 1)[0]
    texts = [list(map(int, prompt)) or [start] for prompt in prompts]
    for row, text in enumerate(texts):
        check_ids(np.array(text), model.config.vocab_size, f"prompt {row}")
    if sampling.stop_strings and decode_bytes is None:
        raise UserError("stop_strings need a tokenizer", fix="pass decode_bytes=tokenizer.decode_bytes")
    rows = len(texts) * sampling.num_return_sequences
    check_memory(model, [len(text) for text in texts], sampling)
    if not -(2**63) <= seed <= seed + rows <= 2**63:
        raise UserError(
            f"seed = {seed}", why="it must lie between -2^63 and 2^63 - 1, also with the text's number added"
        )
    if rows == 0 or sampling.max_new_tokens == 0:
        return iter(())
    repeated = [text for text in texts for _ in range(sampling.num_return_sequences)]
    return _generate(model, repeated, sampling, range(seed, seed + rows), decode_bytes)


def _generate(
    model: Transformer,
    prompts: list[list[int]],
    sampling: Sampling,
    seeds: range,
    decode_bytes: DecodeBytes | None,
) -> Iterator[Token]:
    stops = [stop.encode("utf-8") for stop in sampling.stop_strings]
    written = [b"" for _ in seeds]
    open_rows = set(range(len(seeds)))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    text = Decoder(model, prompts, sampling.max_new_tokens)
    tokens: Tensor | None = None
    for _ in range(sampling.max_new_tokens):
        with evaluating(model):
            logits = text.prefill() if tokens is None else text.decode(tokens)
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        tokens = choose(logits, sampling, generators)
        computed = tokens, logits.gather(1, tokens[:, None])[:, 0], logits.logsumexp(dim=-1)
        ids, picked, totals = torch.stack([numbers.double() for numbers in computed]).tolist()  # waits once
        if bad := [row for row in sorted(open_rows) if not math.isfinite(totals[row])]:
            raise UserError(
                f"the model's logits for text {bad[0]} are not finite",
                why="its weights diverged or are damaged, or their number format overflows",
                fix="use an earlier checkpoint, or " + set_to("precision", "float32"),
                code=errors.DIVERGED,
            )
        for row in sorted(open_rows):
            token = int(ids[row])
            new = decode_bytes([token]) if stops and decode_bytes else b""
            written[row] += new
            if token in sampling.eos_token_id or completes(written[row], len(new), stops):
                open_rows.discard(row)
            yield Token(row, token, picked[row] - totals[row])
        if not open_rows:
            return


def check_memory(model: Transformer, prompts: Sequence[int], sampling: Sampling, per_token: int = 0) -> None:
    """Refuse texts whose caches and logits cannot fit into memory, before anything is allocated.

    prompts: the number of tokens of each prompt. per_token: bytes that the caller keeps of each new token.
    Raises UserError (MEMORY).
    """
    config, weight = model.config, model.embeddings.weight
    rows, new = len(prompts) * sampling.num_return_sequences, sampling.max_new_tokens
    width = min(max(prompts, default=1) + new, config.context_length)
    numbers = 2 * config.n_layers * width * config.d_model + config.vocab_size
    # Beside keys, values and logits: the softmax and its sums in float64, a generator, Python's objects.
    row = numbers * weight.element_size() + 10_000 + (0 if sampling.greedy else 3 * 8 * config.vocab_size)
    row += per_token * new
    need, have = rows * row, hardware.free_memory(str(weight.device))
    if new and need > have:
        fits = have // max(1, len(prompts) * row) // 2
        fewer, verb = fits and sampling.num_return_sequences > 1, "does" if rows == 1 else "do"
        raise UserError(
            f"{'a text' if rows == 1 else f'{rows:,} texts'} of up to {new:,} new tokens {verb} not fit",
            why=f"that takes at least {need / 2**30:,.1f} GiB, {have / 2**30:,.1f} GiB are free",
            fix=set_to("num_return_sequences", fits) if fewer else set_to("max_new_tokens", words="a smaller number"),
            code=errors.MEMORY,
        )


def complete(
    model: Transformer, tokenizer: Tokenizer, prompt: str, sampling: Sampling | None = None, *, seed: int = 0
) -> str:
    """The continuation of a text (without the text): that of its first row if there are several.

    Ends before an end-of-text token; a stop string is part of the text.
    """
    sampling = sampling or Sampling()
    tokens = generate(
        model,
        [tokenizer.encode(prompt).tolist()],
        sampling,
        seed=seed,
        decode_bytes=tokenizer.decode_bytes,
        start=tokenizer.end_of_text,
    )
    ids = [token.id for token in tokens if token.row == 0]
    if ids and ids[-1] in sampling.eos_token_id:
        ids.pop()
    return tokenizer.decode_bytes(ids).decode("utf-8", errors="replace")


def completes(text: bytes, new: int, stops: Sequence[bytes]) -> bool:
    """Whether the last `new` bytes of a text complete one of some strings."""
    return any(stop in text[-(len(stop) + new - 1) :] for stop in stops if new)
