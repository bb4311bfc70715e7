"""Drawings of a few shapes, written as SVG that follows the reader's light or dark theme, or as PNG.

Colours are roles, resolved by the stylesheet; every drawing carries a description in words. Text is escaped. A table of
numbers is drawn as one image whose opacity is the number, so that it too suits both themes.
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
    """A polyline, or a filled polygon; with an arrow head at its end if asked."""

    points: Sequence[Point]
    role: Role = "ink"
    width: Real = 1.6
    dashed: bool = False
    filled: bool = False
    opacity: Real = 1.0
    arrow: bool = False


@dataclass(frozen=True)
class Box:
    """A filled rectangle; `title` is what hovering shows."""

    x: Real
    y: Real
    width: Real
    height: Real
    role: Role = "blue"
    opacity: Real = 1.0
    title: str = ""


@dataclass(frozen=True)
class Dots:
    """Equal discs."""

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
    """Shapes on a sheet of width x height pixels. `alt` says in words, with numbers, what is to be seen."""

    width: Real
    height: Real
    alt: str
    shapes: list[Shape] = field(default_factory=list)

    def add(self, *shapes: Shape) -> None:
        """Put shapes on top."""
        self.shapes.extend(shapes)


def style(selector: str = ".hecto", dark: str = "") -> str:
    """CSS of the colours. Dark colours hold under `dark`, a selector, or by the system's preference without one."""
    light_rules = ";".join(f"--{role}:{colour}" for role, colour in LIGHT.items())
    dark_rules = ";".join(f"--{role}:{colour}" for role, colour in DARK.items())
    rules = [f"{selector}{{{light_rules}}}"]
    if dark:
        rules.append(f"{dark} {selector}{{{dark_rules}}}")
    else:
        rules.append(f"@media(prefers-color-scheme:dark){{{selector}{{{dark_rules}}}}}")
    return "".join(rules)


def svg(drawing: Drawing, *, alone: bool = False, ident: str = "") -> str:
    """An <svg> element; `alone` makes it a file of its own, with colours and namespace."""
    marks = "".join(_element(shape) for shape in drawing.shapes)
    head = f'viewBox="0 0 {_n(drawing.width)} {_n(drawing.height)}" role="img" aria-label="{escape(drawing.alt)}"'
    if ident:
        head += f' data-view="{escape(ident)}"'
    font = 'font-family="system-ui,DejaVu Sans,sans-serif"'
    if not alone:
        size = f"width:100%;max-width:{_n(drawing.width)}px;min-width:{_n(0.8 * drawing.width)}px"
        return f'<svg class="hecto" {head} {font} style="{size}">{marks}</svg>'
    paper = f"svg{{background:#fff}}{style('svg')}@media(prefers-color-scheme:dark){{svg{{background:#181c1a}}}}"
    size = f'xmlns="http://www.w3.org/2000/svg" width="{_n(drawing.width)}" height="{_n(drawing.height)}"'
    return f"<svg {size} {head} {font}><style>{paper}</style>{marks}</svg>\n"


def _n(value: Real) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _element(shape: Shape) -> str:
    match shape:
        case Line():
            points = " ".join(f"{_n(x)},{_n(y)}" for x, y in shape.points)
            fade = "" if shape.opacity == 1 else f' opacity="{_n(shape.opacity)}"'
            if shape.filled:
                return f'<polygon points="{points}" style="fill:var(--{shape.role})"{fade}/>'
            dash = ' stroke-dasharray="5 4"' if shape.dashed else ""
            line = f'<polyline points="{points}" fill="none" stroke-linejoin="round" stroke-width="{_n(shape.width)}"'
            line += f' style="stroke:var(--{shape.role})"{dash}{fade}/>'
            return line + (_element(_arrow_head(shape)) if shape.arrow else "")
        case Box():
            title = f"<title>{escape(shape.title)}</title>" if shape.title else ""
            place = f'x="{_n(shape.x)}" y="{_n(shape.y)}" width="{_n(shape.width)}" height="{_n(shape.height)}"'
            return f'<rect {place} style="fill:var(--{shape.role})" opacity="{_n(shape.opacity)}">{title}</rect>'
        case Dots():
            marks = "".join(f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(shape.radius)}"/>' for x, y in shape.points)
            return f'<g style="fill:var(--{shape.role})" fill-opacity="{_n(shape.opacity)}">{marks}</g>'
        case Text():
            turn = f' transform="rotate({_n(shape.turn)} {_n(shape.x)} {_n(shape.y)})"' if shape.turn else ""
            weight = ' font-weight="600"' if shape.bold else ""
            place = f'x="{_n(shape.x)}" y="{_n(shape.y)}" font-size="{_n(shape.size)}" text-anchor="{shape.anchor}"'
            return f'<text {place}{weight}{turn} style="fill:var(--{shape.role})">{escape(shape.text)}</text>'
        case Image():
            data = base64.b64encode(png_of(shape.values)).decode()
            place = f'x="{_n(shape.x)}" y="{_n(shape.y)}" width="{_n(shape.width)}" height="{_n(shape.height)}"'
            return (
                f'<image {place} preserveAspectRatio="none" style="image-rendering:pixelated" '
                f'href="data:image/png;base64,{data}"/>'
            )


