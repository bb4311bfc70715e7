"""Importing a submission in the child: packages that are not here are replaced, annotations that fail are postponed."""

from __future__ import annotations
import __future__

import importlib
import importlib.machinery
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from hectogpt.assignment.parts import BY_NAME, PARTS
from hectogpt.grade.answer import Answer, answer_of_error

# Never imported for real: importing them takes seconds, and what they fetch is not there.
HEAVY = {"transformers", "huggingface_hub", "datasets", "tokenizers", "accelerate", "wandb", "tensorflow", "jax"}
# Arguments that the official tests pass by name.
KEYWORDS = {"generate": ("x", "num_new_tokens"), "loss": ("input_ids",)}


class OfflineError(RuntimeError):
    """What a stand-in raises when it is used."""


class Absent(type):
    """A stand-in for a class, or for anything else, of a package that is not here. It can be named, derived from and
    passed around; used while files are imported (a tokenizer made at the top of a file, say) it gives another one,
    used later it fails."""

    importing = True

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{cls.__name__}.{name}", (), {})

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if Absent.importing:
            return Absent(cls.__name__, (), {})
        raise OfflineError(f"{cls.__name__} is not available while grading")


class StandIn(ModuleType):
    """A module of which everything can be imported."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(name, (), {})


class Finder:
    """Finds stand-ins: for HEAVY modules always, for others if they are missing and the submission imports them, since
    libraries try imports to learn what is installed. missing: the names of these others."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.missing = str(folder), set[str]()

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        top = name.partition(".")[0]
        if top not in HEAVY:
            if not self._is_asked_by_submission() or self._is_installed(top):
                return None
            self.missing.add(top)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass

    def _is_installed(self, top: str) -> bool:
        if top in ("model_solution", "train"):
            return True  # the submission's own, with an error of its own
        return any(finder.find_spec(top, None) for finder in sys.meta_path if finder is not self)

    def _is_asked_by_submission(self) -> bool:
        frame: Any = sys._getframe(2)
        while frame is not None and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        return frame is not None and frame.f_code.co_filename.startswith(self.folder)


class LazyAnnotations(importlib.machinery.SourceFileLoader):
    """Loads a file whose annotations are not evaluated, as from Python 3.14 on: `Float[Tensor, ...]` with an ellipsis
    in place of its axes raises before."""

    def source_to_code(self, data: Any, path: Any, *_: Any, **__: Any) -> CodeType:  # type: ignore[override]
        code: CodeType = compile(data, path, "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True)
        return code


def import_submission(folder: Path, names: Sequence[str]) -> tuple[dict[str, ModuleType], dict[str, Answer]]:
    """The modules of these names that can be imported, and the errors of those that cannot. A stand-in that is used
    from now on fails."""
    modules, errors = {}, {}
    for name in names:
        sys.modules.pop(name, None)
        try:
            modules[name] = importlib.import_module(name)
        except BaseException as error:
            try:
                modules[name] = import_lazily(folder, name)
            except BaseException:
                errors[name] = answer_of_error(error, {"importing": True})
    Absent.importing = False
    return modules, errors


def import_lazily(folder: Path, name: str) -> ModuleType:
    """A second try, with annotations that are not evaluated."""
    loader = LazyAnnotations(name, str(folder / f"{name}.py"))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def function_of(name: str, module: ModuleType | None) -> Any:
    """A function by its qualified name, None if it is not there."""
    value: Any = module
    for step in name.split("."):
        value = getattr(value, step, None)
    return value


def is_empty(function: Any) -> bool:
    """Whether a function consists of nothing, `pass` or `return None` say: it uses no name and no attribute."""
    code = getattr(getattr(function, "__wrapped__", function), "__code__", None)
    return isinstance(code, CodeType) and not code.co_names and not code.co_cellvars and not code.co_freevars


def empty_functions(modules: dict[str, ModuleType]) -> list[str]:
    """Qualified names of the assignment's functions that consist of nothing."""
    names = [(name, modules.get(part.module)) for part in PARTS for name in part.functions]
    return [name for name, module in names if is_empty(function_of(name, module))]


def lacking_keywords(modules: dict[str, ModuleType]) -> dict[str, list[str]]:
    """Part -> arguments that the official tests pass by name, and its function has no name for."""
    found = {}
    for part, names in KEYWORDS.items():
        try:
            function = function_of(BY_NAME[part].functions[-1], modules.get(BY_NAME[part].module))
            known = inspect.signature(function).parameters
        except (TypeError, ValueError):
            continue
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
            found[part] = [name for name in names if name not in known]
    return {part: names for part, names in found.items() if names}
