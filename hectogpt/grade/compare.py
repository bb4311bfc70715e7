"""Comparing what came back with what was expected: one number, and the first place where they differ."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hectogpt.grade.answers import Answer
from hectogpt.grade.settings import Setting, given, order

AXES = {
    "gelu": ("row", "position", "channel"),
    "mlp": ("row", "position", "channel"),
    "attention": ("row", "position", "channel"),
    "block": ("row", "position", "channel"),
    "forward": ("row", "position", "token"),
    "generate": ("row", "position"),
    "loss": (),
}


def error(yours: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the spread of what was expected (its size, for a single number); infinite
    for another shape or a number that is not finite where it should be. NaN and infinity equal themselves."""
    if yours.shape != expected.shape or yours.is_complex():
        return math.inf
    if not expected.numel():
        return 0.0
    a, b = yours.double(), expected.double()
    finite = b.isfinite()
    if not torch.equal(a.isfinite(), finite) or not torch.equal(a.nan_to_num()[~finite], b.nan_to_num()[~finite]):
        return math.inf
    if not finite.any():
        return 0.0
    a, b = a[finite], b[finite]
    spread = float(b.std()) if b.numel() > 1 else 0.0
    scale = spread if spread > 1e-12 else float(b.abs().max())
    return float((a - b).abs().max()) / max(scale, 1e-12)


def first_difference(setting: Setting, number: int, yours: Tensor, expected: Tensor, tolerance: float) -> str:
    """In words: which call, and the first element that differs, with both values."""
    call = order(setting)[number] if number < len(order(setting)) else 0
    shape = list(given(setting, call).shape)
    new_tokens = f", {setting.new_tokens[call]} new tokens" if setting.new_tokens else ""
    where = f"input of shape {shape}{new_tokens}"
    if yours.shape != expected.shape:
        return f"{where}: the result has shape {list(yours.shape)}, expected {list(expected.shape)}"
    if not expected.numel():
        return where
    a, b = yours.double(), expected.double()
    scale = max(float(b.std()) if b.numel() > 1 else 0.0, 1e-12)
    scale = scale if scale > 1e-12 else max(float(b.abs().max()), 1e-12)
    wrong = ~((a - b).abs() <= tolerance * scale)
    flat = int(wrong.flatten().int().argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(flat), b.shape)] if b.dim() else []
    names = AXES.get(setting.part, ())
    place = ", ".join(f"{name} {i}" for name, i in zip(names, index, strict=False))
    if a.flatten()[flat].isnan():
        share = float(a.isnan().double().mean())
        return f"{where}: NaN at {place or 'the result'} ({share:.0%} of the numbers), expected {b.flatten()[flat]:.6g}"
    x, y = float(a.flatten()[flat]), float(b.flatten()[flat])
    share = float(wrong.double().mean())
    part = f"; {share:.0%} of the numbers differ" if b.numel() > 1 else ""
    at = f" first differs at {place}" if place else ""
    if setting.part == "generate":
        return f"{where}:{at}: yours {x:.0f}, expected {y:.0f}{part}"
    return f"{where}{at and ':'}{at}: yours {x:.6g}, expected {y:.6g}, difference {x - y:.2g}{part}"


def pattern(answers: list[Answer], expected: list[Tensor | str], tolerance: float) -> str:
    """What right and wrong numbers have in common, as a hint where to look; "" if nothing stands out."""
    rows, first_row, first_position, shapes_right, shapes_wrong = [], True, True, [], []
    for answer, right in zip(answers, expected, strict=False):
        if answer.tensor is None or not isinstance(right, Tensor):
            continue
        if error(answer.tensor, right) <= tolerance:
            shapes_right.append(tuple(right.shape[:2]))
            continue
        shapes_wrong.append(tuple(right.shape[:2]))
        if answer.tensor.shape != right.shape or right.dim() < 2:
            first_row = first_position = False
            continue
        rows.append(right.shape[0])
        a, b = answer.tensor.double(), right.double()
        scale = max(float(b.std()), 1e-12)
        first_row &= bool(((a - b).abs()[0] <= tolerance * scale).all())
        first_position &= bool(((a - b).abs()[:, 0] <= tolerance * scale).all())
    if not shapes_wrong:
        return ""
    if rows and first_row and max(rows) > 1:
        return "the first row of the batch is right, the others are not"
    if (
        shapes_right
        and all(shape[:1] == (1,) for shape in shapes_right)
        and all(shape[:1] > (1,) for shape in shapes_wrong)
    ):
        return "a batch of one row is right, larger ones are not"
    if rows and first_position:
        return "the first position is right, later ones are not"
    return ""


def short(text: str, width: int = 300) -> str:
    """A foreign text on one line, not longer than width."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."
