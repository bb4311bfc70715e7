"""The few calls that go up to hectogpt.api, by name, so that all imports can point down."""

from __future__ import annotations

import importlib
from typing import Any


def call_api(module: str, function: str, *arguments: Any, **options: Any) -> Any:
    """Call a function of hectogpt.api.MODULE, which is imported now."""
    return getattr(importlib.import_module(f"hectogpt.api.{module}"), function)(*arguments, **options)
