"""Slurm as the engine of a comparison: an array with a task for each trial that is missing, all over one file of
records. slurm.schedmd.com: "Job array support"."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hectogpt.lab.compare import Comparison, Trial
from hectogpt.lab.engines import gpus_for, threads_of


def task_number() -> int | None:
    """Which of a comparison's trials this process is to run; None outside a task of an array."""
    text = os.environ.get("SLURM_ARRAY_TASK_ID")
    return int(text) if text else None


def script_path(out: Path) -> Path:
    """Where the script for a file of records is."""
    return out.with_suffix(".sbatch.sh")


def array_script(comparison: Comparison, missing: Sequence[Trial], words: Sequence[str], at_a_time: int | None) -> str:
    """The script for `sbatch`. words: of the command `hectogpt compare`, which each task runs again for its own trial.
    at_a_time: how many tasks run together; None for as many as Slurm starts."""
    threads, out = threads_of(comparison), shlex.quote(str(comparison.out.absolute()))
    path = shlex.quote(str(script_path(comparison.out)))
    trials = comparison.trials()
    numbers = ",".join(str(trials.index(trial)) for trial in missing) + (f"%{at_a_time}" if at_a_time else "")
    gpu = comparison.track.allows_gpu and bool(gpus_for(comparison.arms, 1))
    if len({comparison.run_of(Trial(arm, 0)).threads for arm in comparison.arms}) == 1:
        words = [*words, "--threads", str(threads)]  # as many on every node
    options = [f"--array={numbers}", "--ntasks=1", f"--cpus-per-task={threads}", *["--gpus-per-task=1"] * gpu]
    options += [f"--chdir={shlex.quote(str(Path.cwd()))}", f"--output={out}.task-%a.log", "--open-mode=append"]
    lines = [
        "#!/bin/bash",
        f"# Trials of a comparison, a task for each; their records go to {out}",
        "# Every node must see that folder, and its file system must have locks (flock).",
        f"# Submit it with:  sbatch [--partition=NAME --time=2:00:00 ...] {path}",
        "# Options given to sbatch count before those below.",
        *(f"#SBATCH {option}" for option in (*options, "--requeue")),
        "",
        f"exec {shlex.join([sys.executable, '-m', 'hectogpt', 'compare', *words])}",
    ]
    return "\n".join(lines) + "\n"
