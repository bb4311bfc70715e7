"""The folder that a training run leaves behind, readable without this program.

run.json (what was asked and what the machine chose), metrics.jsonl (a line a step, written as it happens),
losses_and_grad_norms.png, model.safetensors with config.json, summary.json (written last: its presence means done).
A run that comes from the user's own file has a copy of it, idea.py, which nothing ever imports unasked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from hectogpt import errors, hardware
from hectogpt.errors import UserError
from hectogpt.files import write_atomic
from hectogpt.idea_file import IdeaFile
from hectogpt.serialization import dump
from hectogpt.train.evaluate import EvalResult
from hectogpt.train.loop import Step
from hectogpt.train.precision import Machine
from hectogpt.train.run import Run, load_run

RUN, METRICS, SUMMARY = "run.json", "metrics.jsonl", "summary.json"


class RunFolder:
    """A run folder that this process has taken. Use as a context manager."""

    def __init__(self, path: Path, run: Run, modified: bool) -> None:
        self.path, self.run, self.modified = path, run, modified
        self.ideas: list[dict[str, str]] = []
        self._metrics: TextIO | None = None

    @classmethod
    def create(
        cls, run: Run, modified: bool, name: str, out: Path | None = None, root: Path = Path("runs")
    ) -> RunFolder:
        """Take a folder for a new run: `out`, or root/name, root/name-2 ...

        The folder is taken when its run.json is created, which only one process can do; two runs that start together
        never share one. Raises UserError for a folder that holds a run or cannot be written.
        """
        if out is None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise UserError(f"{name!r} cannot be a folder's name", fix="set out to a folder")
        text = _render({"run": dump(run), "modified": modified})
        names = [name, *(f"{name}-{n}" for n in range(2, 10000))]
        for path in [out] if out is not None else [root / name for name in names]:
            try:
                path.mkdir(parents=True, exist_ok=out is not None)
                with open(path / RUN, "x", encoding="utf-8") as file:
                    file.write(text)
                return cls(path, run, modified)
            except FileExistsError as error:
                if out is not None and not (path / RUN).exists():
                    raise _unwritable(path, error) from None  # the folder's name is a file's
            except OSError as error:
                raise _unwritable(path, error) from None
        raise UserError(
            f"{out or root / name} already holds a run",
            why=f"it has a {RUN}",
            fix=f"set out to another folder, or remove {out or root / name} first",
            kept="the old run, untouched",
        )

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._metrics is not None:
            self._metrics.close()

    def keep_ideas(self, ideas: Sequence[IdeaFile]) -> None:
        """Copy the user's own files that made the run, and name them in run.json. Call it before `begin`."""
        for number, idea in enumerate(ideas, start=1):
            name = "idea.py" if number == 1 else f"idea_{number}.py"
            idea.keep(self.path / name)
            self.ideas.append({"file": name, "path": str(idea.path), "sha256": idea.sha256})

    def begin(self, machine: Machine) -> None:
        """Write what the machine chose, and open metrics.jsonl."""
        record = {"run": dump(self.run), "modified": self.modified, "machine": machine.describe()}
        write_atomic(self.path / RUN, _render(record | ({"ideas": self.ideas} if self.ideas else {})))
        try:
            self._metrics = open(self.path / METRICS, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
        except OSError as error:
            raise _unwritable(self.path, error) from None

    def add(self, step: Step) -> None:
        """Append one step to metrics.jsonl."""
        self._write(
            {
                "run": self.path.name,
                "recipe": self.run.recipe,
                "seed": self.run.seed,
                "step": step.number,
                "tokens": step.tokens,
                "train/loss": step.loss,
                "train/grad_norm": step.grad_norm,
                "train/lr": step.lr,
                "train/dt": step.seconds,
                "train/tok_per_sec": self.run.data.batch_size * self.run.data.seq_len / step.seconds,
                "mem_mb": round(hardware.peak_memory_mb(), 1),
            }
        )

    def add_score(self, step: int, score: EvalResult) -> None:
        """Append a held-out score to metrics.jsonl."""
        self._write({"run": self.path.name, "step": step, "val/loss": score.loss, "val/bpb": score.bits_per_byte})

    def _write(self, row: dict[str, Any]) -> None:
        assert self._metrics is not None, "begin() first"
        try:
            self._metrics.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write to {self.path / METRICS}",
                why=error.strerror or str(error),
                kept="the rows written so far",
                code=errors.STORAGE,
            ) from None

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        write_atomic(self.path / SUMMARY, _render(summary))


def read_run(folder: Path) -> Run:
    """The Run of a run folder, from its run.json. Raises UserError (CHECKPOINT) that names what does not fit."""
    path = folder / RUN
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return load_run(record["run"])
    except UserError as error:
        raise UserError(f"{path}: {error.what}", why=error.why, fix=error.fix, code=errors.CHECKPOINT) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not a run's record"
        fix = "name a folder that `hectogpt train` wrote"
        raise UserError(f"cannot read {path}", why=why or str(error), fix=fix, code=errors.CHECKPOINT) from None


def _render(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write to {path}",
        why=error.strerror or str(error),
        fix="set out to a folder you may write to",
        code=errors.STORAGE,
    )
