"""Asks a child that hangs, and prints its process id and that of what it has started: for tests that end this program.

Argument: what the child is to do.
"""

from __future__ import annotations

import signal
import sys

from hectogpt import process

signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background may have set it to be ignored
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
process.ask("child", {"do": sys.argv[1]}, lambda message: print(*message.values(), flush=True))
