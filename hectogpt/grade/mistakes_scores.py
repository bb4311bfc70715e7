"""Known mistakes in the scale of attention's scores and in its mask."""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hectogpt.grade.computation import Computation


def scaled(factor: Callable[[Computation, Tensor], float]) -> Callable[[Computation, Tensor], Tensor]:
    return lambda self, scores: scores * factor(self, scores)


def future(self: Computation, scores: Tensor) -> Tensor:
    return ~self.past(scores)


def filled(where: Callable[[Computation, Tensor], Tensor], value: float) -> Callable[[Computation, Tensor], Tensor]:
    return lambda self, scores: scores.masked_fill(where(self, scores), value)


def added(value: Callable[[Computation, Tensor], Tensor]) -> Callable[[Computation, Tensor], Tensor]:
    return lambda self, scores: scores + value(self, scores).to(scores.dtype)


def band(diagonal: int) -> Callable[[Computation, Tensor], Tensor]:
    """Hidden: keys later than the query by more than `diagonal`."""
    return lambda self, scores: torch.ones(scores.shape[-2:], dtype=torch.bool).triu(diagonal + 1)


def whole_mask(self: Computation) -> Tensor:
    """[context, context]: True where the key is later than the query."""
    return torch.ones(self.size.context_length, self.size.context_length, dtype=torch.bool).triu(1)


def unsliced(self: Computation, scores: Tensor) -> Tensor:
    length = self.size.context_length
    return scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -math.inf)


def past_only_first(count: str) -> Callable[[Computation, Tensor], Tensor]:
    """The mask reaches the first row of the batch, or the first head, only."""

    def hide(self: Computation, scores: Tensor) -> Tensor:
        hidden = future(self, scores).expand_as(scores).clone()
        if count == "row":
            hidden[1:] = False
        else:
            hidden[:, 1:] = False
        return scores.masked_fill(hidden, -math.inf)

    return hide


# (name, sentence, factor on the scores)
SCALES: list[tuple[str, str, Callable[[Computation, Tensor], float]]] = [
    ("no scale", "The scores are not divided by anything.", lambda s, t: 1.0),
    ("scale by d_model", "The scores are divided by the root of d_model instead of the width of one head.",
     lambda s, t: s.size.d_model**-0.5),
    ("scale by n_heads", "The scores are divided by the root of the number of heads instead of the width of one head.",
     lambda s, t: s.size.n_heads**-0.5),
    ("scale twice", "The scores are divided by the width of one head; its root is asked for (or the scale is applied twice).",
     lambda s, t: 1 / s.size.d_attention),
    ("multiplied by the scale", "The scores are multiplied by the root of the head's width instead of divided.",
     lambda s, t: s.size.d_attention**0.5),
    ("divided by d_model", "The scores are divided by d_model itself.", lambda s, t: 1 / s.size.d_model),
    ("divided by n_heads", "The scores are divided by the number of heads.", lambda s, t: 1 / s.size.n_heads),
    ("scale by the sequence length", "The scores are divided by the root of the number of positions.",
     lambda s, t: t.shape[-1] ** -0.5),
    ("scale by the context length", "The scores are divided by the root of the context length.",
     lambda s, t: s.size.context_length**-0.5),
    ("fourth root of the width", "The scores are divided by the fourth root of the head's width (only q or only k is scaled?).",
     lambda s, t: s.size.d_attention**-0.25),
    ("scale by twice the width", "The scores are divided by the root of twice the head's width.",
     lambda s, t: (2 * s.size.d_attention) ** -0.5),
    ("scores negated", "The sign of the scores is wrong.", lambda s, t: -(s.size.d_attention**-0.5)),
]  # fmt: skip

# What else the scores may be divided by: (words, value). Its powers follow.
BASES: list[tuple[str, Callable[[Computation, Tensor], float]]] = [
    ("the head's width", lambda s, t: s.size.d_attention),
    ("d_model", lambda s, t: s.size.d_model),
    ("the number of heads", lambda s, t: s.size.n_heads),
    ("the sequence length", lambda s, t: t.shape[-1]),
    ("the context length", lambda s, t: s.size.context_length),
]
POWERS = {-1.0: "multiplied by", 1.0: "divided by", 1.5: "divided by the power 1.5 of", 2.0: "divided by the square of"}
NAMED_ABOVE = {("the head's width", 1.0), ("d_model", 1.0), ("the number of heads", 1.0)}


