"""A run for people: the fields in which it differs from its recipe."""

from __future__ import annotations

import json
from typing import Any

from hectogpt.display import facts_html, facts_text
from hectogpt.errors import UserError
from hectogpt.lab import ideas, recipes
from hectogpt.serialization import diff
from hectogpt.training.run import Run

LONGEST = 60  # characters of a value that are shown


def recipe_of(run: Run) -> Run | None:
    """The recipe that a run's name says it is; None for a name that is no recipe's."""
    try:
        return recipes.recipe(run.recipe)
    except UserError:
        return None


def base_of(run: Run) -> Run:
    """What a run is shown as a difference to: its recipe; for an idea what it was applied to; else the baseline."""
    own = recipe_of(run)
    if own is None and ideas.is_idea(run.recipe):
        return recipes.recipe(ideas.base_name(run.recipe))
    return own or recipes.recipe("baseline")


def changes(before: Run, after: Run) -> dict[str, str]:
    """Dotted field -> "before -> after" in short words, the recipe's name and the hashes of ideas aside."""
    found = {path: pair for path, pair in diff(before, after).items() if path.split(".")[0] not in ("recipe", "ideas")}
    return {path: f"{short(old)} -> {short(new)}" for path, (old, new) in found.items()}


def short(value: Any) -> str:
    """A dumped value in few characters."""
    text = _words(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _words(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{name}={_words(item)}" for name, item in value.items() if name != "type")
        return f"{value.get('type', '')}({inner})"
    if isinstance(value, list):
        return "[" + ", ".join(map(_words, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value, allow_nan=False)


def _title(run: Run, base: Run) -> str:
    return run.recipe if run.recipe == base.recipe else f"{run.recipe}, beside {base.recipe}"


def run_text(run: Run) -> str:
    """What `print(run)` shows."""
    base = base_of(run)
    found = changes(base, run)
    return facts_text(f"Run {_title(run, base)}: {_count(found)}", found)


def run_html(run: Run) -> str:
    """What a notebook shows."""
    base = base_of(run)
    found = changes(base, run)
    return facts_html(f"Run {_title(run, base)}: {_count(found)}", found)


def _count(found: dict[str, str]) -> str:
    return f"{len(found)} field{'' if len(found) == 1 else 's'} changed" if found else "as the recipe says"
