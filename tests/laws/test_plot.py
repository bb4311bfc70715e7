"""The picture of a run: two panels, and labels of levels beside the curves and not on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from hectogpt.training.plot import draw_levels, plot_curve, plot_run

LEVEL = 6.79


def covered(losses: list[float], levels: dict[str, float]) -> int:
    """How many points of the curve lie inside a label, as drawn."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)[0]
    plot_curve(axes, losses, "k", 1.8)
    draw_levels(axes, levels)
    figure.draw_without_rendering()
    steps = np.linspace(1, len(losses), 2000)
    points = axes.transData.transform(np.stack([steps, np.interp(steps, range(1, len(losses) + 1), losses)], axis=1))
    boxes = [text.get_window_extent() for text in axes.texts]
    frame = axes.get_window_extent()
    assert all(box.y0 >= frame.y0 - 1 and box.y1 <= frame.y1 + 1 for box in boxes), "inside the panel"
    return sum(int(box.contains(*point)) for box in boxes for point in points)


@pytest.mark.parametrize("steps", [2, 6, 20, 100, 300])
@pytest.mark.parametrize("end", [2.4, 4.6, 6.7, 6.79, 6.9, 7.7])
def test_labels_do_not_lie_on_the_curve(steps: int, end: float) -> None:
    losses = end + (10.83 - end) * np.exp(-np.arange(steps) / max(steps / 5, 0.5))
    assert covered(losses.tolist(), {"unigram counts": LEVEL}) == 0


def test_a_picture_is_written(tmp_path: Path) -> None:
    """Of one step and of many, with and without a baseline; the same bytes twice."""
    for steps in (1, 7):
        losses, norms = [10.8 - 0.3 * i for i in range(steps)], [1.0 + 0.1 * i for i in range(steps)]
        for baseline in (None, ([10.8] * 9, [1.2] * 9)):
            paths = [tmp_path / f"{i}.png" for i in range(2)]
            for path in paths:
                plot_run(path, losses, norms, "a run", baseline, [(2, 9.0), (5, 8.0)], {"unigram counts": LEVEL})
            assert paths[0].read_bytes().startswith(b"\x89PNG")
            assert paths[0].read_bytes() == paths[1].read_bytes()
