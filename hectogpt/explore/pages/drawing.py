"""Drawings made of five shapes, written as SVG that follows the reader's light or dark theme, or as PNG.

Why not matplotlib or plotly: matplotlib's SVG has fixed colours, so it cannot follow the theme, and four charts take it
a third of a second, too slow behind a slider; plotly adds a script of 4.8 MB to every exported page. Here a colour is a
role that the stylesheet resolves, four charts take a millisecond, an exported page of them is 53 kB without a script,
every drawing has a description in words, and all text is escaped. PNG files are drawn by matplotlib from the same
shapes. A table of numbers is one image whose opacity is the number, so that it suits both themes too.
"""

from __future__ import annotations

import base64
import functools
import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

import numpy as np
from jaxtyping import Float

Role = Literal["ink", "muted", "grid", "blue", "orange", "green", "pink"]
Anchor = Literal["start", "middle", "end"]
Real = float | int
Point = tuple[Real, Real]

# Okabe and Ito's hues: the darker set for a light page, a lighter one for a dark page.
LIGHT: dict[Role, str] = {
    "ink": "#1A1A1A",
    "muted": "#5F5F5F",
    "grid": "#D9D9D9",
    "blue": "#0072B2",
    "orange": "#D55E00",
    "green": "#00825F",
    "pink": "#B0568A",
}
DARK: dict[Role, str] = {
    "ink": "#EDEDED",
    "muted": "#B0B0B0",
    "grid": "#444444",
    "blue": "#56B4E9",
    "orange": "#F28E3D",
    "green": "#2CC79B",
    "pink": "#E39AC7",
}
IMAGE_RGB = {"blue": (34, 139, 204), "orange": (224, 112, 32)}  # between the two sets: readable on both pages


@dataclass(frozen=True)
class Line:
    """A polyline, or a filled polygon; `arrow` adds a head at its end."""

    points: Sequence[Point]
    role: Role = "ink"
    width: Real = 1.6
    dashed: bool = False
    filled: bool = False
    opacity: Real = 1.0
    arrow: bool = False


@dataclass(frozen=True)
class Box:
    """A filled rectangle; `title` is shown when the mouse is over it."""

    x: Real
    y: Real
    width: Real
    height: Real
    role: Role = "blue"
    opacity: Real = 1.0
    title: str = ""


@dataclass(frozen=True)
class Dots:
    """Discs of one size."""

    points: Sequence[Point]
    role: Role = "blue"
    radius: Real = 3.0
    opacity: Real = 1.0


@dataclass(frozen=True)
class Text:
    """One line of text; y is its baseline. turn: degrees clockwise about its anchor."""

    x: Real
    y: Real
    text: str
    role: Role = "ink"
    size: Real = 12.0
    anchor: Anchor = "start"
    bold: bool = False
    turn: Real = 0.0


@dataclass(frozen=True)
class Image:
    """Numbers from -1 to 1 as a grid of cells: positive blue, negative orange, opacity the absolute value."""

    x: Real
    y: Real
    width: Real
    height: Real
    values: Float[np.ndarray, "rows columns"] = field(repr=False)


Shape = Line | Box | Dots | Text | Image


@dataclass
class Drawing:
    """Shapes on a sheet of width x height pixels. `alt` describes in words, with numbers, what the drawing shows."""

    width: Real
    height: Real
    alt: str
    shapes: list[Shape] = field(default_factory=list)

    def add(self, *shapes: Shape) -> None:
        """Add shapes on top of those before."""
        self.shapes.extend(shapes)


def css(selector: str = ".hecto", dark: str = "") -> str:
    """CSS of the colours. Dark colours apply below the selector `dark`; without it, if the system prefers dark."""
    light_rules = ";".join(f"--{role}:{colour}" for role, colour in LIGHT.items())
    dark_rules = ";".join(f"--{role}:{colour}" for role, colour in DARK.items())
    rules = [f"{selector}{{{light_rules}}}"]
    if dark:
        rules.append(f"{dark} {selector}{{{dark_rules}}}")
    else:
        rules.append(f"@media(prefers-color-scheme:dark){{{selector}{{{dark_rules}}}}}")
    return "".join(rules)


