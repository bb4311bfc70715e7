"""Prints how the head of a run that is long enough to compile it runs, and the folder of the compiled code; then the
same for each value of $XDG_CACHE_HOME among the arguments, without a $TORCHINDUCTOR_CACHE_DIR."""

from __future__ import annotations

import os
import sys

from hectogpt.model import ModelConfig, Transformer
from hectogpt.training import precision, setup
from hectogpt.training.run import Data, Run

run = Run(
    model=ModelConfig(4, 1, 0, 64, 64),
    data=Data(batch_size=128, seq_len=64),
    steps=1000,
    device="cpu",
    dtype="float32",
    head_dtype="float32",
    threads=1,
)


def compile_head() -> None:
    print(setup.compile_head(run, Transformer(run.model), precision.choose(run)))
    print(os.environ["TORCHINDUCTOR_CACHE_DIR"])


compile_head()
for base in sys.argv[1:]:
    del os.environ["TORCHINDUCTOR_CACHE_DIR"]
    os.environ["XDG_CACHE_HOME"] = base
    compile_head()
