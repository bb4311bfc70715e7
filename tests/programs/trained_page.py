"""Shows the page "A trained model" as `hectogpt explore` would with this program's arguments: prints its HTML."""

import runpy
from types import SimpleNamespace

from hectogpt.cli.explore import APP
from hectogpt.explore.pages import controls

cells = runpy.run_path(str(APP))["app"]
outputs, _ = cells.run(defs={"page": SimpleNamespace(value=controls.TRAINED)})
print("".join(getattr(output, "text", "") for output in outputs))
