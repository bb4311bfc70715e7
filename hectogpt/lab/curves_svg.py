"""Curves over steps as SVG that takes its colours from the page around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

import numpy as np

from hectogpt.display import printable

WIDTH, HEIGHT = 640.0, 400.0  # units of the drawing; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 70.0, 26.0, 14.0, 66.0
MOST_POINTS = 200  # of a curve; more steps are averaged in blocks
LOG_TICKS = (0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 15.0, 20.0, 50.0)


@dataclass(frozen=True)
class Curve:
    """A curve: values [steps] at steps 1, 2, ..., the number of its colour class, whether it is thin and dashed, and
    what hovering over it tells."""

    values: np.ndarray
    color: int
    thin: bool
    dashed: bool = False
    label: str = ""


@dataclass(frozen=True)
class _Scale:
    """Where values lie in the drawing."""

    steps: int
    low: float
    high: float
    log: bool

    def x(self, step: float) -> float:
        return LEFT + (step - 1) / max(self.steps - 1, 1) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, 1e-9))
        return TOP + (high - at) / (high - low) * (HEIGHT - TOP - BOTTOM)


@dataclass(frozen=True)
class Level:
    """A dotted horizontal line with a name, in the colour of a curve or, with color None, in that of all text."""

    value: float
    name: str
    color: int | None = None


def draw_chart(curves: Sequence[Curve], levels: Sequence[Level], log: bool = False, zero: bool = False) -> str:
    """The curves with a grid, and the levels.

    log: a logarithmic scale. zero: a line at 0, and limits that leave out what the first half of the steps does:
    differences go far up and down there. "" if there is nothing to draw.
    """
    curves = [curve for curve in curves if np.isfinite(curve.values).any()]
    if not curves:
        return ""
    steps = max(len(curve.values) for curve in curves)
    scale = _Scale(steps, *_limits(curves, [level.value for level in levels], steps, log, zero), log)
    ticks = _log_ticks(scale) if log else _ticks(scale.low, scale.high, 6)
    parts = [_horizontal(scale, tick, "grid") + _text(LEFT - 8, scale.y(tick), f"{tick:g}", "end") for tick in ticks]
    for step in _step_ticks(steps):
        parts.append(_text(scale.x(step), HEIGHT - BOTTOM + 24, f"{step:g}", "middle"))
    if zero:
        parts.append(_horizontal(scale, 0.0, "zero"))
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 10, "step", "end", middle=False))
    parts += [_draw_curve(curve, scale) for curve in sorted(curves, key=lambda curve: not curve.thin)]
    for level in _apart(levels, scale):
        color = "" if level.color is None else f" c{level.color}"
        parts.append(_horizontal(scale, level.value, f"level{color}"))
        y = scale.y(level.value) - 5
        parts.append(_text(WIDTH - RIGHT - 4, y, level.name, "end", f"halo{color}", middle=False))
    return f"<svg viewBox='0 0 {WIDTH:g} {HEIGHT:g}' role=img>{''.join(parts)}</svg>"


def _limits(curves: Sequence[Curve], levels: Sequence[float], steps: int, log: bool, zero: bool) -> tuple[float, float]:
    """The lowest and the highest value shown."""
    shown = [np.asarray(levels, dtype=float)]
    for curve in curves:
        early = (steps // 2 if curve.thin else steps // 5) if zero else 0
        late = curve.values[early:]
        shown.append(late if np.isfinite(late).any() else curve.values)
    values = np.concatenate([*shown, [0.0] if zero else []])
    values = values[np.isfinite(values)]
    low, high = float(values.min()), float(values.max())
    if log:
        low, high = max(low, 1e-6), max(high, 1e-6)
        room = max((high / low) ** 0.04, 1.005)
        return low / room, high * room
    room = 0.08 * (high - low) or 0.01
    return low - room, high + room


def _apart(levels: Sequence[Level], scale: _Scale) -> list[Level]:
    """The levels inside the drawing; of two whose names would overlap only the first keeps its name."""
    kept: list[Level] = []
    for level in levels:
        if scale.low <= level.value <= scale.high:
            y = scale.y(level.value)
            free = all(abs(scale.y(other.value) - y) > 30 for other in kept if other.name)
            kept.append(level if free else replace(level, name=""))
    return kept


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers between low and high, about `count` of them."""
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough)
    return [round(i * step, 12) + 0.0 for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(scale: _Scale) -> list[float]:
    """Ticks of a logarithmic scale, none closer to the last than a line of text."""
    candidates = [tick for tick in LOG_TICKS if scale.low <= tick <= scale.high]
    if len(candidates) < 3:
        candidates = _ticks(scale.low, scale.high, 5)
    kept: list[float] = []
    for tick in candidates:
        if not kept or scale.y(kept[-1]) - scale.y(tick) > 26:
            kept.append(tick)
    return kept


def _step_ticks(steps: int) -> list[float]:
    return [1.0, *(tick for tick in _ticks(0.0, float(steps), 5) if tick >= max(2, steps / 8) and tick == int(tick))]


def _draw_curve(curve: Curve, scale: _Scale) -> str:
    x, y = _averaged(curve.values)
    points = [(scale.x(a), min(max(scale.y(b), TOP), HEIGHT - BOTTOM)) for a, b in zip(x, y, strict=True)]
    title = f"<title>{escape(printable(curve.label))}</title>" if curve.label else ""
    if len(points) == 1:
        return f"<circle class=c{curve.color} cx={points[0][0]:.1f} cy={points[0][1]:.1f} r=4 fill=currentColor />"
    looks = "stroke-width=1 opacity=.3" if curve.thin else "stroke-width=2.4"
    dashes = " stroke-dasharray='7 4'" if curve.dashed else ""
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    looks += f" fill=none stroke=currentColor stroke-linejoin=round{dashes}"
    return f"<polyline class=c{curve.color} points='{line}' {looks}>{title}</polyline>"


def _averaged(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of at most MOST_POINTS points: means over blocks of equal length."""
    steps = np.arange(1, len(values) + 1)[np.isfinite(values)]
    finite = values[np.isfinite(values)]
    blocks = min(len(finite), MOST_POINTS)
    edges = np.linspace(0, len(finite), blocks + 1).astype(int)
    counts = np.diff(edges)
    return np.add.reduceat(steps, edges[:-1]) / counts, np.add.reduceat(finite, edges[:-1]) / counts


def _horizontal(scale: _Scale, value: float, kind: str) -> str:
    y = scale.y(value)
    return f"<line class='{kind}' x1={LEFT:g} x2={WIDTH - RIGHT:g} y1={y:.1f} y2={y:.1f} />"


def _text(x: float, y: float, text: str, anchor: str, kind: str = "", middle: bool = True) -> str:
    if not text:
        return ""
    place = " dominant-baseline=middle" if middle else ""
    named = f" class='{kind}'" if kind else ""
    return f"<text{named} x={x:.1f} y={y:.1f} text-anchor={anchor}{place}>{escape(printable(text))}</text>"
