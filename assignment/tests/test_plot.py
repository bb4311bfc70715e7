"""plot_results: one picture with two panels."""

import tempfile
from pathlib import Path
from unittest.mock import patch

import matplotlib

matplotlib.use("Agg")  # no windows

import matplotlib.figure
import matplotlib.pyplot as plt
import train as file
from checking import check

LOSSES, NORMS = [4.0, 3.5, 3.75, 2.0, 1.5], [1.0, 7.0, 2.5, 6.0, 0.5]


def draw(losses, norms):
    """Call plot_results; the figure that was saved, and the bytes of the file."""
    saved, save = [], matplotlib.figure.Figure.savefig

    def savefig(figure, *args, **kwargs):
        saved.append([describe(axes) for axes in figure.axes])
        return save(figure, *args, **kwargs)

    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(matplotlib.figure.Figure, "savefig", savefig),
        patch.object(plt, "show", lambda *args, **kwargs: plt.close("all")),  # as when a window has been closed
    ):
        path = Path(folder) / "picture.png"
        file.plot_results(losses, norms, path)
        check(path.is_file(), "nothing was written to save_path")
        check(len(saved) == 1, f"{len(saved)} pictures were saved, expected one")
        return saved[0], path.read_bytes()


def describe(axes):
    return {
        "curves": [[float(y) for y in line.get_ydata()] for line in axes.get_lines()],
        "title": axes.get_title() or axes.get_title("left") or axes.get_title("right"),
        "labels": [axes.get_xlabel(), axes.get_ylabel()],
    }


def test_picture():
    panels, content = draw(LOSSES, NORMS)
    check(content[:8] == b"\x89PNG\r\n\x1a\n", "the file is not a PNG")
    check(len(panels) == 2, f"the saved picture has {len(panels)} panels, expected 2; is it saved after show()?")
    for panel, numbers, name in zip(panels, (LOSSES, NORMS), ("losses", "gradient norms"), strict=True):
        check(numbers in panel["curves"], f"no curve of the panel shows the {name}")
    for number, panel in enumerate(panels, 1):
        check(bool(panel["title"]), f"panel {number} has no title")
        check(all(panel["labels"]), f"an axis of panel {number} has no name")


def test_one_step():
    draw([2.0], [1.0])


def test_no_figure_is_left_open():
    plt.close("all")
    draw(LOSSES, NORMS)
    check(not plt.get_fignums(), "a figure was left open: plt.close(figure), or matplotlib.figure.Figure")
