"""A training run: its description, optimizers and schedules, the loop, what it leaves on disk."""
