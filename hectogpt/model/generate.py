"""Texts continued by a model: greedy or sampled, several at once, token by token.

Arguments carry the names and defaults of transformers' `generate`. Ids only: whoever wants text gives `decode_bytes`.
Refuses ids outside the vocabulary before the model sees them, and logits that are not numbers after it.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.model.cache import Continuation
from hectogpt.model.transformer import Transformer

DecodeBytes = Callable[[Sequence[int]], bytes]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when a text ends."""

    max_new_tokens: int = 20
    """Tokens to add at most; 0 adds none."""
    do_sample: bool = False
    """Draw from the softmax; otherwise take the likeliest token (greedy)."""
    temperature: float = 1.0
    """Divides the logits before the draw; 0 is greedy."""
    top_k: int = 50
    """Keep the k likeliest tokens, and those tied with the last of them; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of likeliest tokens whose probabilities reach p, and ties with the last."""
    min_p: float = 0.0
    """Drop tokens less likely than min_p times the likeliest."""
    repetition_penalty: float = 1.0
    """Logits of tokens already in the text are divided by it where positive, multiplied where negative (1909.05858)."""
    num_return_sequences: int = 1
    """Continuations of each prompt."""
    stop_strings: tuple[str, ...] = ()
    """A text ends with the token that completes one of these."""
    eos_token_id: tuple[int, ...] = ()
    """A text ends with one of these tokens."""

    def __post_init__(self) -> None:
        self._check("max_new_tokens", self.max_new_tokens >= 0, "at least 0")
        self._check("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or a positive number")
        self._check("top_k", self.top_k >= 0, "0 (off) or a positive number")
        self._check("top_p", 0 <= self.top_p <= 1, "between 0 and 1")
        self._check("min_p", 0 <= self.min_p <= 1, "between 0 and 1")
        self._check("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a positive number")
        self._check("num_return_sequences", self.num_return_sequences >= 1, "at least 1")
        self._check("stop_strings", all(self.stop_strings), "strings that are not empty")
        if self.num_return_sequences > 1 and self.greedy:
            raise UserError(
                f"num_return_sequences = {self.num_return_sequences} without sampling",
                why="greedy continuations of one prompt are all the same",
                fix="set do_sample and a temperature above 0",
            )

    def _check(self, name: str, fits: bool, expected: str) -> None:
        if not fits:  # NaN fits nowhere, since it compares false with everything
            raise UserError(f"{name} = {getattr(self, name)}", why=f"it must be {expected}")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return not self.do_sample or self.temperature == 0


class Token(NamedTuple):
    """One new token: of which text, its id, and its log-probability in nats under the model's own softmax (before
    temperature, penalty and truncation)."""

    row: int
    id: int
    logprob: float


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling | None = None,
    *,
    seed: int | Sequence[int] = 0,
    decode_bytes: DecodeBytes | None = None,
    start: int | None = None,
) -> Iterator[Token]:
    """Yield the new tokens of all texts, one per text and round, in the order of the texts.

    Text r continues prompt r // num_return_sequences. Its generator is seeded with seed + r, or seed[r] for a sequence,
    and draws one number per token, so a text does not depend on its neighbours. A text's last token is its stop token,
    the one completing a stop string (for which `decode_bytes` is needed), or number max_new_tokens. An empty prompt
    starts from `start`, by default the first eos_token_id, else the last id (end-of-text in GPT-2's vocabulary).
    Past the context length L each token is conditioned on the last L tokens of its text.

    Raises UserError before the first token for ids outside the vocabulary (DATA), and for NaN or infinite logits
    (DIVERGED). Weights are not changed; a model in training mode is switched to evaluation while tokens are computed.
    """
    sampling = sampling or Sampling()
    if start is None:
        start = (*sampling.eos_token_id, model.config.vocab_size - 1)[0]
    texts = [list(map(int, prompt)) or [start] for prompt in prompts]
    check_ids(texts, model.config.vocab_size)
    if sampling.stop_strings and decode_bytes is None:
        raise UserError("stop_strings need a tokenizer", fix="pass decode_bytes=tokenizer.decode_bytes")
    rows = len(texts) * sampling.num_return_sequences
    seeds = [seed + row for row in range(rows)] if isinstance(seed, int) else list(seed)
    if len(seeds) != rows:
        raise UserError(f"{len(seeds)} seeds for {rows} texts", why="each text has its own generator")
    if rows == 0 or sampling.max_new_tokens == 0:
        return iter(())
    return _generate(model, texts, sampling, seeds, decode_bytes)


def _generate(
    model: Transformer,
    prompts: list[list[int]],
    sampling: Sampling,
    seeds: list[int],
    decode_bytes: DecodeBytes | None,
) -> Iterator[Token]:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    copies = sampling.num_return_sequences
    text = Continuation(model, prompts, sampling.max_new_tokens, copies)
    seen = [set(prompt) for prompt in prompts for _ in range(copies)]
    stops = [StopStrings(sampling.stop_strings) for _ in seeds]
    open_rows = set(range(len(seeds)))
    tokens: list[int] = []
    for step in range(sampling.max_new_tokens):
        training = model.training
        model.eval()
        try:
            logits = text.next(tokens) if step else text.first()
        finally:
            model.train(training)
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        total = logits.logsumexp(dim=-1)
        totals = total.tolist()  # waits for the device, once per step
        _check_numbers(totals, open_rows)
        tokens = choose(logits, sampling, generators, seen).tolist()
        picked = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
        for row in sorted(open_rows):
            token = tokens[row]
            seen[row].add(token)
            if token in sampling.eos_token_id or (decode_bytes and stops[row].found(decode_bytes([token]))):
                open_rows.discard(row)
            yield Token(row, token, picked[row] - totals[row])
        if not open_rows:
            return


