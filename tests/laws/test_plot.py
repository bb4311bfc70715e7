"""The picture of a run."""

from __future__ import annotations

from pathlib import Path

from hectogpt.training.plot import plot_run


def test_a_picture_is_written(tmp_path: Path) -> None:
    """Of one step and of many, with and without a baseline; the same bytes twice."""
    for steps in (1, 7):
        losses, norms = [10.8 - 0.3 * i for i in range(steps)], [1.0 + 0.1 * i for i in range(steps)]
        for baseline in (None, ([10.8] * 9, [1.2] * 9)):
            paths = [tmp_path / f"{i}.png" for i in range(2)]
            for path in paths:
                plot_run(path, losses, norms, "a run", baseline, [(2, 9.0), (5, 8.0)], {"unigram counts": 6.79})
            assert paths[0].read_bytes().startswith(b"\x89PNG")
            assert paths[0].read_bytes() == paths[1].read_bytes()
