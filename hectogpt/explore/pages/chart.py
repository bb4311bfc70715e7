"""A drawing with axes: frame, ticks, labels, legend, and the map from a plot's coordinates to the sheet's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from hectogpt.explore.pages.drawing import Dots, Drawing, Image, Line, Point, Real, Role, Text

SIZE = 380.0  # the usual width of a panel in pixels: as wide as a telephone


def choose_ticks(low: Real, high: Real, about: int = 5) -> list[Real]:
    """Round numbers within [low, high], in steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def format_number(value: Real) -> str:
    """A number as ticks and labels show it, with four digits at most."""
    return f"{value + 0.0:.4g}"


class Panel:
    """A drawing with one pair of axes. Points outside the limits are not drawn; lines are cut at them."""

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
        for value, words in self._label_ticks(xticks, xlim):
            u = self.to_sheet(value, ylim[0])[0]
            add(Line([(u, self.top), (u, self.bottom)], "grid", 1))
            add(Text(u, self.bottom + 16, words, "muted", 12, "middle"))
        for value, words in self._label_ticks(yticks, ylim):
            v = self.to_sheet(xlim[0], value)[1]
            add(Line([(self.left, v), (self.right, v)], "grid", 1))
            add(Text(self.left - 6, v + 4, words, "muted", 12, "end"))
        add(Text((self.left + self.right) / 2, height - 6, x, "muted", 12, "middle"))
        if y:
            add(Text(4, self.top - 8, y, "muted", 12))

    @staticmethod
    def _label_ticks(given: Sequence[tuple[Real, str]] | None, limits: tuple[Real, Real]) -> Iterable[tuple[Real, str]]:
        return [(v, format_number(v)) for v in choose_ticks(*limits)] if given is None else given

    def to_sheet(self, x: Real, y: Real) -> Point:
        """The point of the sheet at (x, y) of the plot."""
        u = (x - self.xlim[0]) / (self.xlim[1] - self.xlim[0])
        v = (y - self.ylim[0]) / (self.ylim[1] - self.ylim[0])
        return self.left + u * (self.right - self.left), self.bottom - v * (self.bottom - self.top)

    def _contains(self, x: Real, y: Real) -> bool:
        return self.xlim[0] <= x <= self.xlim[1] and self.ylim[0] <= y <= self.ylim[1]

    def line(self, xs: np.ndarray, ys: np.ndarray, role: Role, *, dashed: bool = False) -> None:
        """A curve. Values above or below the limits are drawn at the limit."""
        low, high = self.ylim
        points = [self.to_sheet(float(x), min(max(float(y), low), high)) for x, y in zip(xs, ys, strict=True)]
        self.drawing.add(Line(points, role, 2.0, dashed))

    def dots(self, points: Iterable[Point] | np.ndarray, role: Role, radius: Real = 3.0, opacity: Real = 1.0) -> None:
        """Draw points as discs."""
        inside = [self.to_sheet(float(x), float(y)) for x, y in points if self._contains(float(x), float(y))]
        self.drawing.add(Dots(inside, role, radius, opacity))

    def arrow(self, tip: Point, role: Role, label: str, *, dashed: bool = False, lift: Real = -8.0) -> None:
        """An arrow from the origin with a label at its tip; it is shortened if the tip lies outside the limits."""
        reach = 1.0
        for value, (low, high) in zip(tip, (self.xlim, self.ylim), strict=True):
            if value > high or value < low:
                reach = min(reach, 0.97 * (high if value > high else low) / value)
        x, y = self.to_sheet(tip[0] * reach, tip[1] * reach)
        self.drawing.add(Line([self.to_sheet(0, 0), (x, y)], role, 2.2, dashed, arrow=True))
        self.drawing.add(Text(min(x + 7, self.right - 8 * len(label)), y + lift, label, role, 13, bold=True))

    def cross(self, x: Real, y: Real, role: Role = "ink", size: Real = 9.0) -> None:
        """Mark a point with a cross."""
        u, v = self.to_sheet(x, y)
        self.drawing.add(Line([(u - size, v), (u + size, v)], role, 2), Line([(u, v - size), (u, v + size)], role, 2))

    def image(self, values: np.ndarray) -> None:
        """Draw a grid of cells over the whole frame, first row on top."""
        width, height = self.right - self.left, self.bottom - self.top
        self.drawing.add(Image(self.left, self.top, width, height, values))
