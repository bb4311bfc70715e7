"""A training run: its description, optimizers and schedules, the loop, what it leaves on disk."""

import os

# Before torch is loaded: threads that wait by spinning slow down a busy machine.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
