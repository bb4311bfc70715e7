"""Who may do what: one module replaces files, one reads /proc, one starts processes, and only cli/ spells flags.

Every law reads the syntax trees of the package. Where it allows an exception, the exception is listed with its reason.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest
from helpers import ROOT

PACKAGE = ROOT / "hectogpt"
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

# Literals below cli/ that hold something like a flag and are none of ours.
FLAGS_OF_OTHERS = {
    "data/tokenizer.py": "python -m pip install --force-reinstall --no-deps",  # how to mend a broken installation
    "hardware.py": "--porcelain",  # git's
    "training/tracker_child.py": "tensorboard --logdir",  # how to look at what was written
}
FLAG = re.compile(r"(?:^|[ `'\"(])--[a-z]")
CSS_VARIABLE = re.compile(r"--[a-z]+:|var\(--[a-z]+\)")
CSS = ("explore/pages/", "lab/report/page.py")


@cache
def tree(name: str) -> ast.Module:
    return ast.parse((PACKAGE / name).read_text(encoding="utf-8"))


@cache
def imported(name: str) -> set[str]:
    """Dotted names of everything that the module imports, at any place in it."""
    found: set[str] = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@cache
def spelt(name: str) -> set[str]:
    """Dotted names that the module writes, as in `os.replace(a, b)`."""
    return {ast.unparse(node) for node in ast.walk(tree(name)) if isinstance(node, ast.Attribute)}


def uses(name: str, *banned: str) -> list[str]:
    """What of `banned` (dotted names; "time" stands for all of time) the module imports or writes."""
    return [b for b in banned if any(n == b or n.startswith(f"{b}.") for n in spelt(name) | imported(name))]


def calls(name: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(name)) if isinstance(node, ast.Call))


def literals(name: str) -> Iterator[tuple[int, str]]:
    """Line and text of the module's strings, the constant parts of f-strings among them, docstrings not."""
    module, documented = tree(name), (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(module)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def owners(found: dict[str, object]) -> set[str]:
    return {name for name, value in found.items() if value}


def test_only_files_replaces_syncs_and_locks() -> None:
    banned = ("os.replace", "os.rename", "os.renames", "os.fsync", "os.fdatasync", "shutil.move", "fcntl", "msvcrt")
    assert owners({name: uses(name, *banned) for name in MODULES}) == {"files.py"}
    # Path.rename and Path.replace go by the number of arguments: str.replace takes two.
    renames = {
        name: [
            call.lineno
            for call in calls(name)
            if isinstance(call.func, ast.Attribute)
            and (call.func.attr == "rename" or (call.func.attr == "replace" and len(call.args) == 1))
            and not call.keywords
            and ast.unparse(call.func) != "mo.output.replace"  # what a notebook's cell shows
        ]
        for name in MODULES
    }
    assert owners(renames) <= {"files.py"}, renames


def test_only_hardware_reads_proc_and_runs_git() -> None:
    proc = {name: [n for n, text in literals(name) if text.startswith(("/proc", "/sys"))] for name in MODULES}
    assert owners(proc) == {"hardware.py"}
    commands = {
        name: [
            node.lineno
            for node in ast.walk(tree(name))
            if isinstance(node, ast.List) and node.elts and ast.unparse(node.elts[0]) == "'git'"
        ]
        for name in MODULES
    }
    assert owners(commands) == {"hardware.py"}
    facts = ("resource", "os.cpu_count", "os.sched_getaffinity", "os.sysconf", "torch.cuda.mem_get_info", "psutil")
    assert owners({name: uses(name, *facts) for name in MODULES}) == {"hardware.py"}


def test_few_modules_start_processes() -> None:
    banned = ("subprocess", "multiprocessing", "concurrent.futures.ProcessPoolExecutor", "os.system", "os.popen")
    banned += ("os.fork", "os.posix_spawn", "os.execv", "os.execvp", "os.spawnv", "pty", "asyncio.subprocess")
    allowed = {"worker.py", "feed.py", "hardware.py", "cli/explore.py"}
    assert owners({name: uses(name, *banned) for name in MODULES}) == allowed


def flags(name: str) -> list[str]:
    exception = FLAGS_OF_OTHERS.get(name, "")
    texts = [(n, text.replace(exception, "")) for n, text in literals(name)]
    if name.startswith(CSS):
        texts = [(n, CSS_VARIABLE.sub("", text)) for n, text in texts]
    return [f"{n}: {text}" for n, text in texts if FLAG.search(text)]


def test_only_the_command_line_spells_flags() -> None:
    """Errors name fields, "set data.seq_len to 32"; hectogpt/cli turns these into options."""
    found = {name: flags(name) for name in MODULES if not name.startswith("cli/")}
    assert {name: where for name, where in found.items() if where} == {}


def test_the_exceptions_are_needed() -> None:
    for name, exception in FLAGS_OF_OTHERS.items():
        assert any(exception in text for _, text in literals(name)), f"{name} needs no exception any more"


def test_a_model_knows_no_clock_and_no_environment() -> None:
    banned = ("time", "datetime", "os.environ", "os.getenv", "os.putenv", "os.environb", "timeit", "torch.cuda.Event")
    assert owners({name: uses(name, *banned) for name in MODULES if name.startswith("model/")}) == set()


def test_only_parallel_may_speak_to_other_processes_of_a_run() -> None:
    banned = ("torch.distributed", "torch.multiprocessing")
    owned = {"training/parallel.py", "training/sums.py", "training/sharded.py", "training/sharded_optimizer.py"}
    owned |= {"training/sharded_checkpoint.py"}
    assert owners({name: uses(name, *banned) for name in MODULES}) <= owned


def test_ground_needs_the_standard_library_alone() -> None:
    """Torch is asked by hardware only, and only when somebody asks about a GPU."""
    for name in ("errors.py", "serialization.py", "files.py", "hardware.py", "worker.py", "json_files.py"):
        foreign = {n.split(".")[0] for n in imported(name)} & {"torch", "numpy", "scipy", "rich", "tyro"}
        assert foreign <= ({"torch"} if name == "hardware.py" else set()), name
        at_top = [node for node in tree(name).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not [node for node in at_top if "torch" in ast.unparse(node)], name


# --- the laws themselves are tried: each finds what it forbids -----------------------------------------------------


@pytest.mark.parametrize(
    ("source", "banned"),
    [
        ("import os\nos.replace(a, b)", "os.replace"),
        ("from os import replace", "os.replace"),
        ("import fcntl", "fcntl"),
        ("def f():\n    from subprocess import run", "subprocess"),
        ("import torch\ntorch.distributed.init_process_group()", "torch.distributed"),
        ("import torch.distributed as dist", "torch.distributed"),
        ("from time import perf_counter", "time"),
        ("import os\nx = os.environ['A']", "os.environ"),
    ],
)
def test_what_is_forbidden_is_found(source: str, banned: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "tree", lambda _: ast.parse(source))
    assert uses(source, banned) == [banned]  # a name of its own, because answers are kept by name
    assert uses(source, "os.replacement", "times", "torch.dist") == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = '--out'", 1),
        ("x = f'{y} --out {z}'", 1),
        ("x = 'set it (--out FOLDER)'", 1),
        ('def f():\n    """Takes --out."""', 0),
        ("x = 'a -- b'", 0),
        ("x = '--data.seq-len: too large'", 1),
        ("x = 'no---one'", 0),
    ],
)
def test_flags_are_found(source: str, found: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "tree", lambda _: ast.parse(source))
    assert len(flags("module.py")) == found
