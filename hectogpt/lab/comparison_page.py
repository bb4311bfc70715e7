"""One offline page about a comparison: verdicts, curves, table, what differs, and the source of the ideas.

The page has no script and asks for nothing outside it; its own policy forbids that too. It adapts to the width of the
window and to the dark mode of the system. Records are data: every text from them is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from hectogpt import __version__
from hectogpt.display import NGRAMS, printable, value_text
from hectogpt.files import write_atomic
from hectogpt.lab.compare import Comparison, Result, ngram_means, short_name
from hectogpt.lab.curves_svg import Curve, Level, draw_chart
from hectogpt.lab.gains import gain_cells, gain_of, mean_text
from hectogpt.lab.ideas import files_of
from hectogpt.lab.record import Record, differences
from hectogpt.lab.statistics import LEAST_DIFFERENCE
from hectogpt.lab.verdict import Verdict

LONGEST_SOURCE = 100_000  # characters of an idea that are shown

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
# Plain rules for the light theme and the same names again for the dark one.
STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1.2rem; color: #1a1a1a;
       background: #fff; overflow-wrap: anywhere }
h1 { font-size: 1.7rem; line-height: 1.25 } h2 { margin-top: 2.2rem; font-size: 1.25rem } p, li { max-width: 48rem }
.quiet { color: #5c6370 } .card { border-left: 4px solid #8a8f98; padding: .2rem 0 .2rem 1rem; margin: 1.2rem 0 }
.card b { display: block; text-transform: uppercase; font-size: .8rem; letter-spacing: .06em }
.better { border-color: #00795c } .worse { border-color: #b02a2a } .tie, .unproven { border-color: #b8860b }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem 2rem }
figure { margin: 0 } figcaption { font-weight: 600; margin-bottom: .3rem } svg { width: 100%; height: auto }
svg text { font-size: 13px; fill: #3c4043 } .level { stroke: #777; stroke-dasharray: 2 4 } .grid { stroke: #e4e4e4 }
.zero { stroke: #8a8f98 } .halo { paint-order: stroke; stroke: #fff; stroke-width: 4px }
svg text[class*=' c'] { fill: currentColor } .level[class*=' c'] { stroke: currentColor }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; padding: 0; list-style: none }
.legend i { display: inline-block; width: 1.6rem; border-top: 3px solid; vertical-align: middle; margin-right: .5rem }
.legend i.dashed { border-top-style: dashed }
.c0 { color: #767b84 } .c1 { color: #0b5fa5 } .c2 { color: #c65d00 } .c3 { color: #00795c } .c4 { color: #8a3ea8 }
.c5 { color: #b02a2a } .c6 { color: #7a6a00 }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem .3rem 0; text-align: right; vertical-align: top; border-bottom: 1px solid #e4e4e4;
         white-space: nowrap; overflow-wrap: normal }
th { font-weight: 600; border-bottom-color: #888 }
.w { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 9em } .w:first-child { min-width: 12em }
pre { overflow-x: auto; padding: .8rem 1rem; background: #f5f6f7; font-size: 13px; line-height: 1.45;
      overflow-wrap: normal } code { font-size: 13px }
@media (max-width: 700px) { body { margin: 1rem auto; padding: 0 .8rem } h1 { font-size: 1.35rem }
  svg text { font-size: 22px } .w { min-width: 7em } .w:first-child { min-width: 9em } }
@media (prefers-color-scheme: dark) {
  body { color: #e6e6e6; background: #15181c } .quiet { color: #9aa0a8 } pre { background: #1f242a }
  th, td { border-bottom-color: #33383f } .grid { stroke: #2b3037 } svg text { fill: #c9cdd2 }
  .halo { stroke: #15181c } .level { stroke: #8a8f98 } .c0 { color: #9aa0a8 } .c1 { color: #62b0f0 }
  .c2 { color: #f0a840 } .c3 { color: #4fd0a5 } .c4 { color: #d08cf0 } .c5 { color: #ff8080 } .c6 { color: #d8c860 } }
"""


