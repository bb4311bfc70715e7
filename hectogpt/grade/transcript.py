"""What came back from a submission's code: the answer of one call, its form as a frame, and all answers together."""

from __future__ import annotations

import os
import traceback
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade.laws import TOLERANCE
from hectogpt.grade.result import Outcome
from hectogpt.hardware import is_out_of_memory

FILES = ("model_solution.py", "train.py", "utils.py")
LARGEST = 2_000_000  # numbers in a result that is looked at
FACTS = 12  # facts of an answer that are believed
ALL_BYTES, EACH = 32 << 20, 8 << 10  # of one child, each frame counting EACH more than it has


@dataclass
class Answer:
    """What one call gave.

    kind: tensor, error, other (no tensor), memory. text: the message of an error, or what came instead of a tensor.
    line: where in the submission an error arose, as "model_solution.py:88: code". facts: what was seen beside.
    gradient: flat, in the order of laws.gradient_sizes; None if there is none, and facts["gradient"] says why."""

    kind: str
    tensor: Tensor | None = None
    text: str = ""
    error: str = ""
    line: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    gradient: Tensor | None = None

    def frame(self) -> tuple[dict[str, Any], bytes]:
        """As JSON; and its numbers and gradient as the bytes of a safetensors file."""
        tensors = {"tensor": self.tensor, "gradient": self.gradient}
        header = {name: value for name, value in vars(self).items() if name not in tensors}
        return header, save({name: value.contiguous() for name, value in tensors.items() if value is not None})


def of_frame(header: dict[str, Any], body: bytes) -> Answer:
    """A frame as an answer. Raises ValueError, KeyError and what safetensors raises for one that is none."""
    tensors = load(body) if body else {}
    kind, text, error, line = (str(header[name])[:2000] for name in ("kind", "text", "error", "line"))
    facts = dict(list(header["facts"].items())[:FACTS])
    if (kind == "tensor") != ("tensor" in tensors):
        raise ValueError("a tensor is missing")
    return Answer(kind, tensors.get("tensor"), text, error, line, facts, tensors.get("gradient"))


def answer_of(result: Any, facts: dict[str, Any]) -> Answer:
    """What a call returned."""
    if isinstance(result, Tensor) and result.layout == torch.strided and not result.is_complex():
        if result.numel() > LARGEST:
            return Answer("other", text=f"a tensor of shape {list(result.shape)}", facts=facts)
        return Answer("tensor", result.detach().cpu(), facts=facts)
    if isinstance(result, bool | int | float):
        return Answer("tensor", torch.tensor(result, dtype=torch.float64), facts=facts)
    text = "None" if result is None else f"a {type(result).__name__}"
    if isinstance(result, tuple | list):
        text += f" of {len(result)}"
    return Answer("other", text=text, facts=facts)


def answer_of_error(error: BaseException, facts: dict[str, Any] | None = None) -> Answer:
    """An exception as an answer. The message may hold anything: the parent shortens and escapes it."""
    try:
        text, memory = str(error)[:2000], is_out_of_memory(error)
    except BaseException:
        text, memory = "(its message cannot be made)", False
    name = type(error).__name__
    return Answer("memory" if memory else "error", text=text, error=name, line=place(error), facts=facts or {})


def place(error: BaseException) -> str:
    """The innermost line of the submission in the traceback."""
    try:
        if isinstance(error, SyntaxError) and error.filename:
            file, number, code = error.filename, error.lineno, error.text
        else:
            frames = traceback.extract_tb(error.__traceback__)[-200:]
            own = [f for f in frames if os.path.split(f.filename)[0] in ("", os.getcwd())]
            file, number, code, _ = next(f for f in reversed(own) if f.filename.endswith(FILES))
        return f"{os.path.basename(file)}:{number}: {(code or '').strip()[:160]}"
    except BaseException:
        return ""


@dataclass
class Transcript:
    """All that came back.

    files: modules that were handed in. answers: (setting, variant, dtype) -> answers in order. imports: module -> why
    it cannot be imported. missing: packages that stand-ins took the place of. ends: setting -> (outcome, words) of a
    child that died in it; "" for the import. empty: parts whose function consists of nothing. keywords: part ->
    arguments that it has no name for.
    """

    files: set[str] = field(default_factory=set)
    answers: dict[tuple[str, str, str], list[Answer]] = field(default_factory=dict)
    imports: dict[str, Answer] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    ends: dict[str, tuple[Outcome, str]] = field(default_factory=dict)
    empty: set[str] = field(default_factory=set)
    keywords: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0
    now: str = ""  # the setting that the child is in; "" while it imports
    variant: str = ""
    ready: bool = False  # whether the child has begun with the submission
    size: int = 0  # of all frames, in bytes

    def begin(self) -> None:
        """A new child."""
        self.now, self.variant, self.ready, self.size = "", "", False, 0

    def receive(self, header: dict[str, Any], body: bytes, asked: set[str]) -> None:
        """Take in one frame. asked: the settings that the child was given. Raises what `of_frame` does, and TypeError
        or AttributeError, for one that cannot be understood, or is more than answers to these can be."""
        self.size += EACH + len(str(header)) + len(body)
        if self.size > ALL_BYTES:
            raise ValueError("more answers than there are questions")
        if "ready" in header:
            self.ready = True
        elif "begin" in header:
            self.now, self.variant = one_of(asked, header["begin"]), one_of({"patched", "own"}, header["variant"])
        elif "imports" in header:
            self.imports = {one_of(self.files, name): of_frame(one, b"") for name, one in header["imports"].items()}
            self.missing = {str(name)[:60] for name in header["missing"][:20]}
            self.empty = {one_of(set(BY_NAME), part) for part in header["empty"]}
            self.keywords = {one_of(set(BY_NAME), p): [str(n)[:60] for n in ns] for p, ns in header["keywords"].items()}
        else:
            key = (self.now, self.variant, one_of(set(TOLERANCE), header["dtype"]))
            self.answers.setdefault(key, []).append(of_frame(header, body))


def one_of(known: set[str], name: Any) -> str:
    """The name, if it is one of the known ones. Raises ValueError."""
    if not isinstance(name, str) or name not in known:
        raise ValueError("an unknown name")
    return name