def raised(base: Callable[[Computation, Tensor], float], power: float) -> Callable[[Computation, Tensor], float]:
    return lambda self, scores: base(self, scores) ** -power


SCALES += [
    (f"scores {word} {name}", f"The scores are {word} {name}.", raised(base, power))
    for name, base in BASES
    for power, word in POWERS.items()
    if (name, power) not in NAMED_ABOVE
]
SCALES += [
    (f"multiplied by the root of {name}", f"The scores are multiplied by the root of {name}.", raised(base, -0.5))
    for name, base in BASES[1:]
]

MASK = "the causal mask"
MASKS: list[tuple[str, str, Callable[[Computation, Tensor], Tensor]]] = [
    ("no causal mask", "There is no causal mask: every position sees the whole row.", lambda s, t: t),
    ("mask inverted", "The mask is inverted: the past is hidden and the future is seen.",
     filled(lambda s, t: s.past(t), -math.inf)),
    ("mask inverted, itself seen", "The mask is inverted: each position sees itself and the future.",
     filled(lambda s, t: torch.ones(t.shape[-2:], dtype=torch.bool).tril(-1), -math.inf)),
    ("diagonal masked", "The diagonal is hidden too: no position sees itself, and the first sees nothing.", filled(band(-1), -math.inf)),
    ("diagonal masked, finite", "The diagonal is hidden too: no position sees itself.", filled(band(-1), -1e9)),
    ("one future token seen", "The mask begins one place too late: each position sees one later token.", filled(band(1), -math.inf)),
    ("mask added as ones", "The mask of ones and zeros is added to the scores: 1 is added to the past, and the future stays visible.",
     added(lambda s, t: s.past(t))),
    ("mask of the future added as ones", "Ones are added to the scores of the future instead of minus infinity.", added(future)),
    ("mask subtracted as ones", "The mask is a mere 1 that is subtracted: the future stays visible.",
     added(lambda s, t: -future(s, t).to(t.dtype))),
    ("mask multiplied", "The scores are multiplied by the mask: a score of 0 is not a probability of 0.",
     lambda s, t: t * s.past(t)),
    ("mask filled with the smallest positive number", "The future is filled with a tiny positive number, not with minus infinity.",
     filled(future, torch.finfo(torch.float32).tiny)),
    ("mask of plus infinity", "The future is filled with plus infinity: the sign is missing.", filled(future, math.inf)),
    ("mask of 1e9", "The future is filled with a large positive number: the sign is missing.", filled(future, 1e9)),
    ("mask cut from the last rows", "The mask's last rows are taken, not its first: early positions see the future.",
     lambda s, t: t.masked_fill(whole_mask(s)[-t.shape[-1]:, :t.shape[-1]], -math.inf)),
    ("mask cut from the last columns", "The mask's last columns are taken, not its first: the past is hidden.",
     lambda s, t: t.masked_fill(whole_mask(s)[:t.shape[-1], -t.shape[-1]:], -math.inf)),
    ("mask not sliced", "The mask is not cut to the length of the input: shorter inputs raise an error.", unsliced),
    ("mask in the first row of the batch only", "The mask reaches the first row of the batch only.", past_only_first("row")),
    ("mask in the first head only", "The mask reaches the first head only.", past_only_first("head")),
    ("additive mask multiplied", "The mask of zeros and minus infinity is multiplied with the scores; it is to be added.",
     lambda s, t: t * torch.zeros(t.shape[-2:], dtype=t.dtype).masked_fill(future(s, t), -math.inf)),
    ("mask sees only itself", "Every position sees itself alone.",
     filled(lambda s, t: ~torch.eye(t.shape[-1], dtype=torch.bool), -math.inf)),
]  # fmt: skip
