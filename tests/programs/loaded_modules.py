"""Train a step and generate a token, and print which slow packages each has loaded, a line each.

Arguments: a text file to train on, an empty folder for the model.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

SLOW = {"matplotlib", "pandas", "plotly", "scipy", "transformers", "marimo", "datasets", "sympy", "torch._dynamo"}
text, folder = sys.argv[1:]


def tell(what: str) -> None:
    print(what, *sorted(SLOW & set(sys.modules)))


importlib.import_module("hectogpt.cli.generate")
tell("generate, imported")
from hectogpt.cli import main, train  # noqa: E402
from hectogpt.model import Transformer  # noqa: E402
from hectogpt.model.weights import save_model  # noqa: E402
from hectogpt.training.session import Session  # noqa: E402

tell("train, imported")
small = ["--model.d-model", "12", "--data.seq-len", "8", "--data.batch-size", "2", "--quiet", "--corpus", text]
run = train.parse(["muon", *small]).run
save_model(Transformer(run.model), Path(folder))
sys.stdout.flush()
main(["generate", folder, "The", "--max-new-tokens", "1", "--quiet", "--device", "cpu"])
tell("\ngenerate, a token")
next(Session.open(run).steps())
tell("train, a step")
