"""How long a user waits: `hectogpt --help`, the import of the training room, the first training step."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from record import record  # noqa: E402

ROUNDS = 3
COMMANDS = {
    "hectogpt --help": ["-m", "hectogpt", "--help"],
    "import hectogpt.train.loop": ["-c", "import hectogpt.train.loop"],
    "hectogpt train --help": ["-m", "hectogpt", "train", "--help"],
}
FIRST_STEP = ["-m", "hectogpt", "train", "baseline", "--steps", "1", "--out"]


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - start


def to_first_step(folder: Path) -> float:
    """Seconds from the command to the end of its first step; the corpus is already in the cache."""
    start = time.perf_counter()
    command = [sys.executable, "-u", *FIRST_STEP, str(folder)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT)
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("step "):
            break
    taken = time.perf_counter() - start
    child.terminate()
    child.communicate()
    return taken


def main() -> None:
    """Print a table and append one line to results/bench.jsonl."""
    os.environ["PYTHONPATH"] = str(ROOT)
    taken = {name: statistics.median(seconds(words) for _ in range(ROUNDS)) for name, words in COMMANDS.items()}
    with tempfile.TemporaryDirectory() as folder:
        to_first_step(Path(folder) / "warm")
        waits = [to_first_step(Path(folder) / str(turn)) for turn in range(ROUNDS)]
    taken["first training step"] = statistics.median(waits)
    rows = [{"contender": name, "rounds": ROUNDS, "seconds": round(value, 3)} for name, value in taken.items()]
    record("waiting", list(rows))
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
