"""Comparing what came back with what was expected: one number, and the first place where they differ."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade.settings import Setting, given


def size_of(expected: Tensor) -> float:
    """What a difference is relative to: the spread of what was expected, or the size of a single number."""
    spread = float(expected.std()) if expected.numel() > 1 else 0.0
    return max(spread if spread > 1e-12 else float(expected.abs().max()), 1e-12)


def error(yours: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the size of what was expected; infinite for another shape, another kind of
    number, or one that is not finite where it should be. NaN and infinity equal themselves."""
    if yours.shape != expected.shape or yours.is_complex() or yours.is_floating_point() != expected.is_floating_point():
        return math.inf
    a, b = yours.double(), expected.double()
    finite = b.isfinite()
    if not torch.equal(a.isfinite(), finite) or not torch.equal(a.nan_to_num()[~finite], b.nan_to_num()[~finite]):
        return math.inf
    a, b = a[finite], b[finite]
    return float((a - b).abs().max()) / size_of(b) if b.numel() else 0.0


def first_difference(setting: Setting, number: int, yours: Tensor, expected: Tensor, tolerance: float) -> str:
    """In words: which input, and the first element that differs, with both values."""
    new_tokens = f", {setting.new_tokens[number]} new tokens" if setting.new_tokens else ""
    where = f"input of shape {list(given(setting, number).shape)}{new_tokens}:"
    if yours.shape != expected.shape:
        return f"{where} the result has shape {list(yours.shape)}, expected {list(expected.shape)}"
    if yours.is_floating_point() != expected.is_floating_point():
        return f"{where} the result has dtype {yours.dtype}, expected {expected.dtype}"
    a, b = yours.double(), expected.double()
    wrong = ~((a - b).abs() <= tolerance * size_of(b))
    flat = int(wrong.flatten().int().argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(flat), b.shape)] if b.dim() else []
    place = ", ".join(f"{name} {i}" for name, i in zip(BY_NAME[setting.part].axes, index, strict=False))
    x, y = float(a.flatten()[flat]), float(b.flatten()[flat])
    if math.isnan(x):
        share = float(a.isnan().double().mean())
        return f"{where} NaN at {place or 'the result'} ({share:.0%} of the numbers), expected {y:.6g}"
    part = f"; {float(wrong.double().mean()):.0%} of the numbers differ" if b.numel() > 1 else ""
    at = f" first differs at {place}:" if place else ""
    if setting.part == "generate":
        return f"{where}{at} yours {x:.0f}, expected {y:.0f}{part}"
    return f"{where}{at} yours {x:.6g}, expected {y:.6g}, difference {x - y:.2g}{part}"


def short(text: str, width: int = 300) -> str:
    """A foreign text on one line, not longer than width."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."


def listed(names: list[str], most: int = 3, between: str = ", ") -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + more
