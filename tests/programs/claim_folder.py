"""Takes run folders of one name when told to by a line of standard input, and prints them. Argument: their root."""

from __future__ import annotations

import sys
from pathlib import Path

from hectogpt.lab import recipes
from hectogpt.train.run_folder import RunFolder

run = recipes.recipe("baseline")
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    print(RunFolder.create(run, False, "same", root=Path(sys.argv[1])).path.name)
