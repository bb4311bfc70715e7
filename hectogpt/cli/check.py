"""`hectogpt check RUN`: verify all hashes of a run, repair it, or repeat one of its steps."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

from hectogpt import errors
from hectogpt.cli.console import remarks, show
from hectogpt.cli.options import CheckOptions
from hectogpt.cli.train import result_lines
from hectogpt.display import Progress
from hectogpt.errors import CheckpointError, UserError
from hectogpt.files import MANIFEST, damage, odd_entries, read_manifest, write_json
from hectogpt.lab.full_run import Plan, find_corpus, named_folder, run_and_score
from hectogpt.model.weights import WEIGHTS, hash_weights
from hectogpt.run_records import (
    CHECKPOINTS,
    HASH,
    METRICS,
    RUN,
    SUMMARY,
    Habits,
    locate_run,
    read_record,
    read_summary,
)
from hectogpt.serialization import dump
from hectogpt.training.checkpoint import Checkpoints
from hectogpt.training.diagnose import diagnose as find_fault
from hectogpt.training.history import History
from hectogpt.training.run import files_of
from hectogpt.training.run_folder import OURS, RunFolder, read_steps

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
        raise UserError(what, why="each is a separate task", fix="name only one of them")
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
        fix = f"`hectogpt check {folder} --repair` restores what it can"
        more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise CheckpointError(f"{bad[0]} is damaged{more}", why=checks[bad[0]], fix=fix)


def verify_run(folder: Path) -> dict[Path, str]:
    """Check every hash of a run's folder: its checkpoints and, with a manifest, its files.

    Returns path -> problem ("" for an intact file), or {} if there are no hashes to check.
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
        found[folder / MANIFEST] = error.line
    found |= odd_entries(folder)
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    return found | {
        checkpoints.path(step): checkpoints.problem(step) for step in checkpoints.steps()
    }


def repair(options: CheckOptions, folder: Path) -> None:
    """Restore what is damaged or missing in a run's folder, score it, and print the result.

    The repair starts from the last checkpoint, else from the weights, else from the first step.

    Raises UserError if the run is not trained to its end, if damaged weights have no checkpoint,
    or if the damaged run.json was the only description of the run.
    """
    progress = Progress(options.quiet)
    faults = {path: why for path, why in verify_run(folder).items() if why}
    saved = Checkpoints(folder / CHECKPOINTS)
    whole = [saved.path(step) for step in saved.steps() if saved.path(step) not in faults]
    if folder / RUN in faults or not (folder / RUN).exists():
        restore_record(folder, whole)
    trained = history_of(options, folder).run
    if not faults and (record := read_record(folder)).is_complete:
        line = f"already complete ({trained.steps}/{trained.steps}): {folder}"
        return show(options.json, record.summary, [line], options.quiet)
    corpus = find_corpus(trained, progress)
    at = int(whole[-1].name[5:]) if whole else 0
    if faults:
        progress.line("\n".join(f"{path}: {why}" for path, why in faults.items()))
        made_from = {folder / name for name in (MANIFEST, SUMMARY, WEIGHTS)} & {*faults}
        basis = [folder / WEIGHTS, *map(saved.path, saved.steps())]
        broken = [path for path in basis if path in faults and path.exists()]
        if broken and not whole and (basis[0] in faults or not basis[0].exists()):
            why = f"{faults[broken[0]]}; no other file has these weights"
            fix = "restore a copy; or remove the file, and --repair trains again"
            raise lost(broken[0], why, fix)
        with RunFolder.reopen(folder, trained) as held:
            held.restore(faults, files_of(trained), corpus.tokenizer)
            if folder / METRICS in faults and at < trained.steps and not made_from:
                held.seal(OURS)
                lines = [lost_steps(folder)]
                return show(options.json, read_summary(folder), lines, options.quiet)
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
        raise lost(folder / RUN, "no intact checkpoint has its contents", "restore a copy")
    record = read_manifest(checkpoints[-1])["facts"] | {"modified": True}
    with suppress(UserError):  # the summary may be damaged too
        record |= {"modified": read_summary(folder)["modified"]}
    write_json(folder / RUN, record)


