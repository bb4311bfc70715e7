"""How long a user waits: for a command's help, for an import, for the first training step, for the first new token."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from bench.race import Lap, Race, Row, timed
from bench.record import ROOT

PACKAGES = ()
SETTINGS = ("all", "tiny")
COMMANDS = {
    "hectogpt --help": ["-m", "hectogpt", "--help"],
    "import hectogpt": ["-c", "import hectogpt"],
    "hectogpt train --help": ["-m", "hectogpt", "train", "--help"],
}
STEPS = {"first training step, baseline": ["baseline"], "first training step, the default": []}
TOKEN = "first token of generate"
PROMPT = "The state of"


def until_step(stderr: IO[bytes]) -> bool:
    """Read until a step is shown. True if one was."""
    return any(line.startswith(b"step ") for line in stderr)


def until_token(stdout: IO[bytes]) -> bool:
    """Read until more than the prompt is shown. True if that came."""
    return len(stdout.read(len(PROMPT) + 1)) > len(PROMPT)


def wait_for(command: list[str], stream: str) -> Row:
    """Seconds from a `hectogpt` command to a step on stderr, or a token on stdout. The command is then ended. Raises
    RuntimeError if it ends earlier."""
    begun = time.perf_counter()
    out, err = (subprocess.PIPE if stream == name else subprocess.DEVNULL for name in ("stdout", "stderr"))
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "hectogpt", *command], cwd=ROOT, stdout=out, stderr=err
    ) as child:
        found = until_step(child.stderr) if child.stderr else child.stdout is not None and until_token(child.stdout)
        seconds = time.perf_counter() - begun
        child.kill()
    if not found:
        raise RuntimeError(f"hectogpt {' '.join(command)}: it ended too early")
    return {"seconds": seconds}


def prepare(setting: str, contender: str, folder: str) -> dict[str, Lap]:
    """One command, to its end or to the awaited output. From the second lap on the corpus is in the cache."""
    if contender in COMMANDS:
        command = [sys.executable, *COMMANDS[contender]]
        return {"step": timed(lambda: subprocess.run(command, check=True, capture_output=True, cwd=ROOT))}
    if contender == TOKEN:
        from hectogpt.lab import recipes
        from hectogpt.model import Transformer
        from hectogpt.model.weights import save_model

        save_model(Transformer(recipes.recipe("baseline").model), Path(folder))
        return {"step": lambda: wait_for(["generate", folder, PROMPT, "--max-new-tokens", "2"], "stdout")}
    train = ["train", *STEPS[contender], "--steps", "2", "--out"]
    return {"step": lambda: wait_for([*train, tempfile.mkdtemp(dir=folder) + "/run"], "stderr")}


def measure(setting: str, race: Race) -> Iterator[tuple[str, list[Row]]]:
    """Median seconds; "tiny" has only the first and the last one."""
    names = [*COMMANDS, *STEPS, TOKEN]
    (laps,) = race.run(__name__, setting, [names[0], names[-1]] if setting == "tiny" else names)
    yield "waiting", laps.rows(lambda name: {"seconds": round(laps.median(name), 3)})
