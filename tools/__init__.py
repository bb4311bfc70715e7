"""Tools for the repository; they serve no user."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
