"""The report as one HTML page that needs nothing else: curves and ladder to hover over, toggle and put on a log axis.

The page's own policy forbids every outside request. The same standings give the same bytes.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from hectogpt.lab.standings import Standing, gain
from hectogpt.lab.tables import ANCHOR_TEXT, difference, first_line, ladder_table, loss, p_value

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a;
       background: #fff }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .55rem; text-align: right; border-bottom: 1px solid #e4e4e4; vertical-align: top }
th { border-bottom-color: #888; font-weight: 600 } td { white-space: nowrap }
.w { text-align: left; white-space: normal; min-width: 4em } .w:nth-child(3) { min-width: 20em }
.scroll { overflow-x: auto } p { max-width: 48rem }
"""
# plotly.js 3 offers to upload the chart unless told not to.
CONFIG = {"displaylogo": False, "responsive": True, "showSendToCloud": False, "plotlyServerURL": ""}
ANCHOR_DASH = {"uniform": "dot", "unigram": "dash", "kn2": "dashdot", "kn3": "longdash"}


def render_page(standings: Sequence[Standing], descriptions: Mapping[str, str]) -> str:
    """The whole page as text."""
    parts = [
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>",
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name=viewport content="width=device-width, initial-scale=1"><link rel=icon href="data:,">',
        f"<title>hectoGPT: the ladder</title><style>{STYLE}</style>",
        f"<script>{get_plotlyjs()}</script></head><body>",
        "<h1>One hundred gradient steps</h1>",
        "<p>Training loss is the mean over seeds of the batch before its update. Held-out loss is in nats per token, "
        "with a 95 % interval of the paired total gain. Click a name in a legend to hide it, twice to see it alone; "
        "drag to zoom; the buttons switch the axis.</p>",
    ]
    for standing in standings:
        if standing.rungs:
            parts.append(f"<h2>{html.escape(standing.name)}</h2>")
            for figure, what in ((_curves(standing), "curves"), (_ladder(standing, descriptions), "ladder")):
                parts.append(
                    figure.to_html(
                        full_html=False,
                        include_plotlyjs=False,
                        include_mathjax=False,
                        div_id=f"{standing.slug}-{what}",
                        config=CONFIG,
                    )
                )
            parts.append(f"<div class=scroll>{ladder_table(standing, descriptions).html()}</div>")
    return "\n".join([*parts, "</body></html>\n"])


def _curves(standing: Standing) -> go.Figure:
    """Loss and gradient norm by step, a colour per rung; one legend entry switches both."""
    figure = make_subplots(1, 2, subplot_titles=("training loss (nats per token)", "gradient norm before clipping"))
    for place, entry in enumerate(standing.rungs):
        for column, field in enumerate(("losses", "grad_norms"), start=1):
            curves = entry.curves(field)
            if not len(curves):
                continue
            mean, spread = np.nanmean(curves, axis=0), np.nanstd(curves, axis=0)
            figure.add_trace(
                go.Scatter(
                    x=list(range(1, len(mean) + 1)),
                    y=_digits(mean),
                    customdata=_digits(spread),
                    name=f"{place} {entry.name}",
                    legendgroup=entry.name,
                    showlegend=column == 1,
                    line={"color": _color(place, len(standing.rungs)), "width": 1.8},
                    hovertemplate="step %{x}: %{y:.3f} ± %{customdata:.3f}",
                ),
                1,
                column,
            )
    _anchor_traces(figure, standing, [1, max(e.steps for e in standing.rungs)])
    figure.update_yaxes(type="log", col=2)
    figure.update_xaxes(title="step")
    _finish(figure, max(470, 200 + 20 * (len(standing.rungs) + 4)), "yaxis.type")
    return figure


def _anchor_traces(figure: go.Figure, standing: Standing, span: list[int]) -> None:
    split = "test" if "test" in standing.anchors else "dev"
    for name, level in standing.anchors.get(split, {}).items():
        figure.add_trace(
            go.Scatter(
                x=span,
                y=[round(level, 5)] * 2,
                mode="lines",
                name=ANCHOR_TEXT[name],
                line={"color": "#777", "width": 1, "dash": ANCHOR_DASH[name]},
                hovertemplate=f"{split}: %{{y:.3f}}",
            ),
            1,
            1,
        )


def _ladder(standing: Standing, descriptions: Mapping[str, str]) -> go.Figure:
    """Held-out loss of every rung; what it is and what it gained on hovering."""
    figure = go.Figure()
    names = [f"{place} {entry.name}" for place, entry in enumerate(standing.rungs)]
    for split in ("dev", "test"):
        x, y, low, high, text = [], [], [], [], []
        for place, entry in enumerate(standing.rungs):
            summary = entry.summary(split)
            if summary is None:
                continue
            total, _ = gain(entry, standing.rungs[0])
            below, _ = gain(entry, standing.rungs[place - 1]) if place else (None, "")
            x.append(round(summary.mean, 5))
            y.append(names[place])
            low.append(round(total.difference - total.low, 5) if total and total.low is not None else 0.0)
            high.append(round(total.high - total.difference, 5) if total and total.high is not None else 0.0)
            gained = f"<br>gained {difference(below, -1)}, p {p_value(below)}" if below else ""
            what = html.escape(first_line(descriptions.get(entry.name, "")))
            text.append(f"<b>{names[place]}</b> {loss(summary)} ({summary.n} seeds){gained}<br>{what}")
        if x:
            figure.add_trace(
                go.Scatter(
                    x=x,
                    y=y,
                    mode="markers",
                    name=split,
                    hovertext=text,
                    hoverinfo="text",
                    marker={"size": 9, "color": "#0b5fa5" if split == "test" else "#d07a00"},
                    error_x={"type": "data", "array": high, "arrayminus": low, "thickness": 1.4, "width": 3},
                )
            )
    split = "test" if "test" in standing.anchors else "dev"
    for name, level in standing.anchors.get(split, {}).items():
        figure.add_trace(
            go.Scatter(
                x=[round(level, 5)] * 2,
                y=[names[0], names[-1]],
                mode="lines",
                name=f"{ANCHOR_TEXT[name]} ({split})",
                line={"color": "#777", "width": 1, "dash": ANCHOR_DASH[name]},
                hovertemplate="%{x:.3f}",
            )
        )
    figure.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=names)
    figure.update_xaxes(title="held-out loss (nats per token)")
    _finish(figure, 190 + 26 * len(names), "xaxis.type")
    figure.update_layout(hovermode="closest")
    return figure


def _finish(figure: go.Figure, height: int, axis: str) -> None:
    buttons = [{"label": kind, "method": "relayout", "args": [{axis: kind}]} for kind in ("linear", "log")]
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 60, "r": 20, "t": 70, "b": 50},
        hovermode="x unified",
        legend={"tracegroupgap": 0},
        updatemenus=[
            {"type": "buttons", "direction": "right", "buttons": buttons, "x": 0, "xanchor": "left", "y": 1.12}
            | {"yanchor": "bottom", "pad": {"b": 4}}
        ],
    )


def _color(place: int, n: int) -> str:
    """Grey for the baseline, then along a perceptually even scale."""
    return "#999999" if place == 0 else sample_colorscale("Viridis", [0.9 * (n - 1 - place) / max(n - 1, 1)])[0]


def _digits(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
