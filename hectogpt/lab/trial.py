"""One trial (a run and its scores) in a process of its own, and the file of records, a line a trial.

`python -m hectogpt.lab.trials` reads a request on stdin and writes steps and the result on stdout, so that a crash,
a divergence or a leak costs one line and nothing else. A record is appended whole and flushed to disk, or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from hectogpt import __version__, errors
from hectogpt.data import Corpus, open_corpus
from hectogpt.errors import UserError
from hectogpt.lab import recipes as _  # noqa: F401  a record may name values that are defined beside the recipes
from hectogpt.serialization import dump, load
from hectogpt.train import loop
from hectogpt.train import precision as machine
from hectogpt.train.run import Run

Row = dict[str, Any]
EVALUATION_WINDOW = 512
_ROOT = Path(__file__).resolve().parents[2]  # the child imports these same files
# What a trial is compared by leaves these out: the seed stands apart, the text is known by its hash, and threads
# change a run's seconds but not what it computes.
NOT_IDENTITY = ("seed", "threads", "corpus")


def identity(run: Row, sha256: dict[str, str], track: str, seed: int) -> str:
    """The SHA-256 that tells trials apart: recipe and whole run, the three token streams, track and seed."""
    with suppress(UserError):  # a record of a run that this version cannot express stands for itself
        run = dump(load(Run, run))  # fields that are newer than the record get their defaults
    fields = {name: value for name, value in run.items() if name not in NOT_IDENTITY}
    text = json.dumps([fields, [sha256[split] for split in ("train", "dev", "test")], track, seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


# --- records ----------------------------------------------------------------------------------------------------------

NEEDED: dict[str, type | tuple[type, ...]] = {
    "corpus": str,
    "track": str,
    "recipe": str,
    "seed": int,
    "dev_loss": (float, int),
    "run": dict,
}


def read_rows(path: Path) -> list[Row]:
    """The records of a JSONL file; a last line without its line end is half a record and is left out.

    Raises UserError (DATA), naming the line, for one that is not a record.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}", why=error.strerror or str(error), code=errors.DATA) from None
    rows: list[Row] = []
    for number, line in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise _damaged(path, number, f"it is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise _damaged(path, number, "a record is a JSON object")
        for name, kind in NEEDED.items():
            if not isinstance(row.get(name), kind):
                raise _damaged(path, number, f"field {name!r} is {row.get(name)!r}")
        rows.append(row)
    return rows


def _damaged(path: Path, number: int, why: str) -> UserError:
    return UserError(f"{path}, line {number} is not a record", why=why, fix="remove that line", code=errors.DATA)


def append_row(path: Path, row: Row) -> None:
    """Add one record: under a lock, after cutting off what a killed process left half written, flushed to disk."""
    line = (json.dumps(row, allow_nan=False) + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
            file.write(line)  # opened for appending: lands at the end whatever was read
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            f"cannot write to {path}",
            why=error.strerror or str(error),
            fix="--out with a file you may write to",
            kept="the records written before",
            code=errors.STORAGE,
        ) from None


# --- the parent's side ------------------------------------------------------------------------------------------------


def run_trial(run: Run, corpus: Corpus, test: bool, on_step: Callable[[int, float], None]) -> Row:
    """Train and score `run` in a new process; its part of the record, whatever becomes of the process.

    on_step is called with (step, loss). Never raises for a failed run: `status` is then "diverged" or "failed",
    `error` says why, and the losses are those of a uniform guess, ln(vocabulary).
    """
    result: Row = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
        child = subprocess.Popen(
            [sys.executable, "-m", "hectogpt.lab.trials"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])},
            start_new_session=True,  # Ctrl-C reaches the parent alone, which ends the child
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with suppress(BrokenPipeError), child.stdin:  # broken: it ended before it read; the exit code tells
                json.dump({"run": dump(run), "corpus": corpus.name, "test": test}, child.stdin)
            for line in child.stdout:
                message = json.loads(line)
                if "step" in message:
                    on_step(message["step"], message["loss"])
                else:
                    result = message
            code = child.wait()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            child.stdout.close()
        complaints.seek(0)
        complaint = complaints.read().strip().splitlines()
    if result and code == 0:
        return result
    end = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    error = f"the process ended with {end}{': ' + complaint[-1] if complaint else ''}"
    return {**_origin(), "machine": None, "params": None, "seconds": None, "peak_mb": None} | _guess(
        run, corpus, test, "failed", error
    )


