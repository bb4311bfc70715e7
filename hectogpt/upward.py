"""The few calls that go up to hectogpt.api, by name, so that all imports can point down.

`hectogpt.train(run)` is one. Importing any module below hectogpt/train/ makes `hectogpt.train` that package, whatever
it was before; so the package itself is what is called, and `hectogpt.generate` likewise. The other: a run shows itself
as the difference to a recipe, which is known in the lab.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


def call_api(module: str, function: str, *arguments: Any, **options: Any) -> Any:
    """Call a function of hectogpt.api.MODULE, which is imported now."""
    return getattr(importlib.import_module(f"hectogpt.api.{module}"), function)(*arguments, **options)


class TrainPackage(ModuleType):
    """The package hectogpt.train; as a function it is hectogpt.api.training.train."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Train a run; see hectogpt.api.training.train."""
        return call_api("training", "train", *arguments, **options)


class GeneratePackage(ModuleType):
    """The package hectogpt.generate; as a function it is hectogpt.api.models.generate."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Continue a text; see hectogpt.api.models.generate."""
        return call_api("models", "generate", *arguments, **options)
