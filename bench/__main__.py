"""Every question of this folder in turn, each in a process of its own: `python -m bench` (make bench)."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

QUESTIONS = ("start", "tokens", "roofline", "step", "head", "decode")


def main() -> None:
    failed = []
    for question in QUESTIONS:
        print(f"--- {question}", flush=True)
        start = time.perf_counter()
        if subprocess.run([sys.executable, str(Path(__file__).with_name(f"{question}.py"))], check=False).returncode:
            failed.append(question)
        print(f"--- {question}: {time.perf_counter() - start:.0f} s", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