def _arrow_head(line: Line) -> Line:
    """A triangle at the end of a line."""
    (x0, y0), (x1, y1) = line.points[-2:]
    length = max(float(np.hypot(x1 - x0, y1 - y0)), 1e-9)
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    size = 4 + 2 * line.width
    corners = [(x1 - size * ux + s * size / 2 * uy, y1 - size * uy - s * size / 2 * ux) for s in (-1, 1)]
    return Line([(x1, y1), *corners], role=line.role, filled=True, opacity=line.opacity)


def rgba(values: Float[np.ndarray, "rows columns"]) -> np.ndarray:
    """uint8 [rows, columns, 4]: hue by sign, opacity by size."""
    pixels = np.empty((*values.shape, 4), dtype=np.uint8)
    pixels[..., :3] = np.where((values >= 0)[..., None], IMAGE_RGB["blue"], IMAGE_RGB["orange"])
    pixels[..., 3] = np.rint(np.clip(np.abs(values), 0, 1) * 255)
    return pixels


def png_of(values: Float[np.ndarray, "rows columns"]) -> bytes:
    """One pixel a number, as a PNG file (RGBA, 8 bits)."""
    return _png_file(rgba(values).tobytes(), *values.shape)


@functools.lru_cache(maxsize=512)  # moving a slider redraws a model's maps, most of which stay as they are
def _png_file(pixels: bytes, rows: int, columns: int) -> bytes:
    width = 4 * columns
    lines = b"".join(b"\0" + pixels[i * width : (i + 1) * width] for i in range(rows))  # 0: no filter
    header = struct.pack(">IIBBBBB", columns, rows, 8, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 4)), (b"IEND", b""))
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def stack(drawings: Sequence[Drawing], gap: Real = 24.0) -> Drawing:
    """Several drawings below each other as one."""
    height = sum(d.height for d in drawings) + gap * (len(drawings) + 1)
    sheet = Drawing(max(d.width for d in drawings) + 2 * gap, height, " ".join(d.alt for d in drawings))
    y = gap
    for drawing in drawings:
        sheet.add(*(_moved(shape, gap, y) for shape in drawing.shapes))
        y += drawing.height + gap
    return sheet


def _moved(shape: Shape, dx: Real, dy: Real) -> Shape:
    if isinstance(shape, (Line, Dots)):
        return type(shape)(**(vars(shape) | {"points": [(x + dx, y + dy) for x, y in shape.points]}))
    return type(shape)(**(vars(shape) | {"x": shape.x + dx, "y": shape.y + dy}))


def png(drawing: Drawing, scale: Real = 2.0) -> bytes:
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
                ax.add_patch(Polygon(_arrow_head(shape).points, color=colour, alpha=shape.opacity, lw=0, zorder=z))
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
            ax.imshow(rgba(shape.values), extent=edges, interpolation="nearest", aspect="auto", zorder=z)
    ax.set(xlim=(0, drawing.width), ylim=(drawing.height, 0))
    out = io.BytesIO()
    with mpl.rc_context({"font.family": "DejaVu Sans"}):
        figure.savefig(out, format="png", dpi=100 * scale, metadata={"Software": None})
    return out.getvalue()
