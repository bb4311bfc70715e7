"""Answers: the results of calls to a submission's code, and how the child sends them.

A frame holds the answers of one setting: facts as JSON, numbers as a safetensors file. This module
contains no right values.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from hectogpt.grade import laws
from hectogpt.grade.result import Outcome
from hectogpt.grade.watch import Picture
from hectogpt.serialization import dump, load

ALL_BYTES = 48 << 20  # the most bytes that one child may send
LONGEST = 2000  # characters; a longer text in an answer is cut
IMPORT = ""  # used like the name of a setting, for the import of the files


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The result of one call: values, an error, something else, curves, or a picture.

    tensors: the numbers of the result, by name.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """The answer in a few words, to use inside a sentence."""
        return "returned something else"

    def facts(self) -> dict[str, Any]:
        """Return everything except `tensors`, as JSON."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tensors"}
        return {n: v.facts() if isinstance(v, Answer) else dump(v) for n, v in known.items()}


@dataclass(frozen=True, kw_only=True)
class Raised(Answer):
    """The call raised an error.

    error: the name of its class.
    text: its message.
    line: the line of the submission that raised it, as "model_solution.py:88: code".
    building: True if the part could not even be built.
    is_memory: True if memory ran out.
    """

    error: str
    text: str = ""
    line: str = ""
    building: bool = False
    is_memory: bool = False

    @property
    def words(self) -> str:
        at = f", at {short(self.line, 200)}" if self.line else ""
        return f"{self.error}: {short(self.text)}{at}" if self.text else f"{self.error}{at}"


@dataclass(frozen=True, kw_only=True)
class Other(Answer):
    """The call returned something other than a tensor.

    text: what it returned, such as "None" or "a tuple of 2".
    """

    text: str

    @property
    def words(self) -> str:
        return f"returned {self.text}"


@dataclass(frozen=True, kw_only=True)
class Values(Answer):
    """The call returned a tensor or a number.

    tensors: the result under "", and the gradients by name, for the tensors that receive one.
    has_gradient: False if a gradient was requested but autograd does not track the result.
    backward: the error that backward raised.
    absent: weights that the module lacks, or has in a different shape.
    unnamed: expected argument names that the function does not accept.
    changed: side effects of the call, by their names under [left] in mistakes.toml.
    """

    has_gradient: bool = True
    backward: Raised | None = None
    absent: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def result(self) -> Tensor:
        return self.tensors[""]

    @property
    def trains(self) -> bool:
        """True if backward succeeded."""
        return self.has_gradient and self.backward is None


@dataclass(frozen=True, kw_only=True)
class Curves(Answer):
    """train() recorded losses and gradient norms.

    tensors: "losses", "norms", "ids N" for each batch, and the numbers of watch.Seen.
    optimizers, plain: see watch.Seen.
    kept: True if recorded numbers are tensors that keep their autograd graph.
    after: an error raised after the losses were recorded.
    """

    optimizers: tuple[str, ...] = ()
    plain: bool = True
    kept: bool = False
    after: Raised | None = None


@dataclass(frozen=True, kw_only=True)
class Drawn(Answer):
    """plot_results saved pictures."""

    picture: Picture


def short(text: str, width: int = 300) -> str:
    """Return a submission's text on one line, cut to `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."


# --- frames

KINDS = {kind.__name__: kind for kind in (Values, Raised, Other, Curves, Drawn)}


def frame_of(answers: list[Answer]) -> tuple[dict[str, Any], bytes]:
    """Return the headers of answers as JSON, and their numbers as a safetensors file."""
    tensors = {
        f"{place} {name}": value.clone(memory_format=torch.contiguous_format)
        for place, answer in enumerate(answers)
        for name, value in answer.tensors.items()
    }
    headers = [{"kind": type(answer).__name__, **answer.facts()} for answer in answers]
    return {"answers": headers}, save_tensors(tensors)


def answers_in(header: dict[str, Any], body: bytes) -> list[Answer]:
    """Parse a frame into answers.

    Raises UserError, ValueError, KeyError, TypeError or a safetensors error for a malformed frame.
    """
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, value in load_tensors(body).items():
        place, _, name = name.partition(" ")
        tensors.setdefault(place, {})[name] = value
    answers = []
    for number, one in enumerate(header["answers"]):
        facts = {n: v[:LONGEST] if isinstance(v, str) else v for n, v in one.items()}
        kind = KINDS[facts.pop("kind")]
        answer: Answer = replace(load(kind, facts), tensors=tensors.get(str(number), {}))
        if isinstance(answer, Values) and "" not in answer.tensors:
            raise ValueError("a tensor is missing")
        answers.append(answer)
    return answers


@dataclass
class Transcript:
    """Everything received from the children of a submission.

    Attributes:
        files: the modules that were handed in.
        answers: (setting, variant) -> the dtype that the submission ran in, and its answers in
            order.
        imports: module -> the error that its import raised.
        missing: packages that are not installed here; stand-ins replaced them.
        ends: part -> how a child died in it.
        seconds: the time that all children took together.
        left: the (setting, variant) pairs that the child must still answer. (IMPORT, "") is the
            first of them until the files are imported.
        ready: True once the child has restricted itself and can run the submission.
        size: bytes received from the current child.
    """

    files: set[str] = field(default_factory=set)
    answers: dict[tuple[str, str], tuple[str, list[Answer]]] = field(default_factory=dict)
    imports: dict[str, Raised] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    ends: dict[str, tuple[Outcome, str]] = field(default_factory=dict)
    seconds: float = 0.0
    left: list[tuple[str, str]] = field(default_factory=list)
    ready: bool = False
    size: int = 0

    def begin(self, asked: list[tuple[str, str]]) -> None:
        """Prepare for the answers of a new child to these (setting, variant) pairs."""
        self.left = [(IMPORT, ""), *asked]
        self.ready = False
        self.size = 0

    def receive(self, header: dict[str, Any], body: bytes) -> None:
        """Store one frame.

        Raises the errors of `answers_in` if the frame is malformed, and ValueError if the child
        sends more frames than it was asked for, or more than ALL_BYTES.
        """
        self.size += len(str(header)) + len(body)
        if self.size > ALL_BYTES or not self.left:
            raise ValueError("more answers than there are questions")
        if "ready" in header:
            self.ready = True
            return
        name, variant = self.left[0]
        if name != IMPORT:
            dtype = one_of(laws.TOLERANCE, header["dtype"])
            made = answers_in(header, body)[: len(laws.SETTINGS[name].order)]
            self.answers[name, variant] = dtype, made
        else:
            self.imports = {
                one_of(self.files, module): load(Raised, facts)
                for module, facts in header["imports"].items()
            }
            self.missing = {str(name)[:60] for name in header["missing"][:20]}
        del self.left[0]


def one_of(known: Collection[str], name: Any) -> str:
    """Return the name if it is one of the known ones. Raises ValueError if it is not."""
    if not isinstance(name, str) or name not in known:
        raise ValueError("an unknown name")
    return name
