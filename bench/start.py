"""How long one waits: for a command's help, for an import, for the first training step, for the first new token."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

from bench.race import Lap, race, timed
from bench.record import ROOT, Row
from hectogpt.lab.recipes import DEFAULT

PACKAGES = ()
SETTINGS = ("all", "tiny")
CODE = {
    "hectogpt --help": ["-m", "hectogpt", "--help"],
    "import hectogpt": ["-c", "import hectogpt"],
    "import hectogpt.training.loop": ["-c", "import hectogpt.training.loop"],
    "hectogpt train --help": ["-m", "hectogpt", "train", "--help"],
}
PROMPT = "The state of"


def run(arguments: list[str]) -> None:
    """One command, to its end."""
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=ROOT)


def until_step(stderr: IO[bytes]) -> bool:
    """Read until a step is shown; whether one was."""
    return any(line.startswith(b"step ") for line in stderr)


def until_token(stdout: IO[bytes]) -> bool:
    """Read until more than the prompt is shown; whether that came."""
    return len(stdout.read(len(PROMPT) + 1)) > len(PROMPT)


def wait_for(command: list[str], stream: str) -> float:
    """Seconds from a `hectogpt` command to what is waited for: a step on stderr, or a token on stdout. The command is
    then ended. Raises RuntimeError if it ends before."""
    begun = time.perf_counter()
    out, err = (subprocess.PIPE if stream == name else subprocess.DEVNULL for name in ("stdout", "stderr"))
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "hectogpt", *command], cwd=ROOT, stdout=out, stderr=err
    ) as child:
        found = until_step(child.stderr) if child.stderr else child.stdout is not None and until_token(child.stdout)
        taken = time.perf_counter() - begun
        child.kill()
    if not found:
        raise RuntimeError(f"hectogpt {' '.join(command)}: it ended before")
    return taken


def train_one_step(recipe: str, folder: Path) -> Lap:
    """Seconds from the command to the end of its first step; the corpus is in the cache from the second lap on."""

    def lap() -> float:
        out = Path(tempfile.mkdtemp(dir=folder)) / "run"
        return wait_for(["train", recipe, "--steps", "2", "--out", str(out)], "stderr")

    return lap


def generate_one_token(folder: Path) -> Lap:
    """Seconds from the command to the first new token of a model of the assignment's size."""
    from hectogpt.lab import recipes
    from hectogpt.model import Transformer
    from hectogpt.model.weights import save_model

    save_model(Transformer(recipes.recipe("baseline").model), folder)
    return lambda: wait_for(["generate", str(folder), PROMPT, "--max-new-tokens", "2"], "stdout")


def measure(setting: str, rounds: int) -> Iterator[tuple[str, list[Row]]]:
    """Median seconds; "tiny" is the first command alone."""
    contenders = {name: timed(partial(run, words)) for name, words in CODE.items()}
    with tempfile.TemporaryDirectory() as folder:
        if setting == "tiny":
            contenders = {"hectogpt --help": contenders["hectogpt --help"]}
        else:
            for name, recipe in (("baseline", "baseline"), ("the default", DEFAULT)):
                contenders[f"first training step, {name}"] = train_one_step(recipe, Path(folder))
            contenders["first token of generate"] = generate_one_token(Path(tempfile.mkdtemp(dir=folder)))
        laps = race(contenders, rounds)
    yield "waiting", [{"contender": n, "rounds": rounds, "seconds": round(laps.median(n), 3)} for n in contenders]