def lost(path: Path, why: str, fix: str) -> UserError:
    """The error for a damaged file that cannot be restored."""
    kept = "all files, untouched"
    what = f"{path} is damaged, and cannot be restored"
    return CheckpointError(what, why=why, fix=fix, kept=kept)


def lost_steps(folder: Path) -> str:
    """A sentence about a finished run's steps that metrics.jsonl lacks; "" if it lacks none."""
    record = read_record(folder)
    have = len(read_steps(folder))
    if record.state != "done" or have >= (record.steps or 0):
        return ""
    return f"{folder / METRICS}: steps {have + 1} to {record.steps} cannot be restored"


def history_of(options: CheckOptions, folder: Path) -> History:
    """The history of a run, with the user's own files that it may import."""
    return History(folder, options.idea, remarks(options.quiet or options.json))


def step_before(options: CheckOptions, history: History, most: int) -> int:
    """Choose the step to start from; the step after it is computed.

    By default it is the newest that has a checkpoint, else the last. `most` is the number of steps
    that can be computed. Raises UserError (CHECKPOINT).
    """
    saved = history.checkpoints.steps()
    step = options.step
    if step is None:
        step = max([at for at in saved if at < most] or [0, min(most - 1, len(history.steps))])
    if not 0 <= step < most:
        what = f"step {step} of {history.folder} has no next step"
        fix = f"--step {most - 1}"
        raise CheckpointError(what, fix=fix)
    return step


def diagnose(options: CheckOptions, folder: Path) -> None:
    """Repeat a step without its update, and print where its values stop being finite.

    Raises UserError.
    """
    history = history_of(options, folder)
    step = step_before(options, history, history.run.steps)
    fault = find_fault(history.session_after(step))
    place = "there is none" if fault.stage is None else f"{STAGES[fault.stage]} of {fault.module}"
    kind = (
        "rows whose loss is not finite"
        if fault.stage == "forward"
        else "rows with the largest losses"
    )
    origins = [f"sequence {number}, " for number in fault.sequences] or [""] * len(fault.rows)
    rows = zip(fault.rows, origins, fault.row_losses, strict=True)
    lines = [f"step {fault.step}: loss {fault.loss:.6g}, gradient norm {fault.grad_norm:.6g}"]
    lines += [f"first value that is not finite: {place}"]
    lines += [
        f"{kind}: "
        + ", ".join(f"row {row} ({origin}loss {loss:.4g})" for row, origin, loss in rows)
    ]
    show(options.json, dump(fault), lines, options.quiet)


def replay(options: CheckOptions, folder: Path) -> None:
    """Repeat a step, compare its bits with the run's records, and print the result.

    Raises UserError: EXACTNESS if anything differs, CHECKPOINT for a step that was not taken.
    """
    history = history_of(options, folder)
    step = step_before(options, history, len(history.steps))
    session = history.again(step + 1)
    kept = step + 1 in history.checkpoints.steps()
    if kept:
        saved = history.checkpoints.load(step + 1).tensors
        now = session.checkpoint().tensors
        names = saved.keys() - {"history", "hashes"}  # times vary; a repeated run has no hashes
        if saved.keys() != now.keys() or not all(torch.equal(saved[n], now[n]) for n in names):
            raise UserError(
                f"step {step + 1} of {folder} differs when it is repeated",
                why="the optimizer's state differs from the checkpoint's",
                code=errors.EXACTNESS,
            )
    answer = {"step": step + 1, "equal": True, HASH: hash_weights(session.model)}
    answer |= {"optimizer_compared": kept}
    what = "loss, gradient norm, weights and optimizer" if kept else "loss, gradient norm, weights"
    lines = [f"equal    {what} of step {step + 1}"]
    show(options.json, answer, lines, options.quiet)
