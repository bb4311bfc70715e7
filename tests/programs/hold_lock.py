"""Takes a lock, says so and holds it until it is killed. Argument: the lock's file."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from hectogpt import files

with files.lock(Path(sys.argv[1]), "at work"):
    print("held", flush=True)
    time.sleep(600)