def write_page(
    path: Path,
    comparison: Comparison,
    results: Sequence[Result],
    verdicts: Sequence[Verdict],
    notes: Sequence[str] = (),
    told: str = "",
) -> None:
    """Write the page. notes: what went wrong. told: why the seeds ended. Raises UserError (STORAGE)."""
    write_atomic(path, render_page(comparison, results, verdicts, notes, told))


def render_page(
    comparison: Comparison,
    results: Sequence[Result],
    verdicts: Sequence[Verdict],
    notes: Sequence[str] = (),
    told: str = "",
) -> str:
    """The page as text. results: at least one; the first is what the others are compared to."""
    first, *others = results
    title = f"{', '.join(result.arm.label for result in others)} against {first.arm.label}" if others else ""
    title = title or first.arm.label
    parts = [
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>",
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name=viewport content="width=device-width, initial-scale=1"><link rel=icon href="data:,">',
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{_text(title)}</h1>",
        f"<p class=quiet>{_text(_setting(comparison, first, told))}</p>",
        *(f"<p class='card {v.word}'><b>{_text(v.word)}</b>{_text(v.text)}</p>" for v in verdicts),
        _charts(comparison, results),
        "<h2>Losses</h2>",
        _losses(comparison, results),
        *_notes(notes),
        *_settings(results),
        *_ideas(results),
        f"<p class=quiet>{_text(_origin(results))}</p>",
        "</body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _text(value: object) -> str:
    """A text made safe to stand anywhere in the page."""
    return escape(printable(str(value)))


def _setting(comparison: Comparison, first: Result, told: str) -> str:
    seeds = comparison.seeds
    which = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
    facts = [short_name(comparison.corpus.name), f"{comparison.split} loss", f"track {comparison.track.name}"]
    facts += [f"{first.arm.run.steps} steps", which, *([told] if told else [])]
    return "; ".join(facts) + "."


def _origin(results: Sequence[Result]) -> str:
    """Version and commits that the trials ran with."""
    records = [record for result in results for record in result.records]
    commits = sorted({f"{r.commit[:12]}{' with changes' if r.dirty else ''}" for r in records if r.commit})
    made = sorted({f"hectoGPT {r.version}" for r in records if r.version})
    return f"Trials by {', '.join([*made, *commits]) or 'hectoGPT'}; page by hectoGPT {__version__}."


# --- curves -----------------------------------------------------------------------------------------------------------


def _charts(comparison: Comparison, results: Sequence[Result]) -> str:
    """Training loss of the arms, and the gains over the first on the same batches, as means over seeds."""
    baselines = {name: level for name, level in ngram_means(results).items() if name != "uniform"}
    levels = [Level(level, f"{NGRAMS[name]} {level:.2f}") for name, level in baselines.items()]
    losses = [Curve(mean_of(stack(r.records)), place, r.arm.label) for place, r in enumerate(results)]
    figures = [_figure("Training loss, nats per token", draw_chart(losses, levels, log=True))]
    gains, held_out = [], []
    for place, result in enumerate(results[1:], start=1):
        gains.append(Curve(mean_of(gain_curves(result.records, results[0].records)), place, result.arm.label))
        if result.to_first is not None:
            gain = gain_of(result.to_first)
            held_out.append(Level(gain, f"{comparison.split} {gain:+.3f}", place))
    if gains:
        name = f"Gain over {results[0].arm.label} batch by batch, nats per token (above 0 is better)"
        figures.append(_figure(name, draw_chart(gains, held_out)))
    legend = "".join(
        f"<li><i class='{curve.style}{' dashed' if curve.dashed else ''}'></i>{_text(curve.label)}</li>"
        for curve in losses
    )
    note = (
        f"Means over seeds. Dotted: n-gram baselines of the same tokens on the {comparison.split} text, and the gain "
    )
    note += f"on the {comparison.split} text."
    return (
        f"<h2>Curves</h2><ul class=legend>{legend}</ul><div class=charts>{''.join(figures)}</div>"
        f"<p class=quiet>{_text(note)}</p>"
    )


def _figure(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{_text(caption)}</figcaption>{svg}</figure>"


def stack(records: Sequence[Record]) -> np.ndarray:
    """[seeds, steps]: training losses, NaN where a curve ends early or holds something that is no finite number."""
    steps = max((len(record.losses) for record in records), default=0)
    curves = np.full((len(records), steps), np.nan)
    for row, record in zip(curves, records, strict=True):
        row[: len(record.losses)] = [float(v) if isinstance(v, (int, float)) else np.nan for v in record.losses]
    curves[~np.isfinite(curves)] = np.nan
    return curves


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


# --- tables -----------------------------------------------------------------------------------------------------------


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], wide: Sequence[int] = (0,)) -> str:
    """A table that scrolls by itself where the window is narrow. wide: columns of text."""
    kinds = [" class=w" if place in wide else "" for place in range(len(header))]
    head = "".join(f"<th{kind}>{_text(name)}</th>" for kind, name in zip(kinds, header, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{_text(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _losses(comparison: Comparison, results: Sequence[Result]) -> str:
    header = ["arm", "n", f"{comparison.split} loss ± SD", "gain [95 %]", "p", "noise", "verdict"]
    header += ["s", "MiB", "parameters"]
    rows = []
    for result in results:
        cells = [result.arm.label, str(result.compared.n), mean_text(result.compared)]
        cells += gain_cells(result.to_first, noise=True)
        for name, form in (("seconds", "{:,.1f}"), ("peak_mb", "{:,.0f}"), ("params", "{:,.0f}")):
            number = result.mean(name)
            cells.append("" if number is None else form.format(number))
        rows.append(cells)
    levels = [f"{NGRAMS[name]} {level:.3f}" for name, level in ngram_means(results).items()]
    told = f"Gains are in nats per token over paired seeds, positive is better; {LEAST_DIFFERENCE} or less is a tie. "
    told += f"N-gram baselines ({comparison.split}): {', '.join(levels)}." if levels else ""
    return _table(header, rows) + f"<p class=quiet>{_text(told)}</p>"


def _notes(notes: Sequence[str]) -> list[str]:
    items = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return [f"<h2>Notes</h2><ul>{items}</ul>"] if notes else []


def _settings(results: Sequence[Result]) -> list[str]:
    """Per arm, the fields in which its run differs from the first one's."""
    parts = []
    for result in results[1:]:
        found = differences(results[0].arm.run, result.arm.run)
        rows = [[field, *(value_text(value, 1000) for value in pair)] for field, pair in found.items()]
        if rows:
            header = ["setting", results[0].arm.label, result.arm.label]
            parts.append(f"<h3>{_text(result.arm.label)}</h3>" + _table(header, rows, wide=(0, 1, 2)))
        else:
            parts.append(f"<p>{_text(result.arm.label)} differs in no setting.</p>")
    return ["<h2>What differs</h2>", *parts] if parts else []


def _ideas(results: Sequence[Result]) -> list[str]:
    """The source of every idea, once."""
    found = {idea.sha256: idea for result in results for idea in files_of(result.arm.run)}
    parts = []
    for sha256, idea in found.items():
        source, more = idea.source[:LONGEST_SOURCE], len(idea.source) - LONGEST_SOURCE
        left_out = f"<p>{more:,} characters more are not shown.</p>" if more > 0 else ""
        parts.append(
            f"<h2>{_text(idea.path.name)}</h2><p class=quiet>SHA-256 <code>{sha256}</code></p>"
            f"<pre>{_text(source)}</pre>{left_out}"
        )
    return parts
