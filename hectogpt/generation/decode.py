"""Continue a text with a model, token by token; several continuations are drawn at once.

`generate` takes ids and yields tokens as they are chosen; `complete` takes a text and returns its
continuation. Before running the model, both refuse ids outside the vocabulary; after it, logits
that are not finite.

One pass reads the prompt (prefill); then each pass computes one token per row (decode). A cache
holds the keys and values of earlier tokens, and the rows that other parts of the model store.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from hectogpt import errors, hardware
from hectogpt.data import Tokenizer
from hectogpt.data.tokenizer import check_ids
from hectogpt.errors import Setting, SetTo, UserError
from hectogpt.model.inputs import Cache
from hectogpt.model.transformer import DecoderBlock, Transformer, evaluating

DecodeBytes = Callable[[Sequence[int]], bytes]


# --- choosing the next token: options as in transformers' `generate`


@dataclass(frozen=True)
class Sampling:
    """Options that decide how each token is chosen and where a text ends."""

    max_new_tokens: int = 20
    """Maximum number of tokens to add; 0 adds none."""
    do_sample: bool = False
    """Draw from the softmax; otherwise take the most likely token (greedy)."""
    temperature: float = 1.0
    """Divides the logits before the draw; 0 is greedy."""
    top_k: int = 50
    """Keep the k most likely tokens, and ties with the last of them; 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest most likely tokens whose sum is at least p, and ties with the last."""
    min_p: float = 0.0
    """Drop tokens less likely than min_p times the most likely one."""
    num_return_sequences: int = 1
    """Number of continuations of each prompt."""
    stop_strings: tuple[str, ...] = ()
    """End a text with the token that completes one of these strings."""
    eos_token_id: tuple[int, ...] = ()
    """End a text after any of these tokens."""

    @classmethod
    def of(cls, end_of_text: int, **options: Any) -> Sampling:
        """Make a Sampling from options as users write them.

        `stop_strings` may be a single string; `eos_token_id` may be a single id, None for
        end-of-text, or -1 for no such token.
        """
        eos = options.pop("eos_token_id", None)
        stops = options.pop("stop_strings", ())
        eos = end_of_text if eos is None else eos
        ends = tuple(eos) if isinstance(eos, (tuple, list)) else (eos,) if eos >= 0 else ()
        return cls(
            **options,
            eos_token_id=ends,
            stop_strings=(stops,) if isinstance(stops, str) else tuple(stops),
        )

    def __post_init__(self) -> None:
        for name, fits, expected in (
            ("max_new_tokens", self.max_new_tokens >= 0, "at least 0"),
            (
                "temperature",
                0 <= self.temperature < math.inf,
                "0 (greedy) or a positive number",
            ),
            ("top_k", self.top_k >= 0, "0 (off) or a positive number"),
            ("top_p", 0 <= self.top_p <= 1, "between 0 and 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("num_return_sequences", self.num_return_sequences >= 1, "at least 1"),
            (
                "stop_strings",
                all(map(_is_text, self.stop_strings)),
                "non-empty Unicode strings",
            ),
        ):
            if not fits:  # NaN never fits, because all its comparisons are false
                raise UserError(
                    Setting(name, repr(getattr(self, name))), why=f"it must be {expected}"
                )
        if self.num_return_sequences > 1 and self.greedy:
            raise UserError(
                (Setting("num_return_sequences", self.num_return_sequences), " without sampling"),
                why="greedy continuations of a prompt are all equal",
                fix="sample with a temperature above 0",
            )

    @property
    def greedy(self) -> bool:
        """True if the most likely token is taken."""
        return not self.do_sample or self.temperature == 0


def _is_text(string: str) -> bool:
    """True if a string is not empty and can be encoded in UTF-8 (a lone surrogate cannot)."""
    return bool(string) and not any("\ud800" <= character <= "\udfff" for character in string)


def choose(
    logits: Float[Tensor, "rows vocab"], sampling: Sampling, generators: Sequence[torch.Generator]
) -> Int[Tensor, " rows"]:
    """Choose one id per row.

    A greedy choice is the most likely token. Otherwise, the choice is the token at which the
    cumulative probability passes a uniform number drawn from the row's generator.
    """
    if sampling.greedy:
        return logits.argmax(dim=-1)
    total = probabilities(logits, sampling).cumsum(dim=-1)
    draw = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators]).to(
        logits.device
    )
    # The draw is scaled by the computed sum, so that the last token can be reached. `right`
    # skips tokens of probability 0.
    return torch.searchsorted(total, draw[:, None] * total[:, -1:], right=True)[:, 0].clamp(
        max=logits.shape[1] - 1
    )


def probabilities(
    logits: Float[Tensor, "rows vocab"], sampling: Sampling
) -> Float64[Tensor, "rows vocab"]:
    """The distribution to draw from: temperature, then top_k, top_p and min_p.

    As in transformers, each of these acts on the tokens that the previous one kept.
    """
    # Without subtracting the maximum, a tiny temperature would overflow.
    logits = (logits.double() - logits.amax(dim=-1, keepdim=True)) / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        last = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < last, -math.inf)
    p = logits.softmax(dim=-1)
    if sampling.top_p < 1:
        ordered = p.sort(dim=-1, descending=True).values
        # The set ends with the token that brings the sum to top_p, so a token belongs to it if the
        # sum before it is below top_p.
        kept = (
            ((ordered.cumsum(dim=-1) - ordered) < sampling.top_p)
            .sum(dim=-1, keepdim=True)
            .clamp(min=1)
        )
        p = p.masked_fill(p < ordered.gather(1, kept - 1), 0)
        p = p / p.sum(dim=-1, keepdim=True)
    if sampling.min_p > 0:
        p = p.masked_fill(p < sampling.min_p * p.amax(dim=-1, keepdim=True), 0)
        p = p / p.sum(dim=-1, keepdim=True)
    return p


# --- logits, with a cache


class Decoder:
    """The continuation of several texts of equal length, one per row.

    Past the context length L, each new token is conditioned on exactly the last L tokens of its
    row. Positions then move with every token, so each row is processed again from scratch.
    """

    def __init__(
        self, model: Transformer, texts: Int[Tensor, "rows time"], new_tokens: int
    ) -> None:
        self.model = model
        self.limit = model.config.context_length
        like = model.embeddings.weight
        # The last tokens of each row, up to L of them.
        self.newest = texts[:, -self.limit :].to(like.device)
        rows, width = self.newest.shape
        heads = [
            (block.attention.kv_heads, block.attention.d_key)
            for block in cast(Iterable[DecoderBlock], model.backbone)
        ]
        self.cache = Cache(
            rows, min(width + new_tokens, self.limit), heads, model.config.d_attention, like
        )

    @torch.no_grad()
    def prefill(self) -> Float[Tensor, "rows vocab"]:
        """Logits after the texts, from one pass over all of them."""
        return self.model.next_logits(
            self.newest, self.cache.advance(self.newest.shape[1]), self.cache
        )

    @torch.no_grad()
    def decode(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocab"]:
        """Append one token to each row and return the logits after them.

        This does not wait until the device has computed the ids.
        """
        tokens = tokens.to(self.newest.device)[:, None]
        self.newest = torch.cat((self.newest, tokens), dim=1)[:, -self.limit :]
        if self.cache.length == self.limit:
            return self.model.next_logits(self.newest)
        return self.model.next_logits(tokens, self.cache.advance(1), self.cache)


# --- texts


class Token(NamedTuple):
    """One new token.

    Attributes:
        row: the text that it belongs to.
        id: its id.
        logprob: its log-probability in nats under the model's own softmax, before temperature and
            truncation.
    """

    row: int
    id: int
    logprob: float


def generate(
    model: Transformer,
    prompt: Sequence[int],
    sampling: Sampling | None = None,
    *,
    seed: int = 0,
    decode_bytes: DecodeBytes | None = None,
) -> Iterator[Token]:
    """Yield the new tokens of all continuations of a prompt, round by round.

    Args:
        model: the model. Its weights are not changed. A model in training mode is switched to
            evaluation mode while tokens are computed.
        prompt: token ids. An empty prompt starts from the last id, end-of-text.
        sampling: how tokens are chosen; None uses the defaults.
        seed: the generator of continuation r is seeded with seed + r and draws one number per
            token, so a text does not depend on the others.
        decode_bytes: needed for stop strings.

    A text's last token is a stop token, the one that completes a stop string, or token number
    max_new_tokens. Past the context length L, each token is conditioned on the last L tokens of
    its text.

    Raises UserError before the first token: DATA for ids outside the vocabulary, MEMORY for texts
    that do not fit into memory, USAGE for seeds outside [-2^63, 2^63). Raises UserError (DIVERGED)
    for NaN or infinite logits.
    """
    sampling = sampling or Sampling()
    text = np.array(prompt if len(prompt) else [model.config.vocab_size - 1], dtype=np.int64)
    check_ids(text, model.config.vocab_size, "the prompt")
    if sampling.stop_strings and decode_bytes is None:
        raise UserError(
            "stop_strings need a tokenizer", fix="pass decode_bytes=tokenizer.decode_bytes"
        )
    rows = sampling.num_return_sequences
    check_memory(model, len(text), sampling)
    if not -(2**63) <= seed <= seed + rows <= 2**63:
        raise UserError(
            Setting("seed", seed),
            why="it must lie between -2^63 and 2^63 - 1, even after adding the text's number",
        )
    return _generate(
        model,
        torch.from_numpy(text).expand(rows, -1),
        sampling,
        range(seed, seed + rows),
        decode_bytes,
    )


def _generate(
    model: Transformer,
    texts: Int[Tensor, "rows time"],
    sampling: Sampling,
    seeds: range,
    decode_bytes: DecodeBytes | None,
) -> Iterator[Token]:
    stops = [stop.encode("utf-8") for stop in sampling.stop_strings]
    written = [b"" for _ in seeds]
    open_rows = set(range(len(seeds)))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    decoder = Decoder(model, texts, sampling.max_new_tokens)
    tokens: Tensor | None = None
    for _ in range(sampling.max_new_tokens):
        with evaluating(model):
            logits = decoder.prefill() if tokens is None else decoder.decode(tokens)
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        tokens = choose(logits, sampling, generators)
        computed = tokens, logits.gather(1, tokens[:, None])[:, 0], logits.logsumexp(dim=-1)
        ids, picked, totals = torch.stack(
            [numbers.double() for numbers in computed]
        ).tolist()  # the only wait for the device
        if bad := [row for row in sorted(open_rows) if not math.isfinite(totals[row])]:
            raise UserError(
                f"the model's logits for text {bad[0]} are not finite",
                why="its weights diverged or are damaged, or its values overflow",
                fix=("use an earlier checkpoint, or ", SetTo("precision", "float32")),
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


def check_memory(
    model: Transformer, prompt_tokens: int, sampling: Sampling, per_token: int = 0
) -> None:
    """Refuse texts whose caches and logits cannot fit into memory, before allocating anything.

    Args:
        model: the model.
        prompt_tokens: the length of the prompt.
        sampling: number and length of the texts.
        per_token: bytes that the caller stores for each new token.

    Raises UserError (MEMORY).
    """
    config = model.config
    weight = model.embeddings.weight
    rows = sampling.num_return_sequences
    new = sampling.max_new_tokens
    width = min(prompt_tokens + new, config.context_length)
    numbers = 2 * config.n_layers * width * config.d_model + config.vocab_size
    # Keys, values and logits; then the softmax and its sums in float64, a generator, and Python's
    # objects.
    row = (
        numbers * weight.element_size()
        + 10_000
        + (0 if sampling.greedy else 3 * 8 * config.vocab_size)
        + per_token * new
    )
    need = rows * row
    have = hardware.free_memory(str(weight.device))
    if new and need > have:
        texts = "a text" if rows == 1 else f"{rows:,} texts"
        fewer = rows > 1 and have // row // 2
        raise UserError(
            f"{texts} of up to {new:,} new tokens {'does' if rows == 1 else 'do'} not fit in "
            "memory",
            why=f"that takes at least {need / 2**30:,.1f} GiB; {have / 2**30:,.1f} GiB are free",
            fix=SetTo("num_return_sequences", fewer)
            if fewer
            else SetTo("max_new_tokens", "a smaller number"),
            code=errors.MEMORY,
        )


def complete(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    sampling: Sampling | None = None,
    *,
    seed: int = 0,
) -> str:
    """Return the continuation of a text, without the text itself.

    If `sampling` asks for several continuations, return the first. It ends before an end-of-text
    token, but includes a stop string.
    """
    sampling = sampling or Sampling()
    ids = tokenizer.encode(prompt).tolist()
    tokens = generate(model, ids, sampling, seed=seed, decode_bytes=tokenizer.decode_bytes)
    new = [token.id for token in tokens if token.row == 0]
    if new and new[-1] in sampling.eos_token_id:
        new.pop()
    return tokenizer.decode(new)


def completes(text: bytes, new: int, stops: Sequence[bytes]) -> bool:
    """True if the last `new` bytes of a text complete one of these strings."""
    return any(stop in text[-(len(stop) + new - 1) :] for stop in stops if new)