def check_ids(texts: Sequence[Sequence[int]], vocab_size: int) -> None:
    """Raise UserError (DATA) naming the first id outside [0, vocab_size)."""
    for row, text in enumerate(texts):
        for position, token in enumerate(text):
            if not 0 <= token < vocab_size:
                raise UserError(
                    f"prompt {row}: id {token} at position {position} is out of range",
                    why=f"the model's vocabulary has {vocab_size:,} ids, 0 to {vocab_size - 1:,}",
                    fix="use the tokenizer that belongs to the model",
                    code=errors.DATA,
                )


def _check_numbers(totals: list[float], rows: set[int]) -> None:
    bad = [row for row in sorted(rows) if not math.isfinite(totals[row])]
    if bad:
        raise UserError(
            f"the model's logits for text {bad[0]} are not finite",
            why="its weights diverged or are damaged, or their number format overflows",
            fix="use an earlier checkpoint, or --precision float32",
            code=errors.DIVERGED,
        )


# --- the choice of a token --------------------------------------------------------------------------------------------


def choose(
    logits: Float[Tensor, "rows vocab"],
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    seen: Sequence[set[int]],
) -> Tensor:
    """One id per row, int64 [rows]: the likeliest token, or the one at which the cumulative probability passes a
    uniform number drawn from the row's generator."""
    if sampling.repetition_penalty != 1.0:
        logits = penalise(logits, sampling.repetition_penalty, seen)
    if sampling.greedy:
        return logits.argmax(dim=-1)
    total = probabilities(logits, sampling).cumsum(dim=-1)
    draw = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators]).to(logits.device)
    # Scaled by the sum as added up, so that the last token with mass is reached; `right` skips tokens without mass.
    return torch.searchsorted(total, (draw[:, None] * total[:, -1:]), right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def penalise(
    logits: Float[Tensor, "rows vocab"], penalty: float, seen: Sequence[set[int]]
) -> Float[Tensor, "rows vocab"]:
    """Make the tokens of each row's set less likely (more, if penalty < 1)."""
    logits = logits.clone()
    for row, ids in zip(logits, seen, strict=True):
        index = torch.tensor(sorted(ids), device=logits.device)
        old = row[index]
        row[index] = torch.where(old < 0, old * penalty, old / penalty)
    return logits


def probabilities(logits: Float[Tensor, "rows vocab"], sampling: Sampling) -> Float64[Tensor, "rows vocab"]:
    """What the draw is made from: temperature, then top_k, top_p, min_p on what is left, in transformers' order."""
    # Subtracting the maximum first keeps a tiny temperature from overflowing.
    logits = (logits.double() - logits.amax(dim=-1, keepdim=True)) / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        last = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < last, -math.inf)
    p = logits.softmax(dim=-1)
    if sampling.top_p < 1:
        ordered = p.sort(dim=-1, descending=True).values
        # The set ends with the first token that brings the sum to top_p; a token is in it if the sum before is below.
        kept = ((ordered.cumsum(dim=-1) - ordered) < sampling.top_p).sum(dim=-1, keepdim=True).clamp(min=1)
        p = p.masked_fill(p < ordered.gather(1, kept - 1), 0)
        p = p / p.sum(dim=-1, keepdim=True)
    if sampling.min_p > 0:
        p = p.masked_fill(p < sampling.min_p * p.amax(dim=-1, keepdim=True), 0)
        p = p / p.sum(dim=-1, keepdim=True)
    return p


# --- text -------------------------------------------------------------------------------------------------------------


class StopStrings:
    """Whether the bytes of a growing text have just completed one of some strings."""

    def __init__(self, strings: Sequence[str]) -> None:
        self.wanted = [string.encode("utf-8") for string in strings]
        self.tail = b""

    def found(self, new: bytes) -> bool:
        """Append a token's bytes."""
        text = self.tail + new
        longest = max(map(len, self.wanted), default=0)
        self.tail = text[-(longest - 1) :] if longest > 1 else b""
        return any(wanted in text for wanted in self.wanted)


class TextStream:
    """Bytes in, text out: a character leaves when its last byte has come; what never becomes one is U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, new: bytes) -> str:
        """The characters that `new` completes."""
        return self._decoder.decode(new)

    def end(self) -> str:
        """What is left of an unfinished character."""
        return self._decoder.decode(b"", final=True)


@runtime_checkable
class TextTokenizer(Protocol):
    """What is asked of a tokenizer."""

    end_of_text: int

    def encode(self, text: str) -> Any:
        """Ids."""
        ...

    def decode_bytes(self, ids: Any) -> bytes:
        """The bytes the ids stand for."""
        ...


def complete(
    model: Transformer, tokenizer: TextTokenizer, prompt: str, sampling: Sampling | None = None, *, seed: int = 0
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
