"""Records of the atlas with losses that a test chooses, as `hectogpt compare` writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from helpers import ROOT

from tools.report import atlas


def arm(
    idea: atlas.Idea | None, gain: float, seeds: int = 5, text: str = "tinystories", **fields: Any
) -> list[dict[str, Any]]:
    """Trials of an idea, or of the base, with the first seeds, and with about this gain over the base."""
    lines = (ROOT / "results" / "ladder.jsonl").read_text(encoding="utf-8")
    hashes = [atlas.sha_of(atlas.base_code()), *([atlas.sha_of(idea.code)] if idea else [])]
    recipe, trials = idea.recipe if idea else atlas.BASE_RECIPE, []
    for n in range(seeds):
        made, loss = json.loads(lines.partition("\n")[0]), 3 + 0.01 * n - gain + (0.001 * (n % 3) if idea else 0)
        run = made["run"] | {"ideas": hashes, "recipe": recipe, "threads": 1, "steps": 100} | fields.get("run", {})
        made |= {"corpus": text, "recipe": recipe, "overrides": {}, "seed": atlas.FIRST_SEEDS[text] + n, "status": "ok"}
        trials.append(made | {"dev_loss": loss, "test_loss": loss} | fields | {"run": run})
    return trials


def write(path: Path, arms: Iterable[Sequence[dict[str, Any]]]) -> Path:
    """The folder, with the file of records in it."""
    path.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(made) for trials in arms for made in trials]
    (path / "atlas.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
