"""The rules of the house: imports point down, each deed has its owner, data files run no code, errors say how to go on.

The layers are the table of tools/layers.py, the owners the table below.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from helpers import ROOT

from tools import layers
from tools.report import shown_pictures

PACKAGE = ROOT / "hectogpt"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

# What few may do: the names that do it ("time" stands for all of time), and the files that use them.
OWNERS: dict[str, tuple[tuple[str, ...], set[str]]] = {
    "replace, sync and lock files": (
        ("os.replace", "os.rename", "os.renames", "os.fsync", "os.fdatasync", "shutil.move", "fcntl", "msvcrt"),
        {"files.py"},
    ),
    "ask the machine": (
        ("resource", "os.cpu_count", "os.sched_getaffinity", "os.sysconf", "torch.cuda.mem_get_info", "psutil"),
        {"hardware.py"},
    ),
    "start processes": (
        (
            *("subprocess", "multiprocessing", "concurrent.futures.ProcessPoolExecutor", "asyncio.subprocess", "pty"),
            *("os.system", "os.popen", "os.fork", "os.posix_spawn", "os.execv", "os.execvp", "os.spawnv"),
        ),
        {"process.py", "sandbox.py", "kernels/build.py"},
    ),
    "speak to other processes of a run": (
        ("torch.distributed", "torch.multiprocessing"),
        {"training/parallel.py"},
    ),
    "drive a session": (("session.steps",), {"training/events.py"}),
    "read what can run code": (("pickle", "marshal", "shelve", "dill", "cloudpickle", "yaml.load"), set()),
}
# A model knows no clock and no environment.
CLOCKS = ("time", "datetime", "timeit", "torch.cuda.Event", "os.environ", "os.getenv", "os.putenv", "os.environb")
# Literals below cli/ that hold a flag: of other programs, or of a command of ours that is named as a whole.
FLAGS_OF_OTHERS = {
    "lab/full_run.py": " --",  # diagnose and repair, of check
    "data/tokenizer.py": "python -m pip install --force-reinstall --no-deps",  # how to mend a broken installation
    "process.py": "--porcelain",  # git's
    "training/listeners.py": "tensorboard --logdir",  # how to look at what was written
}
PRIVATE = re.compile(r"(?:torch|dist|torch_dist)\.(?:\w+\.)*_(?!_)\w+")
FLAG = re.compile(r"(?:^|[ `'\"(])--[a-z]")
IN_THE_ROOT = """
    .ci .containerignore .github .gitignore .pre-commit-config.yaml AGENTS.md CHANGELOG.md CITATION.cff CONTRIBUTING.md
    Containerfile LICENSE MANIFEST.in Makefile NOTICE README.md SECURITY.md answers assignment bench constraints docs
    hectogpt llms.txt pyproject.toml reference results setup.py tests tools uv.lock
"""
DOCUMENTS = [ROOT / "llms.txt", *sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


# --- imports ----------------------------------------------------------------------------------------------------------


def test_every_arrow_is_in_the_table_and_points_down() -> None:
    assert layers.find_faults(layers.read_imports()) == []


def test_nothing_is_imported_in_a_circle() -> None:
    """At import; a package's __init__ counts as importing what it imports, and its modules do not count it."""
    found = layers.read_imports(in_functions=False)
    graph = {name: {o for o in others if not name.startswith(f"{o}.")} for name, others in found.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_textbook_imports_nothing_of_ours() -> None:
    for path in sorted((ROOT / "reference").glob("*.py")):
        assert "hectogpt" not in {name.split(".")[0] for name in names_imported(path.read_text(encoding="utf-8"))}, path


def test_the_ground_and_data_load_no_torch() -> None:
    """Torch is loaded by functions that are asked about a GPU only."""
    names = [f"hectogpt.{name}" for name in layers.GROUND] + ["hectogpt.data"]
    assert loaded(f"import {', '.join(names)}") in (["numpy"], [])


def test_the_list_of_layers_is_of_today() -> None:
    page = layers.PAGE.read_text(encoding="utf-8")
    assert layers.with_list(page, layers.list_layers()) == page, "run `.venv/bin/python -m tools.layers`"


# --- the door opens quickly, and in silence ---------------------------------------------------------------------------


SLOW = {"torch", "numpy", "tyro", "rich"}


def loaded(program: str, slow: set[str] = SLOW) -> list[str]:
    """Which of the slow packages a program of its own, started in the checkout, has loaded when it ends."""
    program = f"import sys\n{program}\nprint('', *{slow} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


def test_help_and_the_package_need_neither_torch_nor_tyro() -> None:
    program = "import hectogpt\nhectogpt.UserError\ndir(hectogpt)\nhectogpt.__version__\nimport hectogpt.cli as c\n"
    assert loaded(program + "try: c.main(['--help'])\nexcept SystemExit as e: assert not e.code") == []


def test_what_is_slow_to_load_waits_until_it_is_used() -> None:
    """Training, generating and grading are imported, and a model is loaded, without what draws, tests or compiles."""
    slow = {"matplotlib", "pandas", "plotly", "scipy", "transformers", "datasets", "sympy", "torch._dynamo"}
    program = "import hectogpt.cli.train, hectogpt.cli.generate, hectogpt.python, hectogpt.cli.grade, torch\n"
    program += "from hectogpt.lab.recipes import recipe\nfrom hectogpt.model.weights import NoInit, Transformer\n"
    program += "with torch.device('meta'), NoInit(): Transformer(recipe('top').model)"
    assert loaded(program, slow) == []


# --- owners -----------------------------------------------------------------------------------------------------------


def tree(file: str) -> ast.Module:
    """The source of a file of the package; of another by its whole path."""
    return layers.tree_of(PACKAGE / file)


def names_imported(source: str | ast.Module) -> set[str]:
    """Dotted names of everything that a module imports, at any place in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source) if isinstance(source, str) else source):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@cache
def names_used(source: ast.Module) -> set[str]:
    """What a module imports, and the dotted names that it writes."""
    return names_imported(source) | {dotted(node) for node in ast.walk(source) if isinstance(node, ast.Attribute)}


def dotted(node: ast.expr) -> str:
    """`a.b` of names and attributes; of attributes of anything else what follows it."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def uses(source: ast.Module, banned: tuple[str, ...]) -> list[str]:
    """What of the banned names a module imports or writes."""
    names = names_used(source)
    return [b for b in banned if any(name == b or name.startswith(f"{b}.") for name in names)]


def calls(file: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(file)) if isinstance(node, ast.Call))


