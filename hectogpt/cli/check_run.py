"""What `hectogpt check` does with a run on disk: hashes, repair, a step again, and where its numbers went wrong."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hectogpt import errors
from hectogpt.cli.check import CheckArguments
from hectogpt.cli.train_run import print_result
from hectogpt.data import open_corpus
from hectogpt.display import printable
from hectogpt.errors import UserError
from hectogpt.lab import ideas
from hectogpt.lab.scoring import run_and_score
from hectogpt.manifest import MANIFEST, damage, read_manifest
from hectogpt.model.weights import check_manifest
from hectogpt.progress import Progress
from hectogpt.run_records import CHECKPOINTS, read_state
from hectogpt.serialization import dump
from hectogpt.training.checkpoint import Checkpoint, Checkpoints
from hectogpt.training.diagnose import diagnose as find_fault
from hectogpt.training.loop import Step
from hectogpt.training.run import Run
from hectogpt.training.run_folder import read_run, read_steps
from hectogpt.training.session import Session
from hectogpt.training.task import Task, find_corpus, named_folder

STAGES = {"weights": "the weights", "forward": "the output", "backward": "the gradient of the output"}


@dataclass(frozen=True)
class Check:
    """A file or folder of a run that was checked. problem: "" if it is as it was written."""

    path: Path
    problem: str

    def as_json(self) -> dict[str, str]:
        """The check in plain values."""
        return {"path": str(self.path), "problem": self.problem}


def check_files(arguments: CheckArguments) -> None:
    """Check every hash and print a line for each file. Raises UserError (CHECKPOINT) for a damaged one."""
    folder = named_folder(str(arguments.run)).folder
    checks = verify_run(folder)
    bad = [check for check in checks if check.problem]
    if arguments.json:
        print(
            json.dumps(
                {"run": str(folder), "checks": [c.as_json() for c in checks], "damaged": len(bad)}, allow_nan=False
            )
        )
    elif not arguments.quiet:
        for check in checks:
            print(printable(f"{'damaged' if check.problem else 'ok':<8} {check.path}"))
        if not checks:
            print(printable(f"{folder} has no hashes to check: no checkpoint, and no manifest.json"))
    if bad:
        fix = f"`hectogpt check {folder} --repair` makes weights, score and picture again from the last checkpoint"
        if any(check.path.parent.name == CHECKPOINTS for check in bad):
            fix = f"`hectogpt train --resume {folder}` goes on from the newest checkpoint that is whole"
        more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise UserError(f"{bad[0].path} is damaged{more}", why=bad[0].problem, fix=fix, code=errors.CHECKPOINT)


def verify_run(folder: Path) -> list[Check]:
    """Check every hash of a run's folder: its files, if its manifest is there, and its checkpoints; [] if there is
    nothing to check against."""
    found: list[Check] = []
    if (folder / MANIFEST).exists():
        try:
            manifest = read_manifest(folder)
        except UserError as error:
            found.append(Check(folder / MANIFEST, f"{error.what}: {error.why}"))
        else:
            for name in manifest["files"]:
                problems = damage(folder, manifest, [name])
                found.append(Check(folder / name, problems[0].partition(": ")[2] if problems else ""))
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    found += [Check(checkpoints.path(step), checkpoints.problem(step)) for step in checkpoints.steps()]
    return found


def repair(arguments: CheckArguments) -> None:
    """Score a trained run whose process ended before its score, with damaged weights made again; print it as after
    training. Raises UserError for a run that is not trained to its end."""
    where = named_folder(str(arguments.run))
    folder, trained = where.folder, read_own_run(where.folder, arguments)
    progress = Progress(arguments.quiet)
    damaged = damage_of_weights(folder)
    if read_state(folder) == "done" and not damaged:
        print(printable(f"already complete ({trained.steps}/{trained.steps}): {folder}"))
        return
    taken = len(read_steps(folder))
    if taken < trained.steps:
        raise UserError(
            f"the run in {folder} has taken {taken} of {trained.steps} steps",
            why="it is scored after the last one",
            fix=f"hectogpt train --resume {folder}",
            kept="the run, untouched",
        )
    if damaged:
        progress.line(f"{damaged}: it is made again from the last checkpoint")
    corpus = find_corpus(trained, progress)
    task = Task(trained, corpus, "", resume=where, own_files=ideas.files_of(trained), save_every=0)
    print_result(run_and_score(task, progress, arguments.prompt), arguments.json, arguments.quiet)


def damage_of_weights(folder: Path) -> str:
    """What is wrong with a run's weights, in words; "" if nothing is known to be."""
    try:
        check_manifest(folder)
    except UserError as error:
        return f"{error.what} ({error.why})"
    return ""


