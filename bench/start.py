"""How long one waits: for a command's help, for the import of the training loop, for the first training step."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.race import Lap, race, timed
from bench.record import ROOT, Row

ROUNDS = 3
PACKAGES = ()
SETTINGS = ("all", "tiny")
COMMANDS = {
    "hectogpt --help": ["-m", "hectogpt", "--help"],
    "import hectogpt.train.loop": ["-c", "import hectogpt.train.loop"],
    "hectogpt train --help": ["-m", "hectogpt", "train", "--help"],
}


def run(arguments: list[str]) -> None:
    """One command, to its end."""
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=ROOT)


def train_one_step(folder: Path) -> Lap:
    """Seconds from the command to the end of its first step; the corpus is in the cache from the second lap on."""

    def lap() -> float:
        out = Path(tempfile.mkdtemp(dir=folder))
        command = [
            sys.executable,
            "-u",
            "-m",
            "hectogpt",
            "train",
            "baseline",
            "--steps",
            "1",
            "--out",
            str(out / "run"),
        ]
        start = time.perf_counter()
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT) as child:
            assert child.stderr is not None
            words = []
            for line in child.stderr:
                words.append(line)
                if line.startswith("step "):
                    taken = time.perf_counter() - start
                    child.terminate()
                    child.communicate()
                    return taken
        raise RuntimeError("no step was shown:\n" + "".join(words))

    return lap


def measure(setting: str, rounds: int) -> Iterator[tuple[str, list[Row]]]:
    """Median seconds; "tiny" is the first command alone."""
    with tempfile.TemporaryDirectory() as folder:
        contenders = {name: timed(partial(run, words)) for name, words in COMMANDS.items()}
        contenders["first training step"] = train_one_step(Path(folder))
        if setting == "tiny":
            contenders = {"hectogpt --help": contenders["hectogpt --help"]}
        laps = race(contenders, rounds)
    yield "waiting", [{"contender": n, "rounds": rounds, "seconds": round(laps.median(n), 3)} for n in contenders]
