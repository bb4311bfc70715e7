"""runs/NAME: what one training run leaves behind, readable without this program.

run.json (what was asked and what the machine chose), metrics.jsonl (a line a step, written as it happens),
losses_and_grad_norms.png, model.safetensors with config.json, summary.json (written last: its presence means done).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TextIO

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.model.folder import write_text
from hectogpt.train.loop import Score, Step
from hectogpt.train.machine import Machine, peak_memory_mb
from hectogpt.train.run import Run
from hectogpt.values import dump


class RunFolder:
    """An open run folder; use as a context manager."""

    def __init__(self, path: Path, run: Run, machine: Machine, modified: bool) -> None:
        self.path, self.run = path, run
        try:
            path.mkdir(parents=True, exist_ok=True)
            record = {"run": dump(run), "modified": modified, "machine": machine.describe()}
            write_text(path / "run.json", json.dumps(record, indent=2, allow_nan=False) + "\n")
            self._metrics: TextIO = open(path / "metrics.jsonl", "w", encoding="utf-8", buffering=1)  # noqa: SIM115
        except OSError as error:
            raise UserError(
                f"cannot write to {path}",
                why=error.strerror or str(error),
                fix="--out with a folder you may write to",
                code=errors.STORAGE,
            ) from None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()

    def add(self, step: Step) -> None:
        """Append one step to metrics.jsonl."""
        self._write(
            {
                "run": self.path.name,
                "recipe": self.run.recipe,
                "seed": self.run.seed,
                "step": step.step,
                "tokens": step.tokens,
                "train/loss": step.loss,
                "train/grad_norm": step.grad_norm,
                "train/lr": step.lr,
                "train/dt": step.seconds,
                "train/tok_per_sec": self.run.data.batch_size * self.run.data.window / step.seconds,
                "mem_mb": round(peak_memory_mb(), 1),
            }
        )

    def add_score(self, step: int, score: Score) -> None:
        """Append a held-out score to metrics.jsonl."""
        self._write({"run": self.path.name, "step": step, "val/loss": score.loss, "val/bpb": score.bits_per_byte})

    def _write(self, row: dict[str, Any]) -> None:
        try:
            self._metrics.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write to {self.path / 'metrics.jsonl'}",
                why=error.strerror or str(error),
                kept="the rows written so far",
                code=errors.STORAGE,
            ) from None

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        write_text(self.path / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")


def choose_folder(out: Path | None, recipe: str, root: Path = Path("runs")) -> Path:
    """The folder for a new run: `out`, or runs/RECIPE, runs/RECIPE-2 ... Refuses one that already holds a run."""
    if out is not None:
        if (out / "run.json").exists():
            raise UserError(
                f"{out} already holds a run",
                fix=f"another --out, or remove {out} first",
                kept="the old run, untouched",
            )
        return out
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", recipe):
        raise UserError(f"{recipe!r} cannot be a folder's name", fix="--out DIR")
    names = [recipe] + [f"{recipe}-{n}" for n in range(2, 10000)]
    return next(root / name for name in names if not (root / name).exists())
