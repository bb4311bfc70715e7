"""`python -m tools.recipes`: writes hectogpt/lab/recipes.txt, what `hectogpt train --help` says of each recipe.

The help reads this file because importing the recipes would load torch.
"""

from __future__ import annotations

from hectogpt.lab import recipes
from tools import ROOT

LIST = ROOT / "hectogpt" / "lab" / "recipes.txt"


def list_recipes() -> str:
    """A line for each recipe: its name, a tab, the first sentence about it."""
    texts = {name: " ".join(recipes.describe(name).split()) for name in recipes.RECIPES}
    return "".join(f"{name}\t{text.split('. ')[0].rstrip('.')}\n" for name, text in texts.items())


if __name__ == "__main__":
    LIST.write_text(list_recipes(), encoding="utf-8")
