"""The order of modules inside the layers: no circles, and imports point down. The layers are test_imports.py's."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter

import pytest
from helpers import ROOT

PACKAGE = ROOT / "hectogpt"

# Each line may import from the lines above it and not from its own or those below; a module that is in no line is free
# as far as these laws go. `optim` and `schedules` stand for all that is in them.
MODEL = [
    ["native"],
    ["parts"],
    ["inputs"],
    ["fused_ce", "cpu_kernels"],
    ["lm_head", "pointer", "memory"],
    ["config"],
    ["attention"],
    ["transformer", "safetensors_header"],
    ["weights"],
]
TRAIN = [
    ["schedules", "optim", "init_counts", "first_weights"],
    ["run"],
    ["precision"],
    ["setup", "loop", "evaluate", "state"],
    ["checkpoint"],
    ["session", "run_folder"],
    ["autosave", "diagnose"],
]
OPTIM = [["groups"], ["adamw"], ["muon", "memory"], ["soap"]]
GENERATE = [["cache", "sampling"], ["decode"], ["text"]]
# Modules of one line that may import each other in one direction all the same: (importer, imported).
WITHIN_A_LINE = {("fused_ce", "cpu_kernels")}


def name_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {
    "hectogpt." + name_of(str(path.relative_to(PACKAGE))): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}


def module_of(name: str) -> str | None:
    """The module of the package that an imported dotted name stands for, or is in."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


@cache
def imports(module: str, everywhere: bool = False) -> set[str]:
    """Modules that this one imports when it is imported; `everywhere`: also inside functions."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree)) if everywhere else list(at_import(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import name`: the module of that name, if there is one, besides the package
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {found for name in names if (found := module_of(name)) is not None} - {module}


def at_import(node: ast.AST) -> list[ast.AST]:
    """All nodes that run when the module is imported: those of classes and of try and if blocks, not of functions."""
    found = []
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            found += [child, *at_import(child)]
    return found


def test_no_circles() -> None:
    """At import; a package's __init__ counts as importing what it imports, and its modules do not count it."""
    graph = {module: set(imports(module)) for module in MODULES}
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    for module in MODULES:
        graph[module] -= {package for package in packages if module.startswith(package + ".")}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_imports_inside_functions_come_later() -> None:
    source = "import a\ntry:\n    import b\nexcept ImportError:\n    pass\nclass C:\n    import c\n"
    source += "def f():\n    import d\nasync def g():\n    import e\nif a:\n    import f\n"
    nodes = at_import(ast.parse(source))
    assert [node.names[0].name for node in nodes if isinstance(node, ast.Import)] == ["a", "b", "c", "f"]


def test_nothing_hides_behind_type_checking() -> None:
    assert [m for m, path in MODULES.items() if "TYPE_CHECKING" in path.read_text(encoding="utf-8")] == []


def places(package: str, order: list[list[str]]) -> dict[str, int]:
    """Module -> line of the order."""
    return {f"hectogpt.{package}.{name}": line for line, names in enumerate(order) for name in names}


def entry_of(module: str, placed: dict[str, int]) -> str | None:
    """The entry of the order that a module is, or is in."""
    while module and module not in placed:
        module = module.rpartition(".")[0]
    return module or None


@pytest.mark.parametrize(
    ("package", "order"),
    [("model", MODEL), ("training", TRAIN), ("training.optim", OPTIM), ("generation", GENERATE)],
    ids=["model", "train", "optim", "generate"],
)
def test_the_inner_order(package: str, order: list[list[str]]) -> None:
    placed = places(package, order)
    assert {module_of(name) for name in placed} == set(placed), "a module of the order does not exist"
    for module in MODULES:
        entry = entry_of(module, placed)
        for imported in imports(module, everywhere=True):
            other = entry_of(imported, placed)
            if entry is None or other is None or entry == other:
                continue
            if (entry.rpartition(".")[2], other.rpartition(".")[2]) not in WITHIN_A_LINE:
                assert placed[other] < placed[entry], f"{module} imports {imported}"


def test_every_module_of_model_has_its_place() -> None:
    found = {m for m in MODULES if m.startswith("hectogpt.model.")}
    assert found == set(places("model", MODEL)), "give the new module a line"


def test_the_loop_knows_nobody_who_drives_it() -> None:
    """Whoever consumes steps, a folder or a plot or a tracker, is imported by those who drive the loop."""
    consumers = {f"hectogpt.training.{name}" for name in ("session", "run_folder", "plot", "checkpoint", "trackers")}
    for name in ("loop", "evaluate", "setup", "precision", "run"):
        assert not imports(f"hectogpt.training.{name}", everywhere=True) & consumers, name


def test_train_does_not_generate_and_a_model_knows_no_run() -> None:
    for module in MODULES:
        layer = module.split(".")[1]
        others = {other.split(".")[1] for other in imports(module, everywhere=True)}
        if layer == "model":
            assert not others & {"training", "data", "generation", "lab", "interop", "explore", "cli"}, module
        if layer == "training":
            assert not others & {"generation", "lab", "interop", "explore", "cli"}, module
