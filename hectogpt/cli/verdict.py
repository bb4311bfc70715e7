"""`hectogpt verdict A B`: test the losses of runs from any program."""

from __future__ import annotations

from hectogpt.cli.console import note, show
from hectogpt.cli.options import VerdictOptions
from hectogpt.errors import DataError
from hectogpt.lab.losses import plot_verdict, read_losses, verdict


def main(options: VerdictOptions) -> None:
    """Read both files, print the verdict, and draw the picture on request. Raises UserError."""
    a, a_seeded = read_losses(options.a)
    b, b_seeded = read_losses(options.b)
    if a_seeded != b_seeded and not options.unpaired:
        without = options.b if a_seeded else options.a
        raise DataError(
            f"{without} has no column 'seed', but the other file has one",
            why="runs are paired by seed",
            fix="add the seeds, or --unpaired if the runs share none",
        )
    paired = a_seeded and b_seeded and not options.unpaired
    found = (
        verdict(a, b, options.margin)
        if paired
        else verdict([*a.values()], [*b.values()], options.margin)
    )
    show(options.json, found.as_json(), [found.text(options.a, options.b)])
    if options.picture is not None:
        pairs = (
            [(a[seed], b[seed]) for seed in a if seed in b]
            if paired
            else zip(a.values(), b.values(), strict=False)
        )
        plot_verdict(
            options.picture,
            [x - y for x, y in pairs],
            options.margin,
            f"{options.b} against {options.a}",
        )
        note(f"wrote {options.picture}")
