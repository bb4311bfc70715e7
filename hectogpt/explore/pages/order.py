"""The page "Positions": the sinusoids, their dot products by distance, and what permuting the tokens changes."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from itertools import product

import numpy as np

from hectogpt.errors import USAGE, UserError
from hectogpt.explore import positions
from hectogpt.explore.pages.chart import Panel
from hectogpt.explore.pages.drawing import Box, Drawing, Real, Role, Text
from hectogpt.explore.pages.view import Charts, Note, Quantities, Quantity, View

TOKENS, DIMENSIONS = 12, 16  # of the permuted block
WIDTH, HEIGHT = 330, 285  # of a chart: three stand side by side
SENTENCES = ("the dog bit the man", "the man bit the dog")


@dataclass(frozen=True)
class Order:
    """Settings of the page: T positions of d dimensions, a distance, and the block's mask (`causal`) and positions."""

    T: int = 64
    d: int = 32
    distance: int = 10
    causal: bool = False
    positions: bool = False


@functools.cache
def measure_block(causal: bool, positions_added: bool) -> float:
    """max |Z(PX) - P Z(X)| of the question's block."""
    return positions.equivariance_gap(TOKENS, DIMENSIONS, causal=causal, positions=positions_added)


@functools.cache
def measure_decoder(causal: bool) -> float:
    """The same for one layer of the package's model without positions."""
    return positions.decoder_equivariance_gap(1, TOKENS, causal=causal)


@functools.cache
def compare_sentences(positions_added: bool) -> float:
    """Largest difference between the block's mean outputs for the two sentences."""
    first, second = positions.average_outputs(SENTENCES, positions=positions_added)
    return float(np.abs(first - second).max())


def view(settings: Order) -> View:
    """The page's contents. Raises UserError for an odd d, and for a d, T or distance that is out of range."""
    T, d = settings.T, settings.d
    positions.require_even(d)
    positions.require_length(T, 2)
    if d > 1024 or T > 4096 or not 0 <= settings.distance <= 100_000:
        raise UserError(f"T = {T}, d = {d}", why="the page draws up to 4,096 positions of 1,024", code=USAGE)
    gap = measure_block(settings.causal, settings.positions)
    text = (
        f"A block of attention and feed-forward reads {TOKENS} tokens, then the same tokens in another order. "
        f"With {'a causal' if settings.causal else 'a full'} mask and "
        f"{'sinusoids' if settings.positions else 'no positions'}, its output "
        + (
            "moves with the tokens and changes in nothing else: the block does not see order."
            if gap < 1e-9
            else "changes: it sees order."
        )
        + f" Without positions and under a full mask, “{SENTENCES[0]}” and “{SENTENCES[1]}” are the same to it."
    )
    charts = Charts((_draw_gaps(settings), _draw_sinusoids(T, d), _draw_similarity(settings)))
    return View("Positions", (Note(text), charts, _list_gaps(settings, gap), _list_distances(settings)))


def _list_gaps(settings: Order, gap: float) -> Quantities:
    decoder, sentences = measure_decoder(settings.causal), compare_sentences(settings.positions)
    rows = (
        Quantity("gap", "max |Z(PX) − P Z(X)|, as chosen", gap, ".3g"),
        Quantity("decoder_gap", "the same of this package's block, no positions", decoder, ".3g"),
        Quantity("sentences", "the two sentences' mean outputs, full mask", sentences, ".3g"),
    )
    return Quantities("Order", rows)