def to_svg(drawing: Drawing, *, alone: bool = False) -> str:
    """The drawing as an <svg> element; `alone`: as a file of its own, with colours and namespace."""
    marks = "".join(_svg_element(shape) for shape in drawing.shapes)
    head = f'viewBox="0 0 {_num(drawing.width)} {_num(drawing.height)}" role="img" aria-label="{escape(drawing.alt)}"'
    font = 'font-family="system-ui,DejaVu Sans,sans-serif"'
    if not alone:
        return f'<svg class="hecto" {head} {font}>{marks}</svg>'
    paper = f"svg{{background:#fff}}{css('svg')}@media(prefers-color-scheme:dark){{svg{{background:#181c1a}}}}"
    size = f'xmlns="http://www.w3.org/2000/svg" width="{_num(drawing.width)}" height="{_num(drawing.height)}"'
    return f"<svg {size} {head} {font}><style>{paper}</style>{marks}</svg>\n"


def _num(value: Real) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _svg_element(shape: Shape) -> str:
    match shape:
        case Line():
            points = " ".join(f"{_num(x)},{_num(y)}" for x, y in shape.points)
            fade = "" if shape.opacity == 1 else f' opacity="{_num(shape.opacity)}"'
            if shape.filled:
                return f'<polygon points="{points}" style="fill:var(--{shape.role})"{fade}/>'
            dash = ' stroke-dasharray="5 4"' if shape.dashed else ""
            line = f'<polyline points="{points}" fill="none" stroke-linejoin="round" stroke-width="{_num(shape.width)}"'
            line += f' style="stroke:var(--{shape.role})"{dash}{fade}/>'
            return line + (_svg_element(_make_arrow_head(shape)) if shape.arrow else "")
        case Box():
            title = f"<title>{escape(shape.title)}</title>" if shape.title else ""
            return (
                f'<rect {_place(shape)} style="fill:var(--{shape.role})" opacity="{_num(shape.opacity)}">{title}</rect>'
            )
        case Dots():
            marks = "".join(
                f'<circle cx="{_num(x)}" cy="{_num(y)}" r="{_num(shape.radius)}"/>' for x, y in shape.points
            )
            return f'<g style="fill:var(--{shape.role})" fill-opacity="{_num(shape.opacity)}">{marks}</g>'
        case Text():
            turn = f' transform="rotate({_num(shape.turn)} {_num(shape.x)} {_num(shape.y)})"' if shape.turn else ""
            weight = ' font-weight="600"' if shape.bold else ""
            place = f'x="{_num(shape.x)}" y="{_num(shape.y)}" text-anchor="{shape.anchor}"'
            place += f' font-size="{_num(shape.size)}"'
            return f'<text {place}{weight}{turn} style="fill:var(--{shape.role})">{escape(shape.text)}</text>'
        case Image():
            data = base64.b64encode(encode_png(shape.values)).decode()
            return (
                f'<image {_place(shape)} preserveAspectRatio="none" style="image-rendering:pixelated" '
                f'href="data:image/png;base64,{data}"/>'
            )


def _place(shape: Box | Image) -> str:
    size = f'width="{_num(shape.width)}" height="{_num(shape.height)}"'
    return f'x="{_num(shape.x)}" y="{_num(shape.y)}" {size}'


def _make_arrow_head(line: Line) -> Line:
    """A triangle at the end of a line."""
    (x0, y0), (x1, y1) = line.points[-2:]
    length = max(float(np.hypot(x1 - x0, y1 - y0)), 1e-9)
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    size = 4 + 2 * line.width
    corners = [(x1 - size * ux + s * size / 2 * uy, y1 - size * uy - s * size / 2 * ux) for s in (-1, 1)]
    return Line([(x1, y1), *corners], role=line.role, filled=True, opacity=line.opacity)


def to_rgba(values: Float[np.ndarray, "rows columns"]) -> np.ndarray:
    """Colours of the numbers, uint8 [rows, columns, 4]: hue by sign, opacity by absolute value."""
    pixels = np.empty((*values.shape, 4), dtype=np.uint8)
    pixels[..., :3] = np.where((values >= 0)[..., None], IMAGE_RGB["blue"], IMAGE_RGB["orange"])
    pixels[..., 3] = np.rint(np.clip(np.abs(values), 0, 1) * 255)
    return pixels


def encode_png(values: Float[np.ndarray, "rows columns"]) -> bytes:
    """The numbers as a PNG file (RGBA, 8 bits), one pixel each."""
    return _write_png(to_rgba(values).tobytes(), *values.shape)


