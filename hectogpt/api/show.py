"""A run for people: the fields in which it differs from its recipe."""

from __future__ import annotations

from hectogpt.display import facts_html, facts_text, value_text
from hectogpt.errors import UserError
from hectogpt.lab import ideas, recipes
from hectogpt.serialization import diff
from hectogpt.training.run import Run


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
    return {path: f"{value_text(old)} -> {value_text(new)}" for path, (old, new) in found.items()}


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
