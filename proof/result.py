"""What a proof reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """One promise: how often it was tried, how often it failed, in how many seconds, and what else was seen."""

    promise: str
    tries: int
    failures: int
    seconds: float
    detail: str
