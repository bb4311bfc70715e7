"""Curves over steps as SVG that takes its colours from the page around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from hectogpt.display import printable

WIDTH, HEIGHT = 640.0, 400.0  # units of the drawing; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 70.0, 26.0, 14.0, 66.0
COLORS = 7  # classes c0 (the first arm's), c1 ...; later arms take c1 ... again, dashed
MOST_POINTS = 200  # of a curve; of more steps some are left out
LOG_TICKS = (0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 15.0, 20.0, 50.0)


@dataclass(frozen=True)
class Curve:
    """Finite values [steps] at steps 1, 2, ..., of the arm at a place, and its label."""

    values: np.ndarray
    place: int
    label: str = ""

    @property
    def style(self) -> str:
        """The class with its colour."""
        return style_of(self.place)

    @property
    def dashed(self) -> bool:
        """Whether its colour is an earlier arm's."""
        return self.place >= COLORS


@dataclass(frozen=True)
class Level:
    """A dotted horizontal line with a name, in the colour of an arm or, with place None, in that of all text."""

    value: float
    name: str
    place: int | None = None


def style_of(place: int) -> str:
    """The class with the colour of the arm at a place."""
    return f"c{(place - 1) % (COLORS - 1) + 1 if place else 0}"


def draw_chart(curves: Sequence[Curve], levels: Sequence[Level], log: bool = False) -> str:
    """The curves with a grid, and the levels; "" if there is nothing to draw.

    log: a logarithmic scale. Without, limits leave out the first fifth of the steps: gains go far up and down there.
    """
    curves = [curve for curve in curves if len(curve.values)]
    if not curves:
        return ""
    steps = max(len(curve.values) for curve in curves)
    shown = [np.concatenate([c.values[0 if log else len(c.values) // 5 :] for c in curves]), [x.value for x in levels]]
    values = np.maximum(np.concatenate([*shown, [] if log else [0.0]]), 1e-6 if log else -np.inf)
    scaled = np.log(values) if log else values
    room = 0.06 * float(np.ptp(scaled)) or 0.01
    low, high = float(scaled.min()) - room, float(scaled.max()) + room

    def x(step: float) -> float:
        return LEFT + (step - 1) / max(steps - 1, 1) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        at = math.log(max(value, 1e-6)) if log else value
        return min(max(TOP + (high - at) / (high - low) * (HEIGHT - TOP - BOTTOM), TOP), HEIGHT - BOTTOM)

    def line(value: float, kind: str) -> str:
        return f"<line class='{kind}' x1={LEFT:g} x2={WIDTH - RIGHT:g} y1={y(value):.1f} y2={y(value):.1f} />"

    ends = (math.exp(low), math.exp(high)) if log else (low, high)
    ticks = [tick for tick in LOG_TICKS if log and ends[0] <= tick <= ends[1]]
    parts, last = [], math.inf
    for tick in ticks if len(ticks) > 2 else round_ticks(*ends, 5):
        if abs(last - y(tick)) > 26:
            last = y(tick)
            parts.append(line(tick, "grid" if tick or log else "zero") + _text(LEFT - 8, last + 5, f"{tick:g}"))
    for step in [1.0, *(tick for tick in round_ticks(0.0, float(steps), 5) if tick >= max(2, steps / 8))]:
        parts.append(_text(x(step), HEIGHT - BOTTOM + 24, f"{step:g}", "middle"))
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 10, "step"))
    for curve in curves:
        at = np.unique(np.linspace(0, len(curve.values) - 1, min(len(curve.values), MOST_POINTS)).astype(int))
        points = " ".join(f"{x(i + 1.0):.1f},{y(float(curve.values[i])):.1f}" for i in map(int, at))
        dashes = " stroke-dasharray='7 4'" if curve.dashed else ""
        looks = f"fill=none stroke=currentColor stroke-width=2.4 stroke-linejoin=round stroke-linecap=round{dashes}"
        title = f"<title>{escape(printable(curve.label))}</title>"
        parts.append(f"<polyline class={curve.style} points='{points}' {looks}>{title}</polyline>")
    named: list[float] = []
    for level in levels:
        if ends[0] <= level.value <= ends[1]:
            color = "" if level.place is None else f" {style_of(level.place)}"
            parts.append(line(level.value, f"level{color}"))
            if all(abs(y(level.value) - other) > 30 for other in named):  # two names would overlap
                named.append(y(level.value))
                parts.append(_text(WIDTH - RIGHT - 4, named[-1] - 5, level.name, kind=f"halo{color}"))
    return f"<svg viewBox='0 0 {WIDTH:g} {HEIGHT:g}' role=img>{''.join(parts)}</svg>"


def round_ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers between low and high, about `count` of them."""
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough)
    return [round(i * step, 12) + 0.0 for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _text(x: float, y: float, text: str, anchor: str = "end", kind: str = "") -> str:
    named = f" class='{kind}'" if kind else ""
    return f"<text{named} x={x:.1f} y={y:.1f} text-anchor={anchor}>{escape(printable(text))}</text>"
