"""A run's tracker: TensorBoard gets what metrics.jsonl gets, and the run's fields.

It works in the run's own process. If it raises, that is said once, and the run goes on without it.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from hectogpt.errors import UserError


def check_installed() -> None:
    """Raises UserError if TensorBoard is not there."""
    if importlib.util.find_spec("tensorboard") is None:
        fix = "python -m pip install 'hectogpt[tensorboard]'"
        raise UserError(
            "the tracker tensorboard is not installed", fix=fix, kept="nothing was begun"
        )


class Tracker:
    """Event files in RUN/tensorboard, if they are wanted. fields: what the run is made of, plain
    values. step: how many are done. note: is called with a line if something fails, and at the end
    about where to look."""

    def __init__(
        self,
        wanted: bool,
        folder: Path,
        fields: dict[str, Any],
        step: int,
        note: Callable[[str], None],
    ) -> None:
        self._works = wanted
        self._folder = folder.resolve()
        self._note = note
        self._writer: Any = None
        self._try(self._open, fields, step)

    def _open(self, fields: dict[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Rows of later steps, which an earlier process has written, are void.
        self._writer = SummaryWriter(
            str(self._folder / "tensorboard"), purge_step=step + 1, flush_secs=2
        )
        text = json.dumps(fields, indent=2, allow_nan=False)
        self._writer.add_text("run", "    " + text.replace("\n", "\n    "), 0)

    def add(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl."""
        self._try(self._add, row)

    def _add(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, int | float) and name not in ("step", "seed"):
                self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Write what is left, and say where to look."""
        self._try(lambda: self._writer.close())
        if self._works:
            self._note(f"tensorboard: tensorboard --logdir {self._folder}")

    def _try(self, do: Callable[..., None], *arguments: Any) -> None:
        if not self._works:
            return
        try:
            with redirect_stdout(sys.stderr):
                do(*arguments)
        except (Exception, SystemExit) as error:  # whatever it is: a tracker is not worth a run
            self._works = False
            why = str(error).strip().rpartition("\n")[2][:300]
            self._note(
                f"note: the tracker is left out: {type(error).__name__}: {why}; the run goes on"
            )
