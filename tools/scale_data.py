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

SIZES = (50, 300)  # MB of text
FILES = 100_000
SYLLABLES = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "er", "ing")]

PREPARE = """
import sys, time
from hectogpt import hardware
from hectogpt.data import CorpusCache, SourceOptions, token_files
token_files.MARK_SECONDS = 1.0
cache = CorpusCache(sys.argv[1], SourceOptions(), sys.argv[2])
begun, before = time.perf_counter(), hardware.resident_memory_mb()
cache.build(progress=False, workers=int(sys.argv[3]))
print(time.perf_counter() - begun, hardware.peak_memory_mb(), before)
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
    """Seconds, and MiB at the most and before, that it printed."""
    seconds, peak, before = map(float, child.communicate()[0].split())
    return {"seconds": round(seconds, 2), "peak_mib": round(peak, 1), "before_mib": round(before, 1)}


def measure_folder(folder: Path) -> dict[str, float]:
    """Seconds to recognise FILES unchanged files, the first time and after."""
    from hectogpt.data.names import find_source
    from hectogpt.data.sources import SourceOptions

    for number in range(FILES):
        path = folder / f"{number // 1000:03}" / f"{number % 1000:03}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"Text {number} of a folder of many.\n", encoding="utf-8")
    time.sleep(2.1)  # files that have just changed are not remembered
    found = []
    for _ in range(4):
        begun = time.perf_counter()
        find_source(str(folder), SourceOptions(), folder.parent / "cache")
        found.append(round(time.perf_counter() - begun, 2))
    return {"first": found[0], "again": min(found[1:])}


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
