"""Comparing runs: recipes and the ladder they form, trials, their records, paired statistics."""
