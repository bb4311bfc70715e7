"""Prints the largest difference of the losses of a run with and without compiled blocks. Argument: the token file.

A program of its own because the compiler cannot trace the run-time type checks of the tests.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from hectogpt.data import open_corpus
from hectogpt.lab import recipes
from hectogpt.training.run import Data
from hectogpt.training.session import Session

whole = recipes.recipe("top")
run = replace(
    whole,
    model=replace(whole.model, d_model=32, context_length=32),
    data=Data(4, 32),
    steps=3,
    threads=1,
    device="cpu",
    head_dtype="float32",
)
corpus = open_corpus(sys.argv[1])
plain, compiled = (
    [step.loss for step in Session.open(replace(run, compile=compile), corpus).steps()] for compile in (False, True)
)
print(max(abs(a - b) for a, b in zip(plain, compiled, strict=True)))
