"""Compare training at two commits, bit for bit: python -m tools.same_bits RECIPE... --against COMMIT.

Both sides are driven through their command line and read from the files that a run leaves, so code may have
been moved or renamed in between. The working tree is copied at the start and may be edited during the comparison.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from tools import ROOT

EPILOG = """example, a quick one:
  python -m tools.same_bits baseline new_name=old_name --against HEAD~3 --steps 3 -- --data.batch-size 2

OPTIONS of `hectogpt train` go to both sides. Exit codes: 0 equal, 1 different, 2 something could not run."""


class Result(NamedTuple):
    """The results of a run. steps: (step, loss, gradient norm). tensors: weights by name. dtypes: blocks, head."""

    steps: list[tuple[int, float, float]]
    tensors: dict[str, Tensor]
    dtypes: list[str]


def read_result(folder: Path) -> Result:
    """The result in a folder that `hectogpt train` wrote."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [(r["step"], r["train/loss"], r["train/grad_norm"]) for r in rows if "train/loss" in r]
    machine = json.loads((folder / "run.json").read_text(encoding="utf-8"))["machine"]
    return Result(steps, load_file(folder / "model.safetensors"), [machine["dtype"], machine["head_dtype"]])


def first_difference(theirs: Result, ours: Result) -> str:
    """Describe the first difference in losses and norms, step by step, then in weights; "" if there is none."""
    for (step, *a), (our_step, *b) in zip(theirs.steps, ours.steps, strict=False):
        if step != our_step:
            return f"step {step} there, step {our_step} here"
        for what, x, y in zip(("loss", "grad_norm"), a, b, strict=True):
            if x != y and not (math.isnan(x) and math.isnan(y)):
                return f"step {step}, train/{what}: {x!r} there, {y!r} here"
    if len(theirs.steps) != len(ours.steps):
        return f"{len(theirs.steps)} steps there, {len(ours.steps)} here"
    for name in sorted(theirs.tensors.keys() | ours.tensors.keys()):
        if name not in ours.tensors or name not in theirs.tensors:
            return f"tensor {name} exists only {'there' if name in theirs.tensors else 'here'}"
        there, here = theirs.tensors[name], ours.tensors[name]
        kinds = [f"{one.dtype} {list(one.shape)}".removeprefix("torch.") for one in (there, here)]
        if kinds[0] != kinds[1]:
            return f"tensor {name}: {kinds[0]} there, {kinds[1]} here"
        # Bits are compared: NaN equals NaN, -0 does not equal 0.
        bits = [one.flatten().view(torch.uint8).view(-1, one.itemsize) for one in (there, here)]
        if count := int((bits[0] != bits[1]).any(-1).sum()):
            largest = (there.double() - here.double()).abs().nan_to_num().max().item()
            return f"tensor {name}: {count:,} entries of {kinds[0]} differ, by {largest!r} at most"
    return ""


def copy_packages(folder: Path, commit: str) -> None:
    """Write the package of the working tree to here/, that of the commit to other/. Raises CalledProcessError."""
    shutil.copytree(ROOT / "hectogpt", folder / "here/hectogpt", ignore=shutil.ignore_patterns("__pycache__"))
    archive = ["git", "-C", str(ROOT), "archive", commit, "hectogpt"]
    done = subprocess.run(archive, check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as packed:
        packed.extractall(folder / "other", filter="data")


def train(folder: Path, tree: str, recipe: str, dtypes: Sequence[str], options: Sequence[str]) -> Result:
    """Train with the package of `tree` and read the result. Raises CalledProcessError."""
    out = Path(tempfile.mkdtemp(dir=folder)) / "run"
    given = ["--quiet", "--out", str(out), "--dtype", dtypes[0], "--head-dtype", dtypes[1], *options]
    environment = os.environ | {"PYTHONPATH": str(folder / tree), "HECTOGPT_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "hectogpt", "train", recipe, *given]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    return read_result(out)


def compare(folder: Path, recipe: str, precision: str, options: Sequence[str]) -> bool:
    """Train a recipe, NAME or NEW=OLD, on both sides and print the first difference. Returns True if there is none.

    "auto" is chosen by timing, so our side gets the dtypes that theirs chose."""
    new, _, old = recipe.partition("=")
    theirs = train(folder, "other", old or new, [precision] * 2, options)
    ours = train(folder, "here", new, theirs.dtypes, options)
    found = first_difference(theirs, ours)
    what = found or f"{len(ours.steps)} steps, {len(ours.tensors)} tensors"
    print(f"{'DIFFERS' if found else 'equal':<8}{recipe}, {precision}: {what} ({' and '.join(theirs.dtypes)} head)")
    return not found


def arguments(argv: list[str]) -> Any:
    """Parse the command line; `extra` has the further options of the runs."""
    bar = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        prog="python -m tools.same_bits",
        usage="%(prog)s RECIPE... --against COMMIT [options] [-- OPTIONS]",
        description="Train recipes in the working tree and at another commit; compare every loss, norm and weight.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="a name, or NEW=OLD (here and there)")
    parser.add_argument("--against", required=True, metavar="COMMIT", help="the commit to compare with")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--precision", nargs="+", default=["float32", "auto"], help="of blocks and head")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    return parser.parse_args(argv[:bar], argparse.Namespace(extra=argv[bar + 1 :]))


def main(argv: list[str]) -> int:
    """Run the command line, and return the exit code."""
    asked = arguments(argv)
    options = ["--steps", str(asked.steps), "--threads", str(asked.threads), *asked.extra]
    with tempfile.TemporaryDirectory(prefix="same-bits-") as name:
        try:
            copy_packages(Path(name), asked.against)
            pairs = [(recipe, precision) for recipe in asked.recipes for precision in asked.precision]
            return int(not all([compare(Path(name), *pair, options) for pair in pairs]))
        except subprocess.CalledProcessError as error:
            print(f"{' '.join(error.cmd)}: exit code {error.returncode}\n{error.stderr[-600:]}", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
