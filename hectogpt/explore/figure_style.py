"""The look of the figures of the written answers.

The same code writes the same bytes: SVG without a date, with a fixed salt for identifiers and text as outlines. The
colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
STYLE: Any = {  # names that matplotlib knows, values of many types
    "svg.hashsalt": "hectogpt",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "mathtext.fontset": "dejavusans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.wspace": 0.06,
}


def make_panels(columns: int, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    """A figure 7.4 inches wide with one row of axes."""
    figure = Figure(figsize=(7.4, height))
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])