@functools.lru_cache(maxsize=512)  # moving a slider redraws a model's maps, most of which stay as they are
def _write_png(pixels: bytes, rows: int, columns: int) -> bytes:
    width = 4 * columns
    lines = b"".join(b"\0" + pixels[i * width : (i + 1) * width] for i in range(rows))  # 0: no filter
    header = struct.pack(">IIBBBBB", columns, rows, 8, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 4)), (b"IEND", b""))
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def arrange(drawings: Sequence[Drawing], columns: int = 1, gap: Real = 24.0) -> Drawing:
    """Several drawings as one, row by row."""
    rows = [drawings[i : i + columns] for i in range(0, len(drawings), columns)]
    width = max(sum(drawing.width + gap for drawing in row) for row in rows) + gap
    height = sum(max(drawing.height for drawing in row) + gap for row in rows) + gap
    sheet = Drawing(width, height, " ".join(drawing.alt for drawing in drawings))
    y = gap
    for row in rows:
        x = gap
        for drawing in row:
            sheet.add(*(_shift(shape, x, y) for shape in drawing.shapes))
            x += drawing.width + gap
        y += max(drawing.height for drawing in row) + gap
    return sheet


def _shift(shape: Shape, dx: Real, dy: Real) -> Shape:
    if isinstance(shape, (Line, Dots)):
        return type(shape)(**(vars(shape) | {"points": [(x + dx, y + dy) for x, y in shape.points]}))
    return type(shape)(**(vars(shape) | {"x": shape.x + dx, "y": shape.y + dy}))


def to_png(drawing: Drawing, scale: Real = 2.0) -> bytes:
    """The drawing as a PNG picture in the light colours, `scale` pixels for each of its units."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.patches import Polygon, Rectangle

    figure = Figure(figsize=(drawing.width / 100, drawing.height / 100), facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, drawing.width), ylim=(drawing.height, 0))
    ax.set_axis_off()
    point = 0.72  # typographic points in a hundredth of an inch
    for z, shape in enumerate(drawing.shapes):
        if isinstance(shape, Line):
            if shape.filled:
                ax.add_patch(Polygon(shape.points, color=LIGHT[shape.role], alpha=shape.opacity, lw=0, zorder=z))
                continue
            x, y = zip(*shape.points, strict=True)
            dash = (0, (5 / shape.width, 4 / shape.width)) if shape.dashed else "-"
            colour, width = LIGHT[shape.role], shape.width * point
            ax.plot(x, y, color=colour, lw=width, ls=dash, alpha=shape.opacity, zorder=z)
            if shape.arrow:
                ax.add_patch(Polygon(_make_arrow_head(shape).points, color=colour, alpha=shape.opacity, lw=0, zorder=z))
        elif isinstance(shape, Box):
            place = (shape.x, shape.y), shape.width, shape.height
            ax.add_patch(Rectangle(*place, color=LIGHT[shape.role], alpha=shape.opacity, lw=0, zorder=z))
        elif isinstance(shape, Dots):
            places = np.array(shape.points, dtype=float).reshape(-1, 2)
            size = 2 * shape.radius * point
            ax.plot(*places.T, "o", color=LIGHT[shape.role], ms=size, mew=0, alpha=shape.opacity, zorder=z)
        elif isinstance(shape, Text):
            anchors = {"start": "left", "middle": "center", "end": "right"}
            ax.text(
                shape.x,
                shape.y,
                shape.text.replace("$", r"\$"),
                color=LIGHT[shape.role],
                fontsize=shape.size * point,
                fontweight="bold" if shape.bold else "normal",
                ha=anchors[shape.anchor],
                va="baseline",
                rotation=-shape.turn,
                rotation_mode="anchor",
                zorder=z,
            )
        else:
            edges = (shape.x, shape.x + shape.width, shape.y + shape.height, shape.y)
            ax.imshow(to_rgba(shape.values), extent=edges, interpolation="nearest", aspect="auto", zorder=z)
    ax.set(xlim=(0, drawing.width), ylim=(drawing.height, 0))
    out = io.BytesIO()
    with mpl.rc_context({"font.family": "DejaVu Sans"}):
        figure.savefig(out, format="png", dpi=100 * scale, metadata={"Software": None})
    return out.getvalue()