def literals(source: ast.Module) -> Iterator[str]:
    """The strings of a module, the constant parts of f-strings among them, docstrings not."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(source) if isinstance(node, documented)]
    docstrings = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
    for node in ast.walk(source):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def flags(source: ast.Module, exception: str = "") -> list[str]:
    texts = [text.replace(exception, "") for text in literals(source)]
    return [text for text in texts if FLAG.search(text)]


@pytest.mark.parametrize("deed", OWNERS)
def test_few_files_may(deed: str) -> None:
    banned, owners = OWNERS[deed]
    assert {file for file in FILES if uses(tree(file), banned)} == owners


def test_private_names_of_torch_stand_in_one_file() -> None:
    """With a fallback. Modules of torch in which an exception was raised may be named, as text."""
    found = {file: sorted(filter(PRIVATE.match, names_used(tree(file)))) for file in FILES}
    assert {file: names for file, names in found.items() if names} == {}


def test_only_files_renames_paths() -> None:
    """Path.rename and Path.replace go by the number of arguments: str.replace takes two."""
    methods = [(f, c, c.func) for f in FILES for c in calls(f) if isinstance(c.func, ast.Attribute) and not c.keywords]
    found = {f for f, c, m in methods if m.attr == "rename" or (m.attr == "replace" and len(c.args) == 1)}
    assert found <= {"files.py"}


def test_only_hardware_reads_proc_and_only_process_runs_git() -> None:
    assert {"hardware.py", "sandbox.py"} == {
        file for file in FILES if any(text.startswith(("/proc", "/sys")) for text in literals(tree(file)))
    }
    lists = ((file, node) for file in FILES for node in ast.walk(tree(file)) if isinstance(node, ast.List))
    assert {"process.py"} == {file for file, node in lists if node.elts and ast.unparse(node.elts[0]) == "'git'"}


def test_a_model_knows_no_clock_and_no_environment() -> None:
    assert [file for file in FILES if file.startswith("model/") and uses(tree(file), CLOCKS)] == []


def test_only_the_command_line_spells_flags() -> None:
    """Errors name fields as data (errors.SetTo); hectogpt/cli spells them as options."""
    below = [file for file in FILES if not file.startswith("cli/")]
    found = {f: flags(tree(f), FLAGS_OF_OTHERS.get(f, "")) for f in below}
    assert {file: texts for file, texts in found.items() if texts} == {}
    assert all(any(text in literal for literal in literals(tree(f))) for f, text in FLAGS_OF_OTHERS.items()), "unneeded"


def test_no_file_can_run_code_from_elsewhere() -> None:
    for file in FILES:
        for call in calls(file):
            where, options = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert where not in {"eval", "builtins.eval", "builtins.exec", "torch.load"}, file
            assert where != "exec" or file == "idea_file.py", file
            assert options.get("allow_pickle", "False") == options.get("shell", "False") == "False", file


# `.open(...)` of things that are no files, and what opens one.
NOT_FILES = {"tarfile", "os", "webbrowser", "Session", "cache"}
OPENS = {"open", "fdopen", "NamedTemporaryFile", "TemporaryFile", "read_text", "write_text"}


def opens_in_the_locales_encoding(call: ast.Call) -> bool:
    owner, _, name = ast.unparse(call.func).rpartition(".")
    of_ours = name == "read_text" and not owner
    if name not in OPENS or of_ours or (name == "open" and owner.partition("(")[0] in NOT_FILES):
        return False
    given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    modes = [mode for mode in map(ast.unparse, given) if re.fullmatch(r"'[rwxab+]+'", mode)]
    binary = any("b" in mode for mode in modes) or ("Temporary" in name and not modes)
    return not binary and {"encoding", None}.isdisjoint(keyword.arg for keyword in call.keywords)


def test_no_file_is_opened_in_the_locales_encoding() -> None:
    others = [str(path) for room in ("bench", "tools", "reference") for path in (ROOT / room).rglob("*.py")]
    found = [(f, call.lineno) for f in [*FILES, *others] for call in calls(f) if opens_in_the_locales_encoding(call)]
    assert found == []


def test_no_json_holds_nan() -> None:
    """Browsers refuse NaN."""
    texts = [(f, c) for f in FILES for c in calls(f) if ast.unparse(c.func) in ("json.dump", "json.dumps", "dumps")]
    loose = [(f, c.lineno) for f, c in texts if "allow_nan=False" not in map(ast.unparse, c.keywords)]
    assert loose == []


# --- errors and documents ---------------------------------------------------------------------------------------------


def test_shapes_are_checked_at_run_time() -> None:
    """Wherever annotations have shapes: by the option of pytest in pyproject.toml."""
    options = re.search(r"--jaxtyping-packages=(\S+),beartype", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert options is not None
    checked = tuple(name.replace(".", "/") for name in options[1].split(","))
    shaped = [f"hectogpt/{file}" for file in FILES if "jaxtyping" in names_imported(tree(file))]
    assert [file for file in shaped if not file.startswith(checked)] == []


ERRORS = {"UserError", "DataError", "CheckpointError", "NoTextError"}


def test_every_error_says_what_failed_and_why_or_how_to_mend_it() -> None:
    made = [(f, c) for f in FILES for c in calls(f) if ast.unparse(c.func).rpartition(".")[2] in ERRORS]
    assert len(made) > 100
    given = [(f, call, {k.arg for k in call.keywords}) for f, call in made]
    silent = [(f, c.lineno) for f, c, parts in given if not (c.args or "what" in parts) or not parts & {"why", "fix"}]
    assert silent == [], "UserError(what, why=..., fix=...): one of the two is missing"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_links_to_files_that_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    missing += [file for file in re.findall(r"`(\w+/[\w/]*\w+\.(?:py|md|jsonl))`", text) if not exists(file)]
    assert missing == []


def test_the_root_holds_what_is_listed_here_and_every_picture_is_shown() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    if not tracked:
        pytest.skip("no git here, or no checkout")
    assert {path.partition("/")[0] for path in tracked} == set(IN_THE_ROOT.split())
    shown = shown_pictures()
    pictures = [path.rpartition("/")[2] for path in tracked if path.startswith("results/") and path.endswith(".png")]
    assert [name for name in pictures if name not in shown] == []


def test_the_walks_of_the_architecture_name_what_is_there() -> None:
    """A line of a walk is a file of the package and a function, class or method that it defines."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    steps = re.findall(r"^ *(\w+/\S+\.py) +(\w+(?:\.\w+)?)", page, re.MULTILINE)
    assert len(steps) > 20
    for file, name in steps:
        scope: list[ast.stmt] = tree(file).body
        for part in name.split("."):
            named = [node for node in scope if getattr(node, "name", None) == part]
            assert named, f"{file} has no {name}: the walk of docs/architecture.md is not true"
            scope = getattr(named[0], "body", [])


def exists(file: str) -> bool:
    """Whether a file is there, below the checkout or below the package; NAME stands for any name."""
    return "NAME" in file or file.startswith("runs/") or (ROOT / file).exists() or (PACKAGE / file).exists()


# --- the laws themselves are tried: each finds what it forbids --------------------------------------------------------


def test_a_wrong_import_is_named(tmp_path: Path) -> None:
    for name, text in {
        "errors.py": "import os",
        "model/__init__.py": "def f():\n    from hectogpt.training import loop",
        "training/__init__.py": "from hectogpt.training.loop import steps",
        "training/loop.py": "import hectogpt.errors\ntry:\n    import hectogpt.model\nexcept ImportError:\n    pass",
    }.items():
        (tmp_path / "hectogpt" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hectogpt" / name).write_text(text, encoding="utf-8")
    faults = layers.find_faults(
        layers.read_imports(tmp_path / "hectogpt"), {"training": "model data", "model": "", "data": ""}, ("errors",)
    )
    assert [fault.split(":")[0] for fault in faults] == [
        "hectogpt.model imports hectogpt.training.loop",
        "no module of training imports data",
    ]
