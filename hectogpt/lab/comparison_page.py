"""What the page of a comparison shows, as data: verdicts, curves, table, and the source of the ideas.

`hectogpt/web/pages/report.js` draws it. Records are data, and stay so: the page shows every text as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hectogpt import __version__
from hectogpt.display import NGRAMS, printable
from hectogpt.lab.compare import Comparison, Result, ngram_means, result_table, short_name
from hectogpt.lab.ideas import files_of
from hectogpt.lab.record import Record
from hectogpt.lab.statistics import LEAST_DIFFERENCE
from hectogpt.lab.verdict import ComparisonResult

MOST_POINTS = 200  # of a curve
KINDS = {"better": "good", "worse": "bad"}


def page_data(comparison: Comparison, found: ComparisonResult) -> dict[str, Any]:
    """Title and blocks of the page. found: with at least one result; the first is what the others are compared to."""
    first, *others = found.results
    title = f"{', '.join(result.arm.label for result in others)} against " if others else ""
    facts = [short_name(comparison.corpus.name), f"{comparison.split} loss", f"track {comparison.track.name}"]
    facts += [f"{first.arm.run.steps} steps", f"seeds {', '.join(map(str, comparison.seeds))}"]
    facts += [*filter(None, [comparison.ended]), f"hectoGPT {__version__}"]
    notes: list[dict[str, Any]] = [{"heading": "Notes"}, {"list": [printable(note) for note in found.notes]}]
    blocks: list[dict[str, Any]] = [
        {"text": printable("; ".join(facts)), "kind": "soft"},
        *({"word": v.word, "text": printable(v.text), "kind": KINDS.get(v.word, "other")} for v in found.verdicts),
        *_charts(comparison, found.results),
        {"heading": "Losses"},
        *_losses(comparison, found.results),
        *(notes if found.notes else []),
    ]
    for idea in {idea.sha256: idea for result in found.results for idea in files_of(result.arm.run)}.values():
        blocks += [{"heading": printable(idea.path.name)}, {"text": f"SHA-256 {idea.sha256}", "kind": "soft"}]
        blocks.append({"code": printable(idea.source)})
    return {"title": printable(title + first.arm.label), "blocks": blocks}


# --- curves -----------------------------------------------------------------------------------------------------------


def _charts(comparison: Comparison, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Training loss of the arms, and the gains over the first on the same batches, as means over seeds."""
    baselines = {name: level for name, level in ngram_means(results).items() if name != "uniform"}
    levels = [{"name": f"{NGRAMS[name]} {level:.2f}", "y": level} for name, level in baselines.items()]
    losses = [curve(result.arm.label, mean_of(stack(result.records)), i) for i, result in enumerate(results)]
    charts = [chart("Training loss, a mean over seeds; dashed: n-gram models of the same tokens", losses, levels)]
    gains, held_out = [], []
    for i, result in enumerate(results[1:], 1):
        gains.append(curve(result.arm.label, mean_of(gain_curves(result.records, results[0].records)), i))
        if result.to_first is not None:
            gain = result.to_first.gain
            held_out.append({"name": f"{comparison.split} {gain:+.3f}", "y": gain})
    if gains:
        label = f"Gain over {results[0].arm.label} batch by batch (above 0 is better); dashed: on {comparison.split}"
        charts.append(chart(label, gains, held_out))
    return [{"heading": "Curves"}, *charts]


def chart(label: str, curves: list[dict[str, Any]], levels: list[dict[str, Any]]) -> dict[str, Any]:
    """A block of the page with lines over steps. levels: dashed lines."""
    names = {"label": printable(label), "xLabel": "step", "yLabel": "nats per token"}
    return {"chart": {**names, "curves": curves, "levels": levels}}


def curve(name: str, values: np.ndarray, colour: int = 0) -> dict[str, Any]:
    """At most MOST_POINTS points, each the mean of equally many steps. colour: the number of the curve's colour."""
    size = max(1, -(-len(values) // MOST_POINTS))
    blocks = [values[at : at + size] for at in range(0, len(values), size)]
    points = [[at * size + len(block), round(float(block.mean()), 5)] for at, block in enumerate(blocks)]
    return {"name": printable(name), "points": points, "colour": colour}


def stack(records: Sequence[Record], name: str = "losses") -> np.ndarray:
    """[seeds, steps]: curves of records ("losses" or "grad_norms"), NaN after the last step of a run that stopped
    early."""
    curves = [getattr(record, name) or [] for record in records]
    steps = max(map(len, curves), default=0)
    padded = [[*curve, *[np.nan] * (steps - len(curve))] for curve in curves]
    return np.array(padded, dtype=float).reshape(len(curves), steps)


def gain_curves(new: Sequence[Record], old: Sequence[Record]) -> np.ndarray:
    """[seeds, steps]: losses of `old` minus those of `new` on the same batches, for the seeds of both."""
    before = {record.seed: record for record in old}
    shared = [record for record in new if record.seed in before]
    both = stack([before[record.seed] for record in shared] + shared)
    return np.asarray(both[: len(shared)] - both[len(shared) :])


def mean_of(curves: np.ndarray) -> np.ndarray:
    """The mean over seeds of each step that any seed has."""
    known = curves[:, ~np.isnan(curves).all(axis=0)] if curves.size else curves
    return np.nanmean(known, axis=0) if known.size else np.zeros(0)


def _losses(comparison: Comparison, results: Sequence[Result]) -> list[dict[str, Any]]:
    head, rows = result_table(results, comparison.split)
    head += ["s", "MiB", "parameters"]
    for row, result in zip(rows, results, strict=True):
        row[0] = printable(row[0])
        for name, form in (("seconds", "{:,.1f}"), ("peak_mb", "{:,.0f}"), ("params", "{:,.0f}")):
            number = result.mean(name)
            row.append("" if number is None else form.format(number))
    levels = [f"{NGRAMS[name]} {level:.3f}" for name, level in ngram_means(results).items()]
    note = f"Gains are in nats per token over paired seeds, positive is better; {LEAST_DIFFERENCE} or less is a tie. "
    note += f"N-gram models ({comparison.split}): {', '.join(levels)}." if levels else ""
    return [{"table": {"head": head, "rows": rows}}, {"text": note, "kind": "soft"}]
