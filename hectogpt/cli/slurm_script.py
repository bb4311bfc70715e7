"""The script for `sbatch`: an array whose tasks run the trials of a comparison. slurm.schedmd.com: "sbatch"."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from hectogpt.lab.slurm import script_path


def render_script(command: Sequence[str], out: Path, tasks: int, threads: int, gpu: bool) -> str:
    """The script. command: what a task runs. out: the file of records. tasks: how many there are; each runs one trial
    at a time, with this many threads, and a GPU if `gpu`."""
    out = out.absolute()
    resources = [f"--cpus-per-task={threads}"] + ["--gpus-per-task=1"] * gpu
    options = ["--job-name=hectogpt-compare", f"--array=0-{tasks - 1}", "--ntasks=1", *resources]
    options += [f"--chdir={shlex.quote(str(Path.cwd()))}", f"--output={shlex.quote(str(out))}.task-%a.log"]
    options += ["--open-mode=append", "--requeue"]
    lines = [
        "#!/bin/bash",
        f"# The trials of a comparison, shared by {tasks} tasks, which write their records to",
        f"# {out}",
        "# Every node must see that folder, and its file system must have locks (flock).",
        f"# Submit it with:  sbatch [--partition=NAME --time=2:00:00 ...] {shlex.quote(str(script_path(out)))}",
        "# Options given to sbatch count before those below. Submitted again, it runs what is still missing.",
        *(f"#SBATCH {option}" for option in options),
        "",
        f"exec {shlex.join(command)}",
    ]
    return "\n".join(lines) + "\n"
