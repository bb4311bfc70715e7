"""Computations that were made once for an answer or a record, and the answers themselves."""
