"""The child process of a grading: it restricts itself, imports the submission, and sends what its
code returns.

`hectogpt.grade.runner` starts it in a temporary folder with a copy of the submission. The child
gets the names of settings, makes weights and inputs itself, and knows no right value. This stops
accidents, not attackers."""

from __future__ import annotations
import __future__

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import FileFinder, ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from hectogpt import hardware, process
from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade import laws, train_case
from hectogpt.grade.answer import Answer, Drawn, Raised, Values, frame_of
from hectogpt.grade.laws import Setting
from hectogpt.grade.run_part import answer_of_error, answers
from hectogpt.grade.watch import draw
from hectogpt.sandbox import Policy


def prepare_everything() -> None:
    """Load libraries and make weights and inputs: before the limits, which count from then on, and
    before foreign code can change what torch does."""
    import matplotlib.pyplot  # noqa: F401
    import torch

    torch.set_num_threads(1)
    for setting in (*laws.SETTINGS.values(), train_case.MODEL):
        laws.weights(setting)
        for call in range(len(setting.inputs)):
            laws.given(setting, call)
    torch.ones(1, requires_grad=True).sum().backward()  # starts the threads of autograd


def main() -> None:
    """Prepare; read the request {"asked": [[setting, variant], ...], "modules": [names], "memory":
    bytes}; send frames; end."""
    frames = process.frames()
    prepare_everything()
    request = frames.receive()
    finder = shut_in(request["memory"])
    frames.send({"ready": True})
    modules, errors = import_submission(request["modules"], finder)
    for header, body in replies(request["asked"], modules, errors, finder.missing):
        frames.send(header, body)
    frames.done()


def replies(
    asked: Sequence[tuple[str, str]],
    modules: dict[str, ModuleType],
    errors: dict[str, Raised],
    missing: set[str],
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield the frames of a submission: first what was imported, then the answers to each
    (setting, variant) that is asked for.
    """
    imports = {name: error.facts() for name, error in errors.items()}
    yield {"imports": imports, "missing": sorted(missing)}, b""
    for name, variant in asked:
        dtype, made = every_answer(laws.SETTINGS[name], modules, variant == "patched")
        header, body = frame_of(made)
        yield {"dtype": dtype, **header}, body


def every_answer(
    setting: Setting, modules: dict[str, ModuleType], patched: bool
) -> tuple[str, list[Answer]]:
    """Return the dtype and the answers of a setting: in float64, or in float32 where that raises
    fewer errors. There are no answers without the setting's module."""
    if BY_NAME[setting.part].module not in modules:
        return "float64", []
    if setting.part in ("train", "plot"):
        try:
            if setting.part == "train":
                return "float64", [train_case.training(setting, modules)]
            return "float64", [Drawn(picture=draw(modules["train"].plot_results))]
        except BaseException as error:
            return "float64", [answer_of_error(error)]
    made = answers(setting, modules["model_solution"], patched, "float64")
    if failures := sum(map(has_failed, made)):
        again = answers(setting, modules["model_solution"], patched, "float32")
        if sum(map(has_failed, again)) < failures:
            return "float32", again
    return "float64", made


def has_failed(answer: Answer) -> bool:
    """True for an error, except of memory, and for a missing gradient."""
    if isinstance(answer, Raised):
        return not answer.is_memory
    return isinstance(answer, Values) and not answer.trains


# --- importing a submission
# ---

# Never imported for real: importing them takes seconds, and what they fetch is not there.
HEAVY = {
    "transformers",
    "huggingface_hub",
    "datasets",
    "tokenizers",
    "accelerate",
    "wandb",
    "tensorflow",
    "jax",
}


class Absent(type):
    """A stand-in for a package that is not installed, or for anything in it.

    It can be named, derived from and passed around. A call while files are imported, such as a
    tokenizer made at the top of a file, returns a new stand-in; a later call fails."""

    importing = True

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{cls.__name__}.{name}", (), {})

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if Absent.importing:
            return Absent(cls.__name__, (), {})
        raise RuntimeError(f"{cls.__name__} is not available while grading")


class LazyAnnotations(SourceFileLoader):
    """Loads a file without evaluating its annotations, as Python 3.14 does: `Float[Tensor, ...]`,
    with an ellipsis for its axes, raises in earlier versions."""

    def source_to_code(self, data: Any, path: Any, *_: Any, **__: Any) -> CodeType:  # type: ignore[override]
        code: CodeType = compile(
            data, path, "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True
        )
        return code


class Finder:
    """Finds the submission's files, and stand-ins for HEAVY modules and for missing ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = FileFinder(str(folder), (LazyAnnotations, [".py"]))
        self.missing = set[str]()

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        spec = None if path else self.files.find_spec(name)
        if spec and (spec.loader or any(Path(self.folder, name).glob("**/*.py"))):
            return spec
        if name.partition(".")[0] in HEAVY | self.missing:
            return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: Any) -> Any:
        return Absent(spec.name, (), {})

    def exec_module(self, module: Any) -> None:
        pass


def import_submission(
    names: Sequence[str], finder: Finder
) -> tuple[dict[str, ModuleType], dict[str, Raised]]:
    """Import these modules. Return those that can be imported, and the errors of the others. From
    now on a stand-in that is called fails."""
    modules: dict[str, ModuleType] = {}
    errors: dict[str, Raised] = {}
    for name in names:
        try:
            modules[name] = import_with_stand_ins(name, finder)
        except BaseException as error:
            errors[name] = answer_of_error(error)
    Absent.importing = False
    return modules, errors


def import_with_stand_ins(name: str, finder: Finder) -> ModuleType:
    """Import a module, with stand-ins for everything that it imports and that is not installed."""
    while True:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            top = (error.name or "").partition(".")[0]
            if not top or top in finder.missing or len(finder.missing) == 20:
                raise
            finder.missing.add(top)


# --- what keeps its code in
# ---


def shut_in(memory: int) -> Finder:
    """Restrict this process: no more memory than this beyond what it has, no network, no other
    programs, no changes of files outside its folder. Return the finder of the folder's modules.

    Neither Landlock nor the audit hook can be undone. Only Landlock stops code that works around
    Python."""

    def refuse(what: str) -> None:
        raise PermissionError(f"no {what} while grading")

    finder = Finder(Path.cwd())
    sys.meta_path.insert(0, finder)
    hardware.limit_this_process(memory, 1 << 28)
    policy = Policy((os.path.realpath(finder.folder), "/dev/shm", os.devnull))
    policy.keep_in()
    policy.watch(refuse)
    return finder


if __name__ == "__main__":
    main()
