"""Answers: the results of calls to a submission's code, and how they travel from the child to its
parent.

A frame holds the answers of one setting: facts as JSON, numbers as a safetensors file. Nothing
here knows a right value."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from hectogpt.grade import laws
from hectogpt.grade.laws import Setting
from hectogpt.grade.result import Outcome
from hectogpt.grade.watch import Picture
from hectogpt.serialization import dump, load

ALL_BYTES = 48 << 20  # of one child's frames
LONGEST = 2000  # characters of a text


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The result of one call: values, an error, something else, curves, or a picture.

    tensors: its numbers by name.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """The answer as a part of a sentence."""
        return "returned something else"

    def facts(self) -> dict[str, Any]:
        """Return everything except `tensors`, as JSON."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tensors"}
        return {n: v.facts() if isinstance(v, Answer) else dump(v) for n, v in known.items()}


@dataclass(frozen=True, kw_only=True)
class Raised(Answer):
    """An error was raised.

    error: its class.
    text: its message.
    line: where in the submission it arose, as "model_solution.py:88: code".
    building: the part could not even be built.
    is_memory: it ran out of memory.
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
    """Something else than a tensor came back, or nothing.

    text: "None", or "a tuple of 2".
    """

    text: str

    @property
    def words(self) -> str:
        return f"returned {self.text}"


@dataclass(frozen=True, kw_only=True)
class Values(Answer):
    """A tensor or a number came back.

    tensors: the result under "", and the gradients by name, for the tensors that receive one.
    has_gradient: False if a gradient was asked for and the result is not connected to any weight.
    backward: the error that backward raised.
    absent: weights that the module lacks, or has in a different shape.
    unnamed: arguments that it has under other names.
    changed: what the call leaves changed, by the names of [left] in mistakes.toml.
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
        """True if backward got through."""
        return self.has_gradient and self.backward is None


@dataclass(frozen=True, kw_only=True)
class Curves(Answer):
    """train() recorded losses and gradient norms.

    tensors: "losses", "norms", "ids N" of each batch, and what watch.Seen has.
    optimizers, plain: see watch.Seen.
    kept: the losses hold their autograd graph.
    after: an error that was raised after they were recorded.
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
    """Return a foreign text on one line, cut to `width` characters."""
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


def of_frame(header: dict[str, Any], body: bytes) -> list[Answer]:
    """Parse a frame. If it is malformed, raises UserError, ValueError, KeyError, TypeError or a
    safetensors error.
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
    """All that came back from the children of a submission.

    Attributes:
        files: the modules that were handed in.
        answers: (setting, variant) -> the dtype that the submission ran in, and its answers in
            order.
        imports: module -> why it cannot be imported.
        missing: packages that stand-ins took the place of.
        ends: setting -> how a child died in it; under "" during the import.
        seconds: of all children.
        left: what the child has still to answer; first the import, as ("", "").
        ready: the child has started with the submission.
        size: bytes of all its frames.
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
        """Note that a new child is asked for these (setting, variant)."""
        self.left = [("", ""), *asked]
        self.ready = False
        self.size = 0

    def receive(self, header: dict[str, Any], body: bytes) -> None:
        """Take in one frame. Raises what `of_frame` does for one that is malformed, and ValueError
        for more than the answers to the settings can be."""
        self.size += len(str(header)) + len(body)
        if self.size > ALL_BYTES or not self.left:
            raise ValueError("more answers than there are questions")
        if "ready" in header:
            self.ready = True
            return
        name, variant = self.left[0]
        if name:
            setting: Setting = laws.SETTINGS[name]
            dtype = one_of(laws.TOLERANCE, header["dtype"])
            made = of_frame(header, body)[: len(setting.order)]
            self.answers[name, variant] = dtype, made
        else:
            self.imports = {
                one_of(self.files, module): load(Raised, facts)
                for module, facts in header["imports"].items()
            }
            self.missing = {str(name)[:60] for name in header["missing"][:20]}
        del self.left[0]


def one_of(known: Collection[str], name: Any) -> str:
    """Return the name if it is one of the known ones. Raises ValueError."""
    if not isinstance(name, str) or name not in known:
        raise ValueError("an unknown name")
    return name
