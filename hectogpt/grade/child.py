"""The child process of a grading: shuts itself in, imports the submission, and sends what its code returns.

`hectogpt.grade.runner` starts it in a temporary folder that holds a copy of the submission. It is given names of
settings, makes weights and inputs itself, and knows no right value. This keeps accidents out, not attackers.
"""

from __future__ import annotations

import importlib.machinery
import os
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

# Never imported for real: importing them takes seconds, and what they fetch is not there.
HEAVY = {"transformers", "huggingface_hub", "datasets", "tokenizers", "accelerate", "wandb", "tensorflow", "jax"}


class OfflineError(RuntimeError):
    """What a stand-in raises when it is used."""


class _StandInType(type):
    """A class whose every attribute but the special ones fails when it is called."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _refuse(f"{cls.__name__}.{name}")

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return _refuse(cls.__name__)()


class _Absent:
    """What comes of using a stand-in while files are imported: a tokenizer made at the top of a file, say. It can be
    passed around; to use it later fails."""

    importing = True

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _refuse(f"{self._name}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _refuse(self._name)()


def _refuse(name: str) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        if _Absent.importing:
            return _Absent(name)
        raise OfflineError(f"{name} is not available while grading")

    return refuse


class StandIn(ModuleType):
    """A module that can be imported from, and fails when something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandInType(name, (), {})


class Finder:
    """Finds stand-ins: for HEAVY modules always (`first`), for other missing ones only if the submission imports them,
    since libraries try imports to learn what is installed."""

    def __init__(self, folder: Path, first: bool) -> None:
        self.folder, self.first, self.missing = str(folder), first, set[str]()

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        top = name.partition(".")[0]
        if self.first != (top in HEAVY) or (not self.first and not self._asked_by_submission(top)):
            return None
        if not self.first:
            self.missing.add(top)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass

    def _asked_by_submission(self, top: str) -> bool:
        if top in ("model_solution", "train"):
            return False
        frame: Any = sys._getframe(2)
        while frame is not None and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        return frame is not None and frame.f_code.co_filename.startswith(self.folder)


NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind", "socket.sendto")
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn")
CHANGES = {
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.truncate",
    "os.chmod",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "shutil.rmtree",
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def shut_in(folder: Path) -> None:
    """From now on: no network, no other programs, no changes of files outside the folder. An audit hook cannot be
    taken back; code that works around Python (ctypes) is not stopped by it."""
    inside, own = os.path.realpath(folder), os.getpid()
    busy = threading.local()

    def outside(path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return False
        real = os.path.realpath(os.fsdecode(path))
        return not (real == inside or real.startswith(inside + os.sep) or real == os.devnull)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in NETWORK:
            raise PermissionError("no network while grading")
        if event in PROGRAMS:
            raise PermissionError("no other programs while grading")
        if event in ("os.kill", "os.killpg") and arguments[0] != own:
            raise PermissionError("no signals to others while grading")
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if (writes or event in CHANGES) and not getattr(busy, "now", False):
            busy.now = True
            try:
                if outside(arguments[0]):
                    raise PermissionError("no changes outside the submission's folder while grading")
            finally:
                busy.now = False

    sys.addaudithook(hook)


def not_written(function: Any) -> bool:
    """Whether a function consists of nothing, `pass` or `return None` say: it uses no name and no attribute."""
    code = getattr(getattr(function, "__wrapped__", function), "__code__", None)
    return isinstance(code, CodeType) and not code.co_names and not code.co_cellvars and not code.co_freevars


def empty_functions(modules: dict[str, ModuleType]) -> list[str]:
    """Qualified names of the assignment's functions that consist of nothing."""
    from hectogpt.assignment.parts import PARTS

    found = []
    for part in PARTS:
        module = modules.get(part.file.removesuffix(".py"))
        for name in part.functions:
            value: Any = module
            for step in name.split("."):
                value = getattr(value, step, None)
            if value is not None and not_written(value):
                found.append(name)
    return found


def prepare_everything() -> None:
    """Load libraries and make weights and inputs now: before the limits, which count what is taken from then on, before
    foreign code can change what torch does, and as a spare child does it while nobody waits."""
    import matplotlib.pyplot  # noqa: F401
    import torch

    from hectogpt.grade import laws, train_case
    from hectogpt.grade.settings import hugging_face_names, prepare

    torch.set_num_threads(1)
    for setting in (*laws.SETTINGS.values(), train_case.model_setting()):
        prepare(setting)
    hugging_face_names(1)
    torch.nn.Linear(1, 1, device="meta")(torch.empty(1, 1, device="meta"))  # the first call there takes a second


def main() -> None:
    """Prepare; read the request {"settings": [names], "modules": [names], "memory": bytes, "copy": folder}; send
    frames; end.

    copy: where the submission is, in a container; "" if it is in the working folder already."""
    from hectogpt import hardware, worker
    from hectogpt.frames import Frames

    frames = Frames()
    prepare_everything()

    from hectogpt.grade import answers, laws
    from hectogpt.grade.settings import home, version
    from hectogpt.grade.train_answers import data_file

    request = frames.receive(worker.request)
    folder = Path.cwd()
    for path in Path(request["copy"]).iterdir() if request["copy"] else ():
        shutil.copyfile(path, folder / path.name)
    data_file(folder / "datasets")
    settings = [laws.SETTINGS[name] for name in request["settings"]]
    last = Finder(folder, first=False)
    sys.meta_path[:] = [Finder(folder, first=True), *sys.meta_path, last]
    sys.path.insert(0, str(folder))
    hardware.limit_this_process(request["memory"], 1 << 28)
    shut_in(folder)
    frames.send({"ready": version()})

    modules, errors = answers.import_submission(tuple(request["modules"]))
    _Absent.importing = False
    for name, error in errors.items():
        send(frames, {"import": name}, error)
    frames.send({"imported": sorted(modules), "missing": sorted(last.missing), "empty": empty_functions(modules)})
    # Our lower parts first: what dies there is the part's own fault, and what dies later costs nothing.
    for variant in ("patched", "own"):
        for setting in (s for s in settings if home(s.part) in modules):
            frames.send({"begin": setting.name, "variant": variant})
            for dtype, made in answers.every_answer(setting, modules, variant):
                for number, answer in enumerate(made):
                    place = {"setting": setting.name, "variant": variant, "dtype": dtype, "number": number}
                    send(frames, place, answer)
    frames.done()


def send(frames: Any, place: dict[str, Any], answer: Any) -> None:
    """One answer as a frame: what it is in the header, its numbers as raw bytes."""
    header = {**place, "kind": answer.kind, "text": answer.text[:2000], "error": answer.error, "line": answer.line}
    header["facts"] = answer.facts
    body = b""
    if answer.tensor is not None:
        tensor = answer.tensor.contiguous()
        if str(tensor.dtype) in ("torch.bfloat16", "torch.complex64", "torch.complex128"):
            tensor = tensor.float()
        header |= {"dtype_of": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        body = tensor.numpy().tobytes()
    frames.send(header, body)


if __name__ == "__main__":
    main()
