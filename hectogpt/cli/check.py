"""`hectogpt check RUN`: verify all hashes of a run, repair it, or repeat one of its steps."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import torch

from hectogpt import errors
from hectogpt.cli.console import show
from hectogpt.cli.options import BisectOptions, CheckOptions
from hectogpt.cli.train import result_lines
from hectogpt.data import open_corpus
from hectogpt.display import Progress, printable
from hectogpt.errors import UserError, set_to
from hectogpt.files import odd_entries, write_atomic
from hectogpt.idea_file import imported, load_idea, read_idea
from hectogpt.json_files import MANIFEST, damage, read_manifest
from hectogpt.lab.scoring import run_and_score
from hectogpt.model.weights import WEIGHTS
from hectogpt.run_records import (
    CHECKPOINTS,
    METRICS,
    RUN,
    SUMMARY,
    Habits,
    locate_run,
    read_record,
    read_summary,
)
from hectogpt.serialization import dump, idea_module
from hectogpt.training.checkpoint import Checkpoint, Checkpoints
from hectogpt.training.diagnose import diagnose as find_fault
from hectogpt.training.events import Ended, events, session_of
from hectogpt.training.full_run import Plan, find_corpus, named_folder
from hectogpt.training.run import Run, files_of
from hectogpt.training.run_folder import OURS, RunFolder, read_run, read_steps
from hectogpt.training.session import Session

WORDS = {True: "equal", False: "differs"}
AFTER = "weights and optimizer after the step"
STAGES = {
    "weights": "the weights",
    "forward": "the output",
    "backward": "the gradient of the output",
}


def main(options: CheckOptions) -> None:
    """Check a run and print a line for each file.

    Raises UserError: CHECKPOINT for damage, EXACTNESS if a repeated step differs.
    """
    asked = [deed for deed in (repair, replay, diagnose) if getattr(options, deed.__name__)]
    if len(asked) > 1:
        what = f"{' and '.join(deed.__name__ for deed in asked)} at once"
        raise UserError(what, why="each is a command of its own", fix="name one of them")
    folder = locate_run(str(options.run))
    if not ((folder / MANIFEST).exists() or Checkpoints(folder / CHECKPOINTS).steps()):
        folder = named_folder(str(folder))[0]
    (asked or [check_files])[0](options, folder)


def check_files(options: CheckOptions, folder: Path) -> None:
    """Check every hash and print a line for each file.

    Raises UserError (CHECKPOINT) for a damaged file.
    """
    checks = verify_run(folder)
    bad = [path for path, problem in checks.items() if problem]
    answer = {
        "run": str(folder),
        "checks": {str(path): problem for path, problem in checks.items()},
    }
    lines = [f"{'damaged' if problem else 'ok':<8} {path}" for path, problem in checks.items()]
    nothing = f"{folder} has no hashes to check: no checkpoint, and no manifest.json"
    if not bad:
        lines += [f"lost     {text}" for text in filter(None, [lost_steps(folder)])]
    show(options.json, answer | {"damaged": len(bad)}, lines or [nothing], options.quiet)
    if bad:
        fix = f"`hectogpt check {folder} --repair` makes again what can be made again"
        more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise UserError(
            f"{bad[0]} is damaged{more}", why=checks[bad[0]], fix=fix, code=errors.CHECKPOINT
        )


def verify_run(folder: Path) -> dict[Path, str]:
    """Check every hash of a run's folder: its files, if it has a manifest, and its checkpoints.

    Returns path -> problem, "" for an intact file; {} if there are no hashes to check.
    """
    found: dict[Path, str] = {}
    try:
        if (folder / MANIFEST).exists():
            found = {
                folder / name: fault
                for name, fault in damage(folder, read_manifest(folder)).items()
            }
        elif problem := read_record(folder).hashes_lost:
            found[folder / MANIFEST] = problem
    except UserError as error:
        found[folder / MANIFEST] = f"{error.what}: {error.why}"
    found |= odd_entries(folder)
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    return found | {
        checkpoints.path(step): checkpoints.problem(step) for step in checkpoints.steps()
    }


def repair(options: CheckOptions, folder: Path) -> None:
    """Restore what is damaged or missing in a run's folder, score it, and print the result.

    It starts from the last checkpoint, else from the weights, else from the first step.

    Raises UserError if the run is not trained to its end, if damaged weights have no checkpoint,
    or if only the damaged run.json said what the run is.
    """
    progress = Progress(options.quiet)
    faults = {path: why for path, why in verify_run(folder).items() if why}
    saved = Checkpoints(folder / CHECKPOINTS)
    whole = [saved.path(step) for step in saved.steps() if saved.path(step) not in faults]
    if folder / RUN in faults or not (folder / RUN).exists():
        restore_record(folder, whole)
    trained = read_own_run(folder, options)
    if not faults and read_record(folder).is_complete:
        print(printable(f"already complete ({trained.steps}/{trained.steps}): {folder}"))
        return
    corpus = find_corpus(trained, progress)
    at = int(whole[-1].name[5:]) if whole else 0
    if faults:
        progress.line("\n".join(f"{path}: {why}" for path, why in faults.items()))
        made_from = {folder / name for name in (MANIFEST, SUMMARY, WEIGHTS)} & {*faults}
        basis = [folder / WEIGHTS, *map(saved.path, saved.steps())]
        broken = [path for path in basis if path in faults and path.exists()]
        if broken and not whole and (basis[0] in faults or not basis[0].exists()):
            why = f"{faults[broken[0]]}; no other file has these weights"
            fix = "a copy of it; or remove it, and repair trains again"
            raise lost(broken[0], why, fix)
        with RunFolder.reopen(folder, trained) as held:
            held.restore(faults, files_of(trained), corpus.tokenizer)
            if folder / METRICS in faults and at < trained.steps and not made_from:
                held.seal(OURS)
                print(printable(lost_steps(folder)))
                return
    taken = max(len(read_steps(folder)), at)
    if taken < trained.steps:
        raise UserError(
            f"the run in {folder} has taken {taken} of {trained.steps} steps",
            why="it is scored after the last one",
            fix=f"hectogpt train --resume {folder}",
        )
    plan = Plan(trained, Habits(save_every=0), resume=folder)
    done = run_and_score(plan, corpus, progress)
    show(options.json, done.summary, result_lines(done), options.quiet)


def restore_record(folder: Path, checkpoints: list[Path]) -> None:
    """Rewrite run.json from the newest checkpoint. Raises UserError (CHECKPOINT) without one."""
    if not checkpoints:
        raise lost(folder / RUN, "no whole checkpoint says what it said", "a copy of it")
    facts = read_manifest(checkpoints[-1])["facts"]
    record = {"run": facts["run"], "machine": facts["machine"], "modified": True}
    with suppress(UserError):  # the summary may be damaged too
        record |= {"modified": read_summary(folder)["modified"]}
    write_atomic(folder / RUN, json.dumps(record, indent=2, allow_nan=False) + "\n")


def lost(path: Path, why: str, fix: str) -> UserError:
    """The error for a damaged file that cannot be restored."""
    kept = "all files, untouched"
    what = f"{path} is damaged, and cannot be made again"
    return UserError(what, why=why, fix=fix, kept=kept, code=errors.CHECKPOINT)


def lost_steps(folder: Path) -> str:
    """A sentence about steps of a finished run that metrics.jsonl lacks; "" if none."""
    record = read_record(folder)
    have = len(read_steps(folder))
    if record.state != "done" or have >= (record.steps or 0):
        return ""
    return f"{folder / METRICS}: steps {have + 1} to {record.steps} cannot be made again"


def read_own_run(folder: Path, options: CheckOptions | BisectOptions) -> Run:
    """Import the user's own files, and return the run of a folder.

    Raises UserError if the run comes from a file that is not imported.
    """
    for path in options.idea:
        load_idea(read_idea(path))
    run = read_run(folder)
    if any(imported(idea_module(sha256)) is None for sha256 in run.ideas):
        copies = sorted(folder.glob("idea*.py"))
        raise UserError(
            f"the run in {folder} was made by a file of its user's own, {run.recipe}",
            why="importing a file runs it, so it is not imported unasked",
            fix=(f"look at {copies[0]}, and if you trust it, " if copies else "")
            + set_to("idea", copies[0] if copies else "it"),
            code=errors.CHECKPOINT,
        )
    return run


def find_checkpoint(
    options: CheckOptions, folder: Path, steps: int | None = None
) -> tuple[Run, Checkpoint]:
    """Return a run and the checkpoint from which to compute its next step.

    Args:
        options: the command's options.
        folder: the run's folder.
        steps: how many steps can be repeated; None: all steps of the run.

    Raises UserError.
    """
    run = read_own_run(folder, options)
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    step = options.step
    usable = [s for s in checkpoints.steps() if s < (run.steps if steps is None else steps)]
    if not usable or step not in (None, *usable):
        raise UserError(
            f"{folder} has no step to compute again"
            if step is None
            else f"step {step} of {folder} has no next step",
            why="it takes a checkpoint and the step after it",
            fix=f"--step {usable[-1]}"
            if usable
            else "train with checkpoints on the way: --save-every 10",
            code=errors.CHECKPOINT,
        )
    return run, checkpoints.load(usable[-1] if step is None else step)


def diagnose(options: CheckOptions, folder: Path) -> None:
    """Repeat the step after a checkpoint and print where its values stop being finite.

    Raises UserError.
    """
    run, at = find_checkpoint(options, folder)
    fault = find_fault(Session.open(run, open_corpus(run.corpus), at))
    place = "there is none" if fault.stage is None else f"{STAGES[fault.stage]} of {fault.module}"
    kind = (
        "rows whose loss is not finite"
        if fault.stage == "forward"
        else "rows with the largest losses"
    )
    origins = [f"sequence {number}, " for number in fault.sequences] or [""] * len(fault.rows)
    rows = zip(fault.rows, origins, fault.row_losses, strict=True)
    lines = [f"step {fault.step}: loss {fault.loss:.6g}, gradient norm {fault.grad_norm:.6g}"]
    lines += [f"first number that is not finite: {place}"]
    lines += [
        f"{kind}: "
        + ", ".join(f"row {row} ({origin}loss {loss:.4g})" for row, origin, loss in rows)
    ]
    show(options.json, dump(fault), lines, options.quiet)


def replay(options: CheckOptions, folder: Path) -> None:
    """Repeat a step, compare its bits with the run's records, and print the result.

    Raises UserError: EXACTNESS if anything differs, CHECKPOINT if there is no step to compute.
    """
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    recorded = read_steps(folder)
    run, at = find_checkpoint(options, folder, len(recorded))
    stream = events(run, open_corpus(run.corpus), at)
    session = session_of(stream)
    step = at.step
    before = recorded[step]
    event = next(stream)
    if isinstance(event, Ended) and event.error is not None:
        raise event.error
    again = session.done[-1]
    found = {}
    answer: dict[str, object] = {"step": step + 1, "differences": session.differences(at.facts)}
    for name in ("loss", "grad_norm"):
        one = getattr(before, name)
        two = getattr(again, name)
        found[f"{name}: {one!r}, again {two!r}"] = one == two
        answer[name] = {"recorded": one, "again": two}
    if step + 1 in checkpoints.steps():
        saved = checkpoints.load(step + 1).tensors
        now = session.checkpoint().tensors
        names = saved.keys() - {"history"}  # it includes seconds, which vary
        same = all(torch.equal(saved[name], now[name]) for name in names)
        found[AFTER] = saved.keys() == now.keys() and same
    equal = all(found.values())
    answer |= {"equal": equal, "weights_equal": found.get(AFTER)}
    lines = [f"{WORDS[same]:<8} {what}" for what, same in found.items()]
    show(options.json, answer, lines, options.quiet)
    if not equal:
        differences = session.differences(at.facts)
        raise UserError(
            printable(f"step {step + 1} of {folder} is not the same again"),
            why=", ".join(differences) or "machine and program are those that trained it",
            fix=""
            if differences
            else "run it again: if it differs from itself, suspect memory or processor",
            code=errors.EXACTNESS,
        )
