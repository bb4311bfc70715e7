"""plot_results: one picture with two panels."""

import matplotlib

matplotlib.use("Agg")  # no windows

import train as file
from checking import check
from watch import draw


def test_picture():
    """Two panels with a title and named axes: the losses, and the gradient norms. One step can be drawn, too."""
    fault = draw(file.plot_results).fault()
    check(not fault, fault)
