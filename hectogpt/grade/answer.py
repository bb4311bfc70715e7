"""What one call of a submission's code gave: a tensor, an error, something else; and its form as a frame."""

from __future__ import annotations

import math
import os
import traceback
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

MEMORY_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate")
FILES = ("model_solution.py", "train.py", "utils.py")
LARGEST = 2_000_000  # numbers in a result that is looked at
FACTS = 12  # facts of an answer that are believed


@dataclass
class Answer:
    """kind: tensor, error, other (no tensor), memory. text: the message of an error, or what came instead of a tensor.
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
        """As JSON; and its numbers, with those of the gradient in float64 behind them, as raw bytes."""
        header: dict[str, Any] = {"kind": self.kind, "text": self.text[:2000], "error": self.error, "line": self.line}
        header["facts"] = self.facts
        body = b""
        if self.tensor is not None:
            tensor = self.tensor.contiguous()
            tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            header |= {"dtype_of": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
            body = tensor.numpy().tobytes()
        if self.gradient is not None:
            header["gradient"] = self.gradient.numel()
            body += self.gradient.numpy().tobytes()
        return header, body


def of_frame(header: dict[str, Any], body: bytes) -> Answer:
    """A frame as an answer. Raises ValueError and KeyError for one that is none."""
    tensor = gradient = None
    if "gradient" in header:
        size = 8 * int(header["gradient"])
        gradient = torch.from_numpy(np.frombuffer(body[len(body) - size :], dtype=np.float64).copy())
        body = body[: len(body) - size]
    if header["kind"] == "tensor":
        shape = [int(n) for n in header["shape"]]
        array = np.frombuffer(body, dtype=np.dtype(str(header["dtype_of"])))
        if math.prod(shape) != array.size:
            raise ValueError("another number of numbers")
        tensor = torch.from_numpy(array.copy()).reshape(shape)
    facts = dict(list(header.get("facts", {}).items())[:FACTS])
    text, error, line = (str(header.get(name, ""))[:2000] for name in ("text", "error", "line"))
    return Answer(str(header["kind"]), tensor, text, error, line, facts, gradient)


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
        text = str(error)[:2000]
    except BaseException:
        text = "(its message cannot be made)"
    memory = isinstance(error, MemoryError) or any(word in text.lower() for word in MEMORY_WORDS)
    kind = "memory" if memory else "error"
    return Answer(kind, text=text, error=type(error).__name__, line=place(error), facts=facts or {})


def place(error: BaseException) -> str:
    """The innermost line of the submission in the traceback."""
    try:
        if isinstance(error, SyntaxError) and error.filename:
            return line_of(error.filename, error.lineno, error.text)
        frames = traceback.extract_tb(error.__traceback__)[-200:]
        own = [f for f in frames if os.path.split(f.filename)[0] in ("", os.getcwd()) and f.filename.endswith(FILES)]
        return line_of(own[-1].filename, own[-1].lineno, own[-1].line) if own else ""
    except BaseException:
        return ""


def line_of(file: str, number: int | None, code: str | None) -> str:
    return f"{os.path.basename(file)}:{number}: {(code or '').strip()[:160]}"
