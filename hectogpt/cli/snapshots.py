"""What a run's checkpoints say: a continuation and the attention maps of one text, for `hectogpt watch`.

A thread of low priority, on one core, opens checkpoints while somebody looks; the run itself does nothing for it. Torch
is loaded when the first one is opened.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hectogpt.display import printable
from hectogpt.errors import UserError

PROMPT = "The state of the Union is strong because the people of the Union are"
NEW_TOKENS = 24
LONGEST = 32  # tokens of the text whose maps are drawn
NICE = 5  # beside a run on all cores it gets a quarter of one: at 19 the first sample would take minutes
SHARE = 0.1  # of a core's time that opening checkpoints may take
MOST_KEPT = 200  # snapshots of a run


class Snapshots:
    """Snapshots of the checkpoints of runs, by the number that the caller gives a run, and by step.

    prompt: the text that is continued and whose attention is drawn. ideas: the user's own files that may be imported.
    """

    def __init__(self, prompt: str | None = None, ideas: Sequence[Path] = ()) -> None:
        self.prompt, self.ideas = prompt or PROMPT, tuple(ideas)
        self.problems: dict[int, str] = {}
        self._taken: dict[int, dict[int, dict[str, Any]]] = {}
        self._failed: dict[tuple[int, int], float] = {}  # (run, step) -> when
        self._wanted: tuple[int, Path] | None = None
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def want(self, run: int, folder: Path) -> None:
        """Say that somebody looks at this run now. Returns at once."""
        with self._wake:
            self._wanted = (run, folder)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="snapshots", daemon=True)
                self._thread.start()
            self._wake.notify()

    def steps(self, run: int) -> list[int]:
        """The steps of the run that there are snapshots of."""
        return sorted(self._taken.get(run, {}))

    def get(self, run: int, step: int) -> dict[str, Any] | None:
        """One snapshot: text, prompt, tokens, and maps as whole thousandths below the diagonal and on it."""
        return self._taken.get(run, {}).get(step)

    def _work(self) -> None:
        if hasattr(os, "nice"):
            with suppress(OSError):
                os.nice(NICE)  # of this thread alone on Linux, of the process elsewhere; torch's threads inherit it
        import torch

        import hectogpt.generation
        import hectogpt.interop  # noqa: F401  what follows is to be timed without them

        torch.set_num_threads(1)
        while True:
            with self._wake:
                while self._wanted is None:
                    self._wake.wait()
                (run, folder), self._wanted = self._wanted, None
            begun = time.thread_time()
            if self._take_next(run, folder):
                time.sleep((time.thread_time() - begun) / SHARE)

    def _take_next(self, run: int, folder: Path) -> bool:
        """Take a snapshot of the newest checkpoint that has none, later of older ones; whether there was one."""
        from hectogpt.training.checkpoint import FOLDER, Checkpoints

        taken = self._taken.setdefault(run, {})
        checkpoints = Checkpoints(folder / FOLDER)
        try:
            steps = set(checkpoints.steps())
        except OSError:
            return False
        final = _steps_of_weights(folder)
        late = time.monotonic() - 60
        missing = [s for s in steps | {final} - {0} if s not in taken and self._failed.get((run, s), late) <= late]
        if not missing:
            return False
        step = max(missing)
        try:
            taken[step] = self._take(folder, None if step not in steps else checkpoints, step)
            self.problems.pop(run, None)
        except (UserError, OSError) as error:  # it may have been removed meanwhile: the next one is tried
            self._failed[run, step] = time.monotonic()
            if step not in checkpoints.steps() and step != final:
                return False
            self.problems[run] = printable(f"{error.what}: {error.why}" if isinstance(error, UserError) else str(error))
        except Exception as error:  # of a part of the user's own, say: the page goes on
            self._failed[run, step] = time.monotonic()
            self.problems[run] = printable(f"{type(error).__name__}: {error}"[:300])
        if len(taken) > MOST_KEPT:
            for old in self.steps(run)[1:-1:2]:
                del taken[old]
        return True

    def _take(self, folder: Path, checkpoints: Any, step: int) -> dict[str, Any]:
        from hectogpt.explore.model_view import name_tokens, read_prompt, trace
        from hectogpt.generation import Sampling, complete
        from hectogpt.interop.open import open_model, open_state

        if checkpoints is None:
            model, tokenizer = open_model(folder, idea=self.ideas)
        else:
            model, tokenizer = open_state(folder, checkpoints.load(step).state.weights(), self.ideas)
        ids = read_prompt(self.prompt, tokenizer, model, LONGEST).ids
        maps = trace(model, ids).maps
        text = self.prompt + complete(model, tokenizer, self.prompt, Sampling(max_new_tokens=NEW_TOKENS), seed=0)
        below = [(t, s) for t in range(len(ids)) for s in range(t + 1)]
        rows, columns = zip(*below, strict=True)
        return {
            "step": step,
            "prompt": self.prompt,
            "text": text,
            "tokens": name_tokens(ids, tokenizer),
            "maps": (maps[:, :, rows, columns] * 1000).round().astype(int).tolist(),
        }


def _steps_of_weights(folder: Path) -> int:
    """The step of the run's model.safetensors; 0 if there is none, or if that is unknown."""
    from hectogpt.json_files import read_json_object

    if not (folder / "model.safetensors").is_file():
        return 0
    with suppress(UserError):
        steps = read_json_object(folder / "summary.json", nan_as_none=True).get("steps")
        return steps if isinstance(steps, int) and 0 < steps < 10**12 else 0
    return 0
