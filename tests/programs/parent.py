"""Asks a child that hangs, and prints the child's process id: for tests that end this program."""

from __future__ import annotations

import signal

from hectogpt import worker

signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background may have set it to be ignored
worker.ask("child", {"do": "hang"}, lambda message: print(message["started"], flush=True))