def _guess(run: Run, corpus: Corpus, test: bool, status: str, error: str) -> Row:
    """What a trial without a usable model is worth: a uniform guess."""
    nats = math.log(run.model.vocab_size)
    row: Row = {"status": status, "error": error, "train_loss_last": nats, "train_loss_last10": nats}
    for split in ("dev", "test"):
        tokens = corpus.tokens[split][1:]
        bits = nats * len(tokens) / (math.log(2) * max(int(corpus.tokenizer.token_bytes[tokens].sum()), 1))
        scored = split == "dev" or test
        row |= {f"{split}_loss": nats if scored else None, f"{split}_bpb": bits if scored else None}
    return {"losses": [], "grad_norms": []} | row


def _origin() -> Row:
    """Version, the checkout's commit and whether the package's files differ from it; None outside a checkout."""
    git = ["git", "-C", str(_ROOT / "hectogpt")]
    row: Row = {"version": __version__, "commit": None, "dirty": None}
    with suppress(OSError, subprocess.CalledProcessError):
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "--", "."], capture_output=True, text=True, check=True)
        row |= {"commit": head.stdout.strip(), "dirty": bool(changed.stdout.strip())}
    return row


# --- the child's side -------------------------------------------------------------------------------------------------


def perform(run: Run, corpus: Corpus, test: bool) -> Iterator[Row]:
    """Train and score: a message {step, loss} after every step, at last the trial's part of the record.

    `seconds` are those of building and training, `peak_mb` is the memory up to their end; scoring is not in them.
    """
    row: Row = _origin()
    chosen = machine.choose(run)
    row["machine"] = {"kind": chosen.device.type, **chosen.describe()}
    begun = time.perf_counter()
    losses: list[float] = []
    norms: list[float] = []
    try:
        model = loop.build_model(run, chosen, corpus)
        row["params"] = sum(p.numel() for p in model.parameters())
        loop.compile_head(run, model, chosen)  # as `hectogpt train` does: with a soft cap it pays
        optimizer = run.optim.build(model)
        for step in loop.steps(run, model, optimizer, corpus, chosen):
            losses.append(step.loss)
            norms.append(step.grad_norm)
            yield {"step": step.step, "loss": step.loss}
        outcome: Row = {"status": "ok", "error": None}
    except UserError as error:
        if error.code != errors.DIVERGED:
            raise
        outcome = _guess(run, corpus, test, "diverged", f"{error.what}: {error.why}")
    row |= {"seconds": round(time.perf_counter() - begun, 2), "peak_mb": round(_peak_mb(chosen), 1)}
    if outcome["status"] == "ok":
        outcome |= {"train_loss_last": losses[-1], "train_loss_last10": sum(losses[-10:]) / len(losses[-10:])}
        outcome |= {"test_loss": None, "test_bpb": None}
        for split in ("dev", "test") if test else ("dev",):
            score = loop.evaluate(model, corpus.tokens[split], corpus.tokenizer.token_bytes, EVALUATION_WINDOW)
            outcome |= {f"{split}_loss": score.loss, f"{split}_bpb": score.bits_per_byte}
            if not math.isfinite(score.loss):
                error_text = f"{split} loss {score.loss} after {len(losses)} steps"
                outcome = _guess(run, corpus, test, "diverged", error_text)
                break
    yield row | outcome | {"losses": _digits(losses), "grad_norms": _digits(norms)}


def _digits(values: list[float]) -> list[float]:
    """Five significant digits: a curve for the eye."""
    return [float(f"{value:.5g}") for value in values]


def _peak_mb(chosen: machine.Machine) -> float:
    """MiB: on a GPU the largest allocation, else the process's largest resident size.

    From VmHWM where there is one: ru_maxrss starts at the size of the process that forked this one.
    """
    if chosen.device.type == "cuda":
        return torch.cuda.max_memory_allocated(chosen.device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    return machine.peak_memory_mb()


def main() -> None:
    """Do the trial that stdin asks for."""
    request = json.load(sys.stdin)
    corpus = open_corpus(request["corpus"], progress=False)
    for message in perform(load(Run, request["run"]), corpus, request["test"]):
        print(json.dumps(message, allow_nan=False), flush=True)


if __name__ == "__main__":
    main()
