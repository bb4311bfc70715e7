"""The picture the assignment asks for: training loss and gradient norm by step, a reference curve behind in grey."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def plot_run(
    path: Path,
    losses: Sequence[float],
    grad_norms: Sequence[float],
    title: str,
    baseline: tuple[Sequence[float], Sequence[float]] | None = None,
    levels: dict[str, float] | None = None,
) -> None:
    """Write a PNG with two panels. `baseline` holds (losses, gradient norms); `levels` are dotted lines on the loss,
    drawn where the curve comes within a nat of them."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=11)
    panels = (
        (left, "training loss (nats per token)", losses, baseline[0] if baseline else None),
        (right, "gradient norm before clipping", grad_norms, baseline[1] if baseline else None),
    )
    for axes, label, values, behind in panels:
        if behind:
            axes.plot(range(1, len(behind) + 1), behind, color="0.65", linewidth=1.5, label="baseline")
        axes.plot(range(1, len(values) + 1), values, color="#0b5fa5", linewidth=1.8, label="this run")
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel(label)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    right.set_yscale("log")
    right.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    if max(grad_norms) < 4 * min(grad_norms):
        right.yaxis.set_minor_formatter(FormatStrFormatter("%g"))
    else:
        right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        right.yaxis.set_minor_formatter(NullFormatter())
    for name, level in (levels or {}).items():
        if min(losses) > level + 1:
            continue
        left.axhline(level, color="0.35", linewidth=0.9, linestyle=":")
        left.annotate(
            f"{name} {level:.2f}",
            (1, level),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color="0.35",
        )
    if baseline:
        left.legend(frameon=False, fontsize=9, loc="center right")
    figure.savefig(path, dpi=140)
