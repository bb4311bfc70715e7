"""Positions: the sinusoids, what their dot products say of distance, and what permuting tokens changes."""

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
from hectogpt.explore.pages.view import Note, Quantities, Quantity, View

TOKENS, WIDTH = 12, 16  # of the permuted block
SENTENCES = ("the dog bit the man", "the man bit the dog")


@dataclass(frozen=True)
class Order:
    """What the controls set: T positions of d dimensions, a distance, and the block's mask and positions."""

    T: int = 64
    d: int = 32
    distance: int = 10
    causal: bool = False
    positions: bool = False


@functools.cache
def gap(causal: bool, added: bool) -> float:
    """max |Z(PX) - P Z(X)| of the question's block."""
    return positions.equivariance_gap(TOKENS, WIDTH, causal=causal, positions=added)


@functools.cache
def decoder_gap(causal: bool) -> float:
    """The same of one layer of the package's model without positions."""
    return positions.decoder_equivariance_gap(1, TOKENS, causal=causal)


@functools.cache
def sentence_gap(added: bool) -> float:
    """Largest change of the block's mean output when dog and man change places."""
    first, second = positions.bag_of_words(SENTENCES, positions=added)
    return float(np.abs(first - second).max())


def view(s: Order) -> View:
    """Everything of the page. Raises UserError for an odd or unreasonable d or T."""
    positions.need_even(s.d)
    positions.need_length(s.T, 2)
    if s.d > 1024 or s.T > 4096 or not 0 <= s.distance <= 100_000:
        raise UserError(f"T = {s.T}, d = {s.d}", why="the page draws up to 4,096 positions of 1,024", code=USAGE)
    chosen = gap(s.causal, s.positions)
    text = (
        f"A block of attention and feed-forward reads {TOKENS} tokens, then the same tokens in another order. "
        f"With {'a causal' if s.causal else 'a full'} mask and {'sinusoids' if s.positions else 'no positions'}, "
        "its output "
        + (
            "moves with the tokens and changes in nothing else: the block does not see order."
            if chosen < 1e-9
            else "changes: it sees order."
        )
        + f" Without positions and under a full mask, “{SENTENCES[0]}” and “{SENTENCES[1]}” are the same to it."
    )
    blocks = (Note(text), _bars(s), _order_numbers(s, chosen), _heat_map(s), _similarity(s), _distance_numbers(s))
    return View("Positions", blocks)


def _order_numbers(s: Order, chosen: float) -> Quantities:
    rows = (
        Quantity("gap", "max |Z(PX) − P Z(X)|, as chosen", chosen, ".3g"),
        Quantity("decoder_gap", "the same of this package's block, no positions", decoder_gap(s.causal), ".3g"),
        Quantity("sentences", "the two sentences' mean outputs, full mask", sentence_gap(s.positions), ".3g"),
    )
    return Quantities("Order", rows)


def _bars(s: Order) -> Drawing:
    """The gap on a logarithmic scale for the four combinations; the chosen one is orange."""
    rows = [(c, p, gap(c, p)) for c, p in product((False, True), (False, True))]
    words = [f"{'causal' if c else 'full'} mask, {'sinusoids' if p else 'no positions'}" for c, p, _ in rows]
    alt = "Change by permuting. " + "; ".join(f"{w}: {g:.2g}" for w, (_, _, g) in zip(words, rows, strict=True)) + "."
    marks = [(float(e), f"1e{e}") for e in (-16, -12, -8, -4, 0)]
    panel = Panel(
        "Change by permuting the tokens", alt, (-17, 2), (0, 4), x="max |Z(PX) − P Z(X)|", xticks=marks, yticks=()
    )
    for i, (c, p, value) in enumerate(rows):
        x, y = panel.at(-17, 3.5 - i)
        end = panel.at(max(math.log10(max(value, 1e-17)), -16.8), 0)[0]
        role: Role = "orange" if (c, p) == (s.causal, s.positions) else "blue"
        panel.drawing.add(Box(x, y - 4, end - x, 18, role, 1, f"{words[i]}: {value:.3g}"))
        panel.drawing.add(Text(x + 2, y - 9, f"{words[i]}: {value:.2g}", "ink", 12, bold=role == "orange"))
    return panel.drawing


def _heat_map(s: Order) -> Drawing:
    phi = positions.sinusoids(s.T, s.d)
    alt = (
        f"Phi for {s.T} positions, left to right, and {s.d} dimensions, top to bottom: blue positive, orange negative. "
        f"The first pair turns once in 6.3 positions, the last in {2 * math.pi / positions.frequencies(s.d)[-1]:,.0f}."
    )
    panel = Panel(f"Φ, T = {s.T}, d = {s.d}", alt, (0, s.T), (s.d, 0), x="position t", y="dimension", yticks=_rows(s.d))
    panel.image(phi.T)
    return panel.drawing


def _rows(d: int) -> list[tuple[Real, str]]:
    return [(float(v), str(v)) for v in range(0, d + 1, max(1, d // 4))]


def _similarity(s: Order) -> Drawing:
    far = max(4 * s.T, 2 * s.distance, 20)
    apart = np.unique(np.linspace(0, far, 400).astype(int))
    relative = positions.similarity(apart, s.d) / (s.d / 2)
    here = float(positions.similarity(np.array([s.distance]), s.d)[0] / (s.d / 2))
    alt = (
        f"Dot product of two embeddings over their distance, relative to distance 0: it falls from 1 and wavers; "
        f"{here:.3f} at distance {s.distance}. Dashed: the limit of many dimensions."
    )
    low = min(-0.5, math.floor(5 * float(relative.min())) / 5)
    panel = Panel("Dot product by distance", alt, (0, far), (low, 1), x="distance t − s", y="Φ(s)·Φ(t) / (d/2)")
    panel.line(apart, relative, "blue")
    panel.line(apart[1:], positions.similarity_limit(apart[1:].astype(float)), "muted", dashed=True)
    panel.dots([(s.distance, here)], "orange", 6)
    return panel.drawing


def _distance_numbers(s: Order) -> Quantities:
    apart = np.array([s.distance])
    product_ = float(positions.similarity(apart, s.d)[0])
    table = positions.sinusoids(s.T, s.d)
    moved = positions.sinusoids_at(np.arange(s.T) + s.distance, s.d)
    residue = float(np.abs(moved - table @ positions.rotation(s.distance, s.d).T).max())
    pair = positions.nearest_pair(s.T, s.d)
    rows = (
        Quantity("similarity", f"Φ(t)·Φ(t + {s.distance})", product_),
        Quantity("relative", "  relative to distance 0", product_ / (s.d / 2)),
        Quantity("distance", f"|Φ(t) − Φ(t + {s.distance})|", float(positions.distances(apart, s.d)[0])),
        Quantity("residue", f"max |Φ(t + {s.distance}) − R Φ(t)|, R one rotation", residue, ".2g"),
        Quantity("nearest", f"nearest two positions below T: {pair.s} and {pair.t}", pair.distance),
    )
    return Quantities("Distance", rows)
