"""Shows the page "A trained model" as `hectogpt explore --model MODEL --idea FILE` would: prints its HTML."""

import argparse
import runpy
from pathlib import Path
from types import SimpleNamespace

from hectogpt.explore.pages import controls
from hectogpt.explore.pages.server import APP

parser = argparse.ArgumentParser()
parser.add_argument("--model")
parser.add_argument("--idea", type=Path, action="append", default=[])
arguments = parser.parse_args()

controls.asked = controls.Asked(arguments.model, tuple(arguments.idea))
cells = runpy.run_path(str(APP))["app"]
outputs, _ = cells.run(defs={"page": SimpleNamespace(value=controls.TRAINED)})
print("".join(getattr(output, "text", "") for output in outputs))
