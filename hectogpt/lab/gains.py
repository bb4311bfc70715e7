"""Paired differences as gains, the first loss minus the other: positive is better. In numbers, and as texts of cells.

`statistics.Paired` is the new loss minus the old, as tests of hypotheses are written; people are shown gains.
"""

from __future__ import annotations

from typing import Any

from hectogpt.lab.statistics import Paired, Summary


def gain_of(pair: Paired) -> float:
    """The mean gain, nats per token."""
    return 0.0 - pair.difference  # not -difference, which may be -0.0


def interval_of(pair: Paired) -> tuple[float, float] | None:
    """The 95 % interval of the gain; None where there is none."""
    return None if pair.low is None or pair.high is None else (0.0 - pair.high, 0.0 - pair.low)


def gain_json(pair: Paired) -> dict[str, Any]:
    """A pair's fields as plain values."""
    low, high = interval_of(pair) or (None, None)
    facts = {name: getattr(pair, name) for name in ("p", "sd", "noise_floor", "verdict")}
    return {"n": pair.n, "gain": gain_of(pair), "low": low, "high": high, **facts}


def gain_text(pair: Paired) -> str:
    """ "+0.0055 [-0.0906, +0.1017]"."""
    interval = interval_of(pair)
    return f"{gain_of(pair):+.4f}" + (f" [{interval[0]:+.4f}, {interval[1]:+.4f}]" if interval else "")


def p_text(pair: Paired) -> str:
    """The p-value with one digit; "" for a single pair."""
    return "" if pair.p is None else f"{pair.p:.1g}"


def mean_text(losses: Summary) -> str:
    """ "2.4061 ± 0.0031"."""
    return f"{losses.mean:.4f}" + (f" ± {losses.sd:.4f}" if losses.sd is not None else "")


def gain_cells(pair: Paired | None, noise: bool = False) -> list[str]:
    """Gain with its interval, p, the noise floor if `noise`, and the verdict; empty cells for an arm without a pair."""
    if pair is None:
        return [""] * (4 if noise else 3)
    floor = "" if pair.noise_floor is None else f"{pair.noise_floor:.4f}"
    return [gain_text(pair), p_text(pair), *([floor] if noise else []), pair.verdict]
