"""ladder.html: the report as one page that works offline, with curves to hover over, hide and put on a log axis.

The page adapts to the width of the window and to the dark mode of the system, and its own policy forbids every outside
request. The same leaderboards give the same bytes. plotly is needed for its JavaScript alone; the figures are plain
data.
"""

from __future__ import annotations

import html
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex

from hectogpt.display import printable
from hectogpt.errors import UserError
from hectogpt.lab.report import front as fronts
from hectogpt.lab.report.front import LOSS_TICKS, SECOND_TICKS, Front, Point
from hectogpt.lab.report.leaderboard import Leaderboard, compare_entries, count_seeds
from hectogpt.lab.report.seconds import NO_SECONDS, Seconds
from hectogpt.lab.report.tables import (
    NGRAM_LABELS,
    first_paragraph,
    format_difference,
    format_loss,
    format_p,
    ladder_table,
    paragraphs_html,
)

Figure = dict[str, Any]  # data and layout as plotly.js takes them, `wide` and `narrow` changes of the layout, colours

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --back: #fff; --line: #e4e4e4; --strong: #888 }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6; --back: #15181c; --line: #33383f; --strong: #8a8f98 } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: var(--text);
       background: var(--back) }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .55rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top }
th { border-bottom-color: var(--strong); font-weight: 600 } td { white-space: nowrap }
.w { text-align: left; white-space: normal; min-width: 4em } .w:nth-child(3) { min-width: 20em }
.scroll { overflow-x: auto; margin-top: 1rem } p { max-width: 48rem }
@media (max-width: 760px) { body { margin: 1rem auto; padding: 0 .6rem } h1 { font-size: 1.5rem } }
"""
# plotly.js 3 offers to upload the chart unless told not to.
CONFIG = {"displaylogo": False, "responsive": True, "showSendToCloud": False, "plotlyServerURL": ""}
THEMES = {
    "light": {"text": "#1a1a1a", "back": "#ffffff", "line": "#e4e4e4", "button": "#f3f3f3"},
    "dark": {"text": "#e6e6e6", "back": "#15181c", "line": "#33383f", "button": "#262b31"},
}
SPLIT_COLORS = {"light": {"test": "#0b5fa5", "dev": "#d07a00"}, "dark": {"test": "#62b0f0", "dev": "#f0a840"}}
DASHES = ("dot", "dash", "dashdot", "longdash", "longdashdot", "solid")
NGRAM_DASHES = dict(zip(NGRAM_LABELS, DASHES, strict=True))
# plotly.js cannot read CSS variables or media queries, so this changes the layout when the window or the theme changes.
# The height is that of the element: with a height in its layout, plotly would fix the width too.
SCRIPT = """
const narrow = matchMedia("(max-width: 760px)"), dark = matchMedia("(prefers-color-scheme: dark)");
function adapt() {
  const theme = dark.matches ? "dark" : "light", colors = THEMES[theme];
  for (const [id, figure] of Object.entries(FIGURES)) {
    const {height, ...shape} = narrow.matches ? figure.narrow : figure.wide;
    document.getElementById(id).style.height = height + "px";
    const layout = {...shape, "font.color": colors.text,
      "hoverlabel.bgcolor": colors.back, "hoverlabel.font.color": colors.text,
      "updatemenus[0].bgcolor": colors.button, "updatemenus[0].bordercolor": colors.line};
    for (const axis of Object.keys(figure.layout).filter(name => /^[xy]axis/.test(name)))
      Object.assign(layout, {[axis + ".gridcolor"]: colors.line, [axis + ".linecolor"]: colors.line,
        [axis + ".zerolinecolor"]: colors.line});
    Plotly.update(id, {"line.color": figure.colors[theme], "marker.color": figure.colors[theme]}, layout)
      .then(() => Plotly.Plots.resize(id));
  }
}
for (const [id, figure] of Object.entries(FIGURES)) Plotly.newPlot(id, figure.data, figure.layout, CONFIG);
adapt();
narrow.addEventListener("change", adapt);
dark.addEventListener("change", adapt);
"""


def render_page(
    boards: Sequence[Leaderboard],
    descriptions: Mapping[str, str],
    found: Sequence[Front] = (),
    seconds: Seconds = NO_SECONDS,
) -> str:
    """The whole page as text. found: the front of each corpus, drawn from these seconds. Raises UserError without
    plotly."""
    figures: dict[str, Figure] = {}
    parts = [
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>",
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name=viewport content="width=device-width, initial-scale=1"><link rel=icon href="data:,">',
        f"<title>hectoGPT: the ladder</title><style>{STYLE}</style>",
        f"<script>{_plotly_javascript()}</script></head><body>",
        "<h1>One hundred gradient steps</h1>",
        "<p>Training loss is the loss of each batch before its update, as a mean over seeds. Held-out loss is in nats "
        "per token; its bar is the 95 % interval of the mean over the rung's own seeds. Click a name in a legend to "
        "hide it, double-click to see it alone, drag to zoom, double-click a figure to see all of it. The buttons "
        "switch the axis.</p>",
    ]
    for board in boards:
        if board.rungs:
            curves, ladder = f"{board.slug}-curves", f"{board.slug}-ladder"
            figures |= {curves: _curves(board), ladder: _ladder(board, descriptions)}
            parts.append(
                f"<h2>{html.escape(printable(board.name))}</h2>\n<div id={curves}></div>\n<div id={ladder}></div>"
            )
            parts.append(f"<div class=scroll>{ladder_table(board, descriptions, seconds).html()}</div>")
    if found:
        parts.append("<h2>Loss against seconds</h2>" + paragraphs_html(fronts.introduction(seconds)))
    for front in found:
        parts.append(f"<h3>{html.escape(printable(front.corpus))}, loss against seconds</h3>")
        if front.drawn:
            figures[front.slug] = _front(front, descriptions)
            parts.append(f"<div id={front.slug}></div>")
        parts.append(f"<div class=scroll>{fronts.front_table(front).html()}</div>")
    constants = {"CONFIG": CONFIG, "THEMES": THEMES, "FIGURES": figures}
    script = "".join(f"const {name} = {_json(value)};\n" for name, value in constants.items())
    return "\n".join([*parts, f"<script>{script}{SCRIPT}</script>", "</body></html>\n"])


def _plotly_javascript() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError(
            "ladder.html needs plotly, which is not installed",
            why="the page contains plotly's JavaScript",
            fix="pip install 'hectogpt[report]'",
        ) from None
    return str(get_plotlyjs())


def _json(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("</", "<\\/").replace("<!", "\\u003c!").replace("<s", "\\u003cs").replace("<S", "\\u003cS")


def _curves(board: Leaderboard) -> Figure:
    """Training loss and gradient norm by step, a colour per rung; one legend entry hides both."""
    n = len(board.rungs)
    data: list[Figure] = []
    colors: dict[str, list[str]] = {theme: [] for theme in THEMES}
    for place, entry in enumerate(board.rungs):
        for axis, field in (("", "losses"), ("2", "grad_norms")):
            curves = entry.curves(field)
            if not len(curves):
                continue
            mean, spread = np.nanmean(curves, axis=0), np.nanstd(curves, axis=0)
            trace = {
                "x": list(range(1, len(mean) + 1)),
                "y": _digits(mean),
                "customdata": _digits(spread),
                "name": f"{place} {entry.name}",
                "legendgroup": entry.name,
                "showlegend": not axis,
                "line": {"width": 1.8},
                "hovertemplate": "step %{x}: %{y:.3f} ± %{customdata:.3f}",
                "xaxis": f"x{axis}",
                "yaxis": f"y{axis}",
            }
            _add(data, colors, trace, {theme: _rung_color(place, n, theme) for theme in THEMES})
    split = board.ngram_split
    for name, level in board.ngrams.get(split, {}).items():
        trace = {
            "x": [1, max(entry.steps for entry in board.rungs)],
            "y": [round(level, 5)] * 2,
            "name": NGRAM_LABELS[name],
            "line": {"width": 1, "dash": NGRAM_DASHES[name]},
            "hovertemplate": f"{split}: %{{y:.3f}}",
        }
        _add(data, colors, trace, dict.fromkeys(THEMES, "#8a8f98"))
    entries = n + len(board.ngrams.get(split, {}))
    layout = _layout("yaxis.type") | {
        "hovermode": "x unified",
        "xaxis": {"title": {"text": "step"}},
        "xaxis2": {"title": {"text": "step"}, "anchor": "y2"},
        "yaxis": {"title": {"text": "training loss (nats per token)"}},
        "yaxis2": {"title": {"text": "gradient norm before clipping"}, "type": "log", "dtick": "D2", "anchor": "x2"},
    }
    wide = {"height": max(470, 120 + 20 * entries), "hovermode": "x unified"} | _legend(entries, narrow=False)
    wide |= _domains(x=(0.0, 0.46), y=(0.0, 1.0), x2=(0.55, 1.0), y2=(0.0, 1.0))
    narrow = {"height": 700 + 10 * entries, "hovermode": "closest"} | _legend(entries, narrow=True)
    narrow |= _domains(x=(0.0, 1.0), y=(0.57, 1.0), x2=(0.0, 1.0), y2=(0.0, 0.43))
    return {"data": data, "layout": layout, "wide": wide, "narrow": narrow, "colors": colors}


def _ladder(board: Leaderboard, descriptions: Mapping[str, str]) -> Figure:
    """The held-out loss of every rung; hovering tells what the rung is and what it gained."""
    names = [f"{place} {entry.name}" for place, entry in enumerate(board.rungs)]
    data: list[Figure] = []
    colors: dict[str, list[str]] = {theme: [] for theme in THEMES}
    for split in ("dev", "test"):
        x, y, half, text = [], [], [], []
        for place, entry in enumerate(board.rungs):
            summary, interval = entry.summary(split), entry.interval(split)
            if summary is None:
                continue
            below = compare_entries(entry, board.rungs[place - 1])[0] if place else None
            x.append(round(summary.mean, 5))
            y.append(names[place])
            half.append(round(summary.mean - interval[0], 5) if interval else 0.0)
            gained = f"<br>gained {format_difference(below, -1)}, p {format_p(below)}" if below else ""
            gained += f", {count_seeds(below.n)} in common" if below else ""
            what = "<br>".join(textwrap.wrap(html.escape(first_paragraph(descriptions.get(entry.name, ""))), 60))
            text.append(f"<b>{names[place]}</b> {format_loss(summary)} ({count_seeds(summary.n)}){gained}<br>{what}")
        trace = {
            "x": x,
            "y": y,
            "mode": "markers",
            "name": split,
            "hovertext": text,
            "hoverinfo": "text",
            "marker": {"size": 7},
            "error_x": {"type": "data", "array": half, "thickness": 1.4, "width": 3},
        }
        if x:
            _add(data, colors, trace, {theme: SPLIT_COLORS[theme][split] for theme in THEMES})
    split = board.ngram_split
    for name, level in board.ngrams.get(split, {}).items():
        trace = {
            "x": [round(level, 5)] * 2,
            "y": [names[0], names[-1]],
            "mode": "lines",
            "name": NGRAM_LABELS[name],
            "line": {"width": 1, "dash": NGRAM_DASHES[name]},
            "hovertemplate": f"{split}: %{{x:.3f}}",
        }
        _add(data, colors, trace, dict.fromkeys(THEMES, "#8a8f98"))
    layout = _layout("xaxis.type") | {
        "hovermode": "closest",
        "xaxis": {"title": {"text": "held-out loss (nats per token)"}},
        "yaxis": {"autorange": "reversed", "categoryorder": "array", "categoryarray": names, "automargin": True},
    }
    wide = {"height": 170 + 26 * len(names), "yaxis.tickfont.size": 12} | _legend(len(data), narrow=False)
    narrow = {"height": 240 + 22 * len(names), "yaxis.tickfont.size": 10} | _legend(len(data), narrow=True)
    return {"data": data, "layout": layout, "wide": wide, "narrow": narrow, "colors": colors}


def _front(front: Front, descriptions: Mapping[str, str]) -> Figure:
    """Held-out loss against the seconds of 100 steps; hovering tells what a recipe is."""
    data: list[Figure] = []
    colors: dict[str, list[str]] = {theme: [] for theme in THEMES}
    blue = {theme: SPLIT_COLORS[theme]["test"] for theme in THEMES}
    x, y = [round(seconds, 1) for seconds, _ in front.line], [round(loss, 5) for _, loss in front.line]
    style: Figure = {"name": "the front", "line": {"width": 1.6, "shape": "hv"}, "hoverinfo": "skip"}
    trace: Figure = {"x": x, "y": y} | style
    _add(data, colors, trace, blue)
    for best, name in ((True, "on the front"), (False, "other recipes")):
        points = [(point, seconds, loss) for point, seconds, loss in front.drawn if point.best == best]
        trace = {
            "x": [round(seconds, 1) for _, seconds, _ in points],
            "y": [round(loss, 5) for _, _, loss in points],
            "mode": "markers+text",
            "name": name,
            "text": [point.mark for point, _, _ in points],
            "textposition": "bottom left",
            "textfont": {"size": 11},
            "hovertext": [_front_hover(*point, descriptions) for point in points],
            "hoverinfo": "text",
            "marker": {
                "size": 9,
                "symbol": [("circle" if p.is_rung else "square") + ("" if best else "-open") for p, _, _ in points],
            },
        }
        _add(data, colors, trace, blue if best else dict.fromkeys(THEMES, "#8a8f98"))
    for name, level in front.yardsticks.items() if front.drawn else ():
        trace = {
            "x": [round(end(seconds for _, seconds, _ in front.drawn), 1) for end in (min, max)],
            "y": [round(level, 5)] * 2,
            "name": NGRAM_LABELS[name],
            "line": {"width": 1, "dash": NGRAM_DASHES[name]},
            "hovertemplate": "%{y:.3f}",
        }
        _add(data, colors, trace, dict.fromkeys(THEMES, "#8a8f98"))
    layout = _layout("yaxis.type") | {
        "hovermode": "closest",
        "xaxis": {"title": {"text": "seconds of 100 steps"}, "type": "log", "tickvals": SECOND_TICKS},
        "yaxis": {
            "title": {"text": "held-out loss (nats per token)"},
            "type": "log",
            "tickvals": LOSS_TICKS,
            "range": [round(math.log10(0.97 * front.line[-1][1]), 4), round(math.log10(1.04 * front.top), 4)],
        },
    }
    wide = {"height": 520} | _legend(len(data), narrow=False)
    narrow = {"height": 480} | _legend(len(data), narrow=True)
    return {"data": data, "layout": layout, "wide": wide, "narrow": narrow, "colors": colors}


def _front_hover(point: Point, seconds: float, loss: float, descriptions: Mapping[str, str]) -> str:
    what = "<br>".join(textwrap.wrap(html.escape(first_paragraph(descriptions.get(point.entry.name, ""))), 60))
    return f"<b>{point.mark} {html.escape(point.entry.name)}</b> {loss:.3f}, {seconds:.0f} s<br>{what}"


def _add(data: list[Figure], colors: dict[str, list[str]], trace: Figure, of: Mapping[str, str]) -> None:
    """Append a scatter trace and its colour in each theme."""
    data.append({"type": "scatter", "mode": "lines"} | trace)
    for theme, color in of.items():
        colors[theme].append(color)


def _layout(axis: str) -> Figure:
    """What the figures share; buttons above the figure make `axis` linear or logarithmic."""
    buttons = [{"label": kind, "method": "relayout", "args": [{axis: kind}]} for kind in ("linear", "log")]
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, "x": 0, "xanchor": "left", "y": 1}
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 60, "r": 15, "t": 60, "b": 60},
        "updatemenus": [menu | {"yanchor": "bottom", "pad": {"b": 8}, "showactive": False}],
        "legend": {"tracegroupgap": 0},
    }


def _legend(entries: int, *, narrow: bool) -> Figure:
    """Beside the figure on a wide window, in two columns below it on a narrow one."""
    place: Figure = {"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top", "font.size": 12}
    place |= {"xref": "paper", "yref": "paper", "entrywidth": 0, "entrywidthmode": "pixels"}
    margin = 60
    if narrow:
        place |= {"orientation": "h", "x": 0, "y": 0, "yanchor": "bottom", "font.size": 10}
        place |= {"xref": "container", "yref": "container", "entrywidth": 0.48, "entrywidthmode": "fraction"}
        margin = 70 + 20 * ((entries + 1) // 2)
    return {f"legend.{name}": value for name, value in place.items()} | {"margin.b": margin}


def _domains(**domains: tuple[float, float]) -> Figure:
    """x=(0, 1), y2=(0, .5): which part of the figure each axis spans."""
    return {f"{name[0]}axis{name[1:]}.domain": list(domain) for name, domain in domains.items()}


def _rung_color(place: int, n: int, theme: str) -> str:
    """Grey for the baseline, then along viridis, with the most contrast to the background at the top."""
    if place == 0:
        return "#999999"
    height = place / max(n - 1, 1)
    return str(to_hex(mpl.colormaps["viridis"](0.9 - 0.9 * height if theme == "light" else 0.3 + 0.7 * height)))


def _digits(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(f"{value:.5g}") for value in values]