def _draw_gaps(settings: Order) -> Drawing:
    """The gaps of all four combinations on a logarithmic scale; the chosen one is orange."""
    rows = [(causal, added, measure_block(causal, added)) for causal, added in product((False, True), (False, True))]
    names = [f"{'causal' if c else 'full'} mask, {'sinusoids' if p else 'no positions'}" for c, p, _ in rows]
    alt = "Change by permuting. " + "; ".join(f"{n}: {gap:.2g}" for n, (_, _, gap) in zip(names, rows, strict=True))
    marks = [(float(e), f"1e{e}") for e in (-16, -12, -8, -4, 0)]
    panel = Panel(
        "Change by permuting the tokens",
        f"{alt}.",
        (-17, 2),
        (0, 4),
        x="max |Z(PX) − P Z(X)|",
        width=WIDTH,
        height=HEIGHT,
        left=12,
        xticks=marks,
        yticks=(),
    )
    for i, (causal, added, gap) in enumerate(rows):
        x, y = panel.to_sheet(-17, 3.5 - i)
        end = panel.to_sheet(max(math.log10(max(gap, 1e-17)), -16.8), 0)[0]
        role: Role = "orange" if (causal, added) == (settings.causal, settings.positions) else "blue"
        panel.drawing.add(Box(x, y - 4, end - x, 18, role, 1, f"{names[i]}: {gap:.3g}"))
        panel.drawing.add(Text(x + 2, y - 9, f"{names[i]}: {gap:.2g}", "ink", 12, bold=role == "orange"))
    return panel.drawing


def _draw_sinusoids(T: int, d: int) -> Drawing:
    alt = (
        f"Phi for {T} positions, left to right, and {d} dimensions, top to bottom: blue positive, orange negative. "
        f"The first pair turns once in 6.3 positions, the last in {2 * math.pi / positions.frequencies(d)[-1]:,.0f}."
    )
    marks: list[tuple[Real, str]] = [(float(row), str(row)) for row in range(0, d + 1, max(1, d // 4))]
    title, limits = f"Φ, T = {T}, d = {d}", ((0, T), (d, 0))
    panel = Panel(title, alt, *limits, x="position t", y="dimension", width=WIDTH, height=HEIGHT, yticks=marks)
    panel.image(positions.sinusoids(T, d).T)
    return panel.drawing


def _draw_similarity(settings: Order) -> Drawing:
    d, distance = settings.d, settings.distance
    far = max(4 * settings.T, 2 * distance, 20)
    apart = np.unique(np.linspace(0, far, 400).astype(int))
    relative = positions.similarity(apart, d) / (d / 2)
    here = float(positions.similarity(np.array([distance]), d)[0] / (d / 2))
    alt = (
        f"Dot product of two embeddings by their distance, relative to distance 0: it falls from 1 and wavers; "
        f"{here:.3f} at distance {distance}. Dashed: the limit of many dimensions."
    )
    low = min(-0.5, math.floor(5 * float(relative.min())) / 5)
    x, y = "distance t − s", "Φ(s)·Φ(t) / (d/2)"
    panel = Panel("Dot product by distance", alt, (0, far), (low, 1), x=x, y=y, width=WIDTH, height=HEIGHT)
    panel.line(apart, relative, "blue")
    panel.line(apart[1:], positions.similarity_limit(apart[1:].astype(float)), "muted", dashed=True)
    panel.dots([(distance, here)], "orange", 6)
    return panel.drawing


def _list_distances(settings: Order) -> Quantities:
    T, d, distance = settings.T, settings.d, settings.distance
    apart = np.array([distance])
    dot = float(positions.similarity(apart, d)[0])
    later = positions.sinusoids_at(np.arange(T) + distance, d)
    rotated = positions.sinusoids(T, d) @ positions.rotation(distance, d).T
    pair = positions.find_nearest_pair(T, d)
    rows = (
        Quantity("similarity", f"Φ(t)·Φ(t + {distance})", dot),
        Quantity("relative", "  relative to distance 0", dot / (d / 2)),
        Quantity("distance", f"|Φ(t) − Φ(t + {distance})|", float(positions.embedding_distance(apart, d)[0])),
        Quantity(
            "residue", f"max |Φ(t + {distance}) − R Φ(t)|, R one rotation", float(np.abs(later - rotated).max()), ".2g"
        ),
        Quantity("nearest", describe_nearest(pair, T), pair.distance),
    )
    return Quantities("Distance", rows)


def describe_nearest(pair: positions.NearestPair, T: int) -> str:
    """Which two positions are nearest. Of equally distant pairs, of which rounding would choose one, none is named."""
    if pair.ties == 1:
        return f"nearest two positions below T: {pair.s} and {pair.t}"
    apart = pair.t - pair.s
    which = "any two neighbours" if apart == 1 else f"any two that are {apart} apart"
    return f"nearest two positions below T = {T}: {which}"
