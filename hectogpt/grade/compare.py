"""Comparing what came back with what was expected: one number, and the first place where they differ."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade.answers import Answer
from hectogpt.grade.settings import Setting, given, gradient_sizes, order


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
    place = ", ".join(f"{name} {i}" for name, i in zip(BY_NAME[setting.part].axes, index, strict=False))
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


def pattern(part: str, settings: list[Setting], answers: list[list[Answer]], right: list[tuple[Tensor | str, ...]],
            tolerance: float) -> str:  # fmt: skip
    """What right and wrong numbers have in common, as a hint where to look; "" if nothing stands out. Only what the
    inputs could have shown to be otherwise: some are one row of several positions, some several rows of one."""
    wholes: list[tuple[bool, int, int]] = []  # right, rows, positions of each call
    masks = []  # where the numbers of a wrong call are right: [rows, positions]
    for setting, found, expected in zip(settings, answers, right, strict=True):
        for number, (answer, value) in enumerate(zip(found, expected, strict=False)):
            if answer.tensor is None or not isinstance(value, Tensor):
                continue
            rows, positions = given(setting, order(setting)[number]).shape[:2]
            fits = error(answer.tensor, value) <= tolerance
            wholes.append((fits, rows, positions))
            if fits:
                continue
            if answer.tensor.shape != value.shape or value.dim() < 2:
                return ""
            scale = max(float(value.double().std()), 1e-12)
            same = (answer.tensor.double() - value.double()).abs() <= tolerance * scale
            same = same.flatten(2).all(-1) if same.dim() > 2 else same
            masks.append(same[:, positions:] if part == "generate" else same)

    def always(what: Callable[[Tensor], bool], shown: Callable[[Tensor], bool]) -> bool:
        """Whether it holds in every wrong call, and at least two could have shown it to be false."""
        return all(map(what, masks)) and sum(map(shown, masks)) >= 2

    several = [mask for mask in masks if mask.shape[0] > 1]
    if always(lambda m: bool(m[0].all()), lambda m: m.shape[0] > 1) and len(several) == len(masks):
        return "the first row of the batch is right, the others are not"
    one_row = [fits for fits, rows, positions in wholes if rows == 1 and positions > 1]
    if one_row and all(one_row) and all(rows > 1 for fits, rows, _ in wholes if not fits):
        return "a batch of one row is right, larger ones are not"
    if always(lambda m: bool(m[:, 0].all()), lambda m: m.shape[1] > 1):
        what = "new token" if part == "generate" else "position"
        return f"the first {what} is right, later ones are not"
    if always(lambda m: bool(m[:, -1].all()), lambda m: m.shape[1] > 1):
        return "the last position is right, earlier ones are not" if part != "generate" else ""
    return ""


def gradient_errors(setting: Setting, call: int, answer: Answer, right: Tensor) -> dict[str, float]:
    """Name -> largest difference from the right gradient, relative to its size, or to a tenth of the largest one's: the
    gradient of W_k's bias is zero but for rounding. Weights that the module lacks are left out."""
    sizes = gradient_sizes(setting, call)
    if answer.gradient is None or answer.gradient.numel() != right.numel():
        return dict.fromkeys(sizes, math.inf)
    absent = answer.facts.get("absent", ())
    pairs = dict(
        zip(
            sizes,
            zip(answer.gradient.split([*sizes.values()]), right.split([*sizes.values()]), strict=True),
            strict=True,
        )
    )
    scales = {name: float(b.square().mean().sqrt()) for name, (_, b) in pairs.items()}
    floor = 0.1 * max(scales.values())
    found = {}
    for name, (a, b) in pairs.items():
        difference = float((a - b).abs().max())
        if name not in absent:
            found[name] = math.inf if math.isnan(difference) else difference / max(scales[name], floor, 1e-12)
    return found


def short(text: str, width: int = 300) -> str:
    """A foreign text on one line, not longer than width."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."


def listed(names: list[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
