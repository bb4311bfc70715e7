"""Axes on a drawing: a frame, ticks, labels, and points of a plot turned into points of the sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from hectogpt.explore.pages.drawing import Dots, Drawing, Image, Line, Point, Real, Role, Text

SIZE = 380.0  # the usual panel's width in pixels: readable on a telephone, two fit side by side on a desk


def ticks(low: Real, high: Real, about: int = 5) -> list[Real]:
    """Round numbers within [low, high], in steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: Real) -> str:
    """A tick's or a label's number, short."""
    return f"{value + 0.0:.4g}"


class Panel:
    """A drawing with one pair of axes. Points outside the limits are left out; lines are cut there."""

    def __init__(
        self,
        title: str,
        alt: str,
        xlim: tuple[Real, Real],
        ylim: tuple[Real, Real],
        *,
        x: str,
        y: str = "",
        width: Real = SIZE,
        height: Real = 300.0,
        left: Real = 46.0,
        bottom: Real = 42.0,
        xticks: Sequence[tuple[Real, str]] | None = None,
        yticks: Sequence[tuple[Real, str]] | None = None,
        legend: Sequence[tuple[Role, str]] = (),
    ) -> None:
        self.drawing = Drawing(width, height, alt)
        self.xlim, self.ylim = xlim, ylim
        top = 34.0 + (18.0 if legend else 0.0) + (14.0 if y else 0.0)
        self.left, self.right, self.top, self.bottom = left, width - 12.0, top, height - bottom
        add = self.drawing.add
        add(Text(4, 18, title, bold=True, size=14))
        place = 4.0
        for role, words in legend:
            add(Dots([(place + 5, 33)], role, 4.5), Text(place + 14, 37, words, "muted", 12))
            place += 28 + 6.7 * len(words)
        for value, words in self._named(xticks, xlim):
            at = self.at(value, ylim[0])[0]
            add(Line([(at, self.top), (at, self.bottom)], "grid", 1))
            add(Text(at, self.bottom + 16, words, "muted", 12, "middle"))
        for value, words in self._named(yticks, ylim):
            at = self.at(xlim[0], value)[1]
            add(Line([(self.left, at), (self.right, at)], "grid", 1))
            add(Text(self.left - 6, at + 4, words, "muted", 12, "end"))
        add(Text((self.left + self.right) / 2, height - 6, x, "muted", 12, "middle"))
        if y:
            add(Text(4, self.top - 8, y, "muted", 12))

    @staticmethod
    def _named(given: Sequence[tuple[Real, str]] | None, limits: tuple[Real, Real]) -> Iterable[tuple[Real, str]]:
        return [(v, number(v)) for v in ticks(*limits)] if given is None else given

    def at(self, x: Real, y: Real) -> Point:
        """Where a point of the plot lies on the sheet."""
        u = (x - self.xlim[0]) / (self.xlim[1] - self.xlim[0])
        v = (y - self.ylim[0]) / (self.ylim[1] - self.ylim[0])
        return self.left + u * (self.right - self.left), self.bottom - v * (self.bottom - self.top)

    def _inside(self, x: Real, y: Real) -> bool:
        return self.xlim[0] <= x <= self.xlim[1] and self.ylim[0] <= y <= self.ylim[1]

    def line(self, xs: np.ndarray, ys: np.ndarray, role: Role, *, dashed: bool = False) -> None:
        """A curve; values beyond the upper or lower edge run along it."""
        low, high = self.ylim
        points = [self.at(float(x), min(max(float(y), low), high)) for x, y in zip(xs, ys, strict=True)]
        self.drawing.add(Line(points, role, 2.0, dashed))

    def dots(self, points: Iterable[Point] | np.ndarray, role: Role, radius: Real = 3.0, opacity: Real = 1.0) -> None:
        """Points as discs."""
        inside = [self.at(float(x), float(y)) for x, y in points if self._inside(float(x), float(y))]
        self.drawing.add(Dots(inside, role, radius, opacity))

    def arrow(self, tip: Point, role: Role, label: str, *, dashed: bool = False, lift: Real = -8.0) -> None:
        """An arrow from the origin with a name at its tip; pulled back inside the frame if it is too long."""
        reach = 1.0
        for value, (low, high) in zip(tip, (self.xlim, self.ylim), strict=True):
            if value > high or value < low:
                reach = min(reach, 0.97 * (high if value > high else low) / value)
        x, y = self.at(tip[0] * reach, tip[1] * reach)
        self.drawing.add(Line([self.at(0, 0), (x, y)], role, 2.2, dashed, arrow=True))
        self.drawing.add(Text(min(x + 7, self.right - 8 * len(label)), y + lift, label, role, 13, bold=True))

    def cross(self, x: Real, y: Real, role: Role = "ink", size: Real = 9.0) -> None:
        """A cross marks a goal."""
        u, v = self.at(x, y)
        self.drawing.add(Line([(u - size, v), (u + size, v)], role, 2), Line([(u, v - size), (u, v + size)], role, 2))

    def image(self, values: np.ndarray) -> None:
        """A grid of cells over the whole frame, first row on top."""
        width, height = self.right - self.left, self.bottom - self.top
        self.drawing.add(Image(self.left, self.top, width, height, values))
