"""Appends 100 lines to a file when told to by a line of standard input. Arguments: the file, the lines' first word."""

from __future__ import annotations

import sys
from pathlib import Path

from hectogpt.files import append_line

print("ready", flush=True)
sys.stdin.readline()
for n in range(100):
    append_line(Path(sys.argv[1]), f"{sys.argv[2]} {n} {'x' * 5000}")
