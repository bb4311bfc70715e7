"""Runs a kit's tests on many solutions, one after the other, in one process.

Reads JSON: the folder of a kit, and a list of [part, file, source]. For each, the file gets that source, and the part's
tests are run. Prints a line of JSON for each: state and reason. What the solutions print goes nowhere.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

import torch

from hectogpt.assignment.progress import run_part

request = json.load(sys.stdin)
folder = Path(request["folder"])
sys.dont_write_bytecode = True
sys.path[:0] = [str(folder), str(folder / "tests")]
given = {name: (folder / name).read_text(encoding="utf-8") for name in ("model_solution.py", "train.py", "utils.py")}

torch.set_num_threads(1)
for part, file, source in request["solutions"]:
    for name in ("model_solution", "train", "utils", "checking", f"test_{part}"):
        sys.modules.pop(name, None)
    (folder / file).write_text(source, encoding="utf-8")
    torch.manual_seed(1)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        verdict = run_part(folder, part)
    (folder / file).write_text(given[file], encoding="utf-8")
    print(json.dumps(verdict), flush=True)