def read_own_run(folder: Path, arguments: CheckArguments) -> Run:
    """The run of a folder, after the files of the user's own that made it were imported. Raises UserError."""
    ideas.load_files(arguments.idea)
    run = read_run(folder)
    ideas.check_loaded(run, folder)
    return run


def open_at(arguments: CheckArguments, step: int | None) -> tuple[Session, Checkpoint]:
    """A session where a checkpoint of the run has it. step: how many steps are done; None for the newest that is whole.
    Raises UserError."""
    folder = arguments.run
    run = read_own_run(folder, arguments)
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    progress = Progress(arguments.quiet or arguments.json)
    at = checkpoints.newest(progress.line) if step is None else checkpoints.load(step)
    if at is None:
        raise UserError(
            f"{folder} has no checkpoint",
            why="its process ended before the first one, or it was to save none",
            fix="train it with checkpoints: hectogpt train --save-every 10",
            code=errors.CHECKPOINT,
        )
    return Session.open(run, open_corpus(run.corpus), at), at


def diagnose(arguments: CheckArguments) -> None:
    """Compute the step after a checkpoint again and print where its numbers stop being finite. Raises UserError."""
    folder = arguments.run
    session, at = open_at(arguments, arguments.step)
    if at.step >= session.run.steps:
        known = [str(s) for s in Checkpoints(folder / CHECKPOINTS).steps() if s < session.run.steps]
        raise UserError(
            f"{folder} has taken all its {session.run.steps} steps",
            why="there is none to compute after its last checkpoint",
            fix=f"--step {known[-1]}" if known else "",
        )
    fault = find_fault(session)
    if arguments.json:
        print(json.dumps(dump(fault), allow_nan=False))
        return
    place = "there is none" if fault.stage is None else f"{STAGES[fault.stage]} of {fault.module}"
    print(f"step {fault.step}: loss {fault.loss:.6g}, gradient norm {fault.grad_norm:.6g}")
    print(f"first number that is not finite: {place}")
    kind = "rows whose loss is not finite" if fault.stage == "forward" else "rows with the largest losses"
    rows = zip(fault.rows, fault.sequences, fault.row_losses, strict=True)
    print(f"{kind}: " + ", ".join(f"row {row} (sequence {seq}, loss {loss:.4g})" for row, seq, loss in rows))
    print("largest outputs: " + ", ".join(f"{name} {value:.4g}" for name, value in fault.largest))


def replay(arguments: CheckArguments) -> None:
    """Compute a step again, compare its bits with what the run has recorded, print. Raises UserError: EXACTNESS if
    anything differs, CHECKPOINT if there is no step to compute."""
    folder, step = arguments.run, arguments.step
    checkpoints, recorded = Checkpoints(folder / CHECKPOINTS), read_steps(folder)
    usable = [s for s in checkpoints.steps() if s < len(recorded)]
    if step is None and usable:
        step = usable[-1]
    if step is None or step >= len(recorded):
        raise UserError(
            f"{folder} has no step to compute again" if step is None else f"step {step} of {folder} has no next step",
            why=f"it takes a checkpoint and the step after it; {len(recorded)} steps are recorded",
            fix=f"--step {usable[-1]}" if usable else "train with checkpoints on the way: --save-every 10",
            code=errors.CHECKPOINT,
        )
    session, at = open_at(arguments, step)
    before, again = recorded[step], next(itertools.islice(session.steps(), 1))
    weights = None
    if step + 1 in checkpoints.steps():
        weights = _same(checkpoints.load(step + 1), session.checkpoint())
    differences = session.differences(at.facts)
    equal = _numbers(before) == _numbers(again) and weights is not False
    if arguments.json:
        answer: dict[str, Any] = {"step": step + 1, "equal": equal, "loss": before.loss, "loss_again": again.loss}
        answer |= {"grad_norm": before.grad_norm, "grad_norm_again": again.grad_norm}
        print(json.dumps(answer | {"weights_equal": weights, "differences": list(differences)}, allow_nan=False))
    else:
        for name, one, two in zip(("loss", "gradient norm"), _numbers(before), _numbers(again), strict=True):
            print(f"{'equal' if one == two else 'differs':<8} {name}: {one!r}, again {two!r}")
        if weights is not None:
            print(f"{'equal' if weights else 'differs':<8} weights and optimizer after the step")
    if not equal:
        raise UserError(
            printable(f"step {step + 1} of {folder} is not the same again"),
            why=", ".join(differences) or "machine and program are those that trained it",
            fix="" if differences else "run it again: if it differs from itself, suspect memory or processor",
            code=errors.EXACTNESS,
        )


def _numbers(step: Step) -> tuple[float, float]:
    return step.loss, step.grad_norm


def _same(before: Checkpoint, again: Checkpoint) -> bool:
    one, two = before.state.tensors, again.state.tensors
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
