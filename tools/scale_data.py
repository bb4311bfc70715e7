"""What preparing a large corpus takes on this machine: peak memory by size, what a resume saves, an unchanged folder.

`python -m tools.scale --measure` calls it. The text is generated: sentences of random English-like words.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIZES = (50, 200)  # MB of text
FILES = 100_000
SYLLABLES = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "er", "ing")]

PREPARE = """
import sys, time
from hectogpt import hardware
from hectogpt.data import CorpusCache, SourceOptions, token_files
token_files.MARK_SECONDS = 1.0
cache = CorpusCache(sys.argv[1], SourceOptions(), sys.argv[2])
begun, computing = time.perf_counter(), time.process_time()
cache.build(progress=False, workers=int(sys.argv[3]))
print(time.perf_counter() - begun, time.process_time() - computing, hardware.peak_memory_mb())
"""


def write_text(path: Path, megabytes: int) -> None:
    """A .jsonl of documents of about 4 KB."""
    draw = random.Random(0)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 3))) for _ in range(20_000)]
    with path.open("w", encoding="utf-8") as file:
        written = 0
        while written < megabytes * 1_000_000:
            text = " ".join(draw.choices(words, k=600))
            written += file.write(json.dumps({"text": text}) + "\n")


def prepare(path: Path, cache: Path, workers: int = 2) -> subprocess.Popen[str]:
    """A process that prepares the corpus."""
    line = [sys.executable, "-c", PREPARE, str(path), str(cache), str(workers)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, text=True)


def figures(child: subprocess.Popen[str]) -> dict[str, float]:
    """Seconds, seconds of all cores, and MiB at the most, that it printed."""
    seconds, computing, peak = map(float, child.communicate()[0].split())
    return {"seconds": round(seconds, 2), "cpu": round(computing, 2), "peak_mib": round(peak, 1)}


def measure_folder(folder: Path) -> dict[str, float]:
    """Seconds to recognise FILES unchanged files, the first time and after, and of the processor."""
    from hectogpt.data.names import find_source
    from hectogpt.data.sources import SourceOptions

    for number in range(FILES):
        path = folder / f"{number // 1000:03}" / f"{number % 1000:03}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"Text {number} of a folder of many.\n", encoding="utf-8")
    time.sleep(2.1)  # files that have just changed are not remembered
    found = []
    for _ in range(6):
        begun = time.perf_counter(), time.process_time()
        find_source(str(folder), SourceOptions(), folder.parent / "cache")
        found.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    again = min(found[1:])
    return {"first": round(found[0][0], 2), "again": round(again[0], 2), "again_cpu": round(again[1], 2)}


def measure() -> dict[str, Any]:
    """All of it; a few minutes."""
    with tempfile.TemporaryDirectory(prefix="hectogpt-scale-") as name:
        base = Path(name)
        found: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "sizes": {}}
        for megabytes in SIZES:
            write_text(base / f"{megabytes}.jsonl", megabytes)
            found["sizes"][str(megabytes)] = figures(prepare(base / f"{megabytes}.jsonl", base / "cache"))
        whole = found["sizes"][str(SIZES[-1])]["seconds"]
        killed = prepare(base / f"{SIZES[-1]}.jsonl", base / "again")
        time.sleep(0.7 * whole)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        found["after_kill"] = figures(prepare(base / f"{SIZES[-1]}.jsonl", base / "again"))
        together = [prepare(base / f"{SIZES[0]}.jsonl", base / "together", 1) for _ in range(3)]
        found["together"] = [child.wait() for child in together]
        found["folder"] = measure_folder(base / "folder")
        return found
