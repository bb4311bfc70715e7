"""A training run: its description, optimizers and schedules, the loop, and its files on disk."""

import os

# Set before torch is loaded: threads that spin while they wait slow down a busy machine.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
