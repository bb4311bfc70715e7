"""Going on with a run that was begun before: which one is meant, whether it is the same run, and where it is."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.progress import Progress
from hectogpt.run_records import CHECKPOINTS, RUN, STEP_FOLDER, read_state
from hectogpt.serialization import diff
from hectogpt.training.checkpoint import Checkpoints
from hectogpt.training.run import Run

# A run may go on with these changed; all but the last three can change bits, which is then told.
CHANGEABLE = {"device", "dtype", "head_dtype", "threads", "data.leaves", "data.micro_batch"}
CHANGEABLE |= {"corpus", "on_spike", "recipe"}


@dataclass(frozen=True)
class Resume:
    """A run to go on with. step: from this checkpoint (None: the newest that is whole). require_exact: refuse if
    device, dtypes, threads or program differ from those the run began with, so that bits may differ."""

    folder: Path
    step: int | None = None
    require_exact: bool = False


def named_folder(where: str) -> Resume:
    """The run that a path names: its folder, or one checkpoint inside it (FOLDER/checkpoints/step-N). Raises UserError
    (CHECKPOINT) for a path that is neither."""
    path = Path(where).expanduser()
    match = STEP_FOLDER.fullmatch(path.name)
    if match and path.parent.name == CHECKPOINTS:
        return Resume(path.parent.parent, step=int(match[1]))
    if not (path / RUN).is_file():
        raise UserError(
            f"no run in {path}",
            why=f"it has no {RUN}",
            fix="name a folder that `hectogpt train` wrote; `hectogpt show` lists those here",
            code=errors.CHECKPOINT,
        )
    return Resume(path)


def runs_of(name: str | None, root: Path = Path("runs")) -> list[Path]:
    """The folders of runs that `hectogpt train` has given this name, the newest first; of all names without one."""
    if name is None:
        found = [path.parent for path in root.glob(f"*/{RUN}")]
        return sorted(found, key=lambda path: (path / RUN).stat().st_mtime, reverse=True)
    pattern = re.compile(re.escape(name) + r"(?:-(\d+))?")
    numbered = [(int(m[1] or 1), p.parent) for p in root.glob(f"*/{RUN}") if (m := pattern.fullmatch(p.parent.name))]
    return [path for _, path in sorted(numbered, reverse=True)]


def changes(before: Run, after: Run) -> list[str]:
    """What differs between a run and the one that is to go on with its state, and may not; in words."""
    found = {path: pair for path, pair in diff(before, after).items() if not CHANGEABLE & {path, path.split(".")[0]}}
    return [f"{path} was {old}, now {new}" for path, (old, new) in found.items()]


def check_same(folder: Path, before: Run, after: Run) -> None:
    """Refuse to go on with a run as another one. Raises UserError."""
    if found := changes(before, after):
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise UserError(
            f"{folder} holds another run",
            why="; ".join(found[:3]) + more,
            fix="leave these options out, or set out to another folder for a new run; set extend for more steps",
            kept="the old run, untouched",
        )


def extended(folder: Path, run: Run, steps: int, progress: Progress) -> Run:
    """The run with `steps` more steps, if it has taken all it was to take; else as it is. Says what that means for the
    learning rates. Raises UserError for a number that is none."""
    if steps < 1:
        raise UserError(f"extend = {steps}", why="it counts the steps to add")
    if read_state(folder) not in ("done", "unscored"):
        progress.line(f"note: {folder} is not done: it goes on to step {run.steps}; extend it after that")
        return run
    if run.steps not in Checkpoints(folder / CHECKPOINTS).steps():
        raise UserError(
            f"{folder} has no checkpoint of its last step",
            why="more steps go on from the state of the optimizer, which the weights alone do not hold",
            fix="a run that keeps checkpoints: set save_every",
            kept="the run, untouched",
            code=errors.CHECKPOINT,
        )
    longer = replace(run, steps=run.steps + steps)
    old = run.schedule.factor(run.steps - 1, run.steps)
    new = [run.schedule.factor(step, longer.steps) for step in (run.steps, longer.steps - 1)]
    progress.line(
        f"steps {run.steps + 1} to {longer.steps}: the schedule {type(run.schedule).__name__} is now that of "
        f"{longer.steps} steps; factor on the learning rates: {old:.3g} at step {run.steps}, {new[0]:.3g} at step "
        f"{run.steps + 1}, {new[1]:.3g} at the end"
    )
    return longer
