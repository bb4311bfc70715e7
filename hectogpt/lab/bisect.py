"""Find where two runs, or two models, begin to differ.

For runs, that is the first step after which their weights differ, and the first module within that
step whose output, gradient or update differs. For models, it is the first module whose outputs on
the same tokens differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from hectogpt.errors import DataError
from hectogpt.model.weights import saved_tensors
from hectogpt.training import setup
from hectogpt.training.checkpoint import Checkpoint
from hectogpt.training.diagnose import Tensors, trace
from hectogpt.training.events import Stepped, Stream, session_of
from hectogpt.training.session import Session

Open = Callable[[Checkpoint | None], Stream]
Outputs = Mapping[str, Tensors]
# Largest difference between the outputs of two correct programs, relative to a module's largest
# output. Such programs may round to float32 internally.
ROUNDING = {"float32": 1e-4, "float64": 1e-6}


@dataclass(frozen=True)
class Parting:
    """The place where two runs or two models begin to differ.

    Attributes:
        equal: True if they do not differ.
        step: for runs, the first step after which a weight differs; 0 for the initial weights. If
            `equal`, the last step that was compared.
        tensor: the first weight that differs after this step.
        row: the first row of this weight that differs.
        module: the first module whose output, gradient or update differs.
        stage: the first of "forward", "gradient" and "update" that differs; None for initial
            weights.
        first: stage -> the first module that differs in that stage.
        batch_row: the first row of the step's batch that has different tokens.
        largest: for models, dtype -> largest difference of the module's outputs, or of all
            outputs if `equal`; infinity if shapes differ or a difference is not finite.
    """

    equal: bool
    step: int | None = None
    tensor: str | None = None
    row: int | None = None
    module: str | None = None
    stage: str | None = None
    first: dict[str, str] = field(default_factory=dict)
    batch_row: int | None = None
    largest: dict[str, float] = field(default_factory=dict)


def bisect_runs(a: Open, b: Open) -> Parting:
    """Train two runs side by side until their weights differ.

    Args:
        a, b: for each run, a function that opens its events: at a checkpoint, or for None where
            the comparison begins.

    Raises UserError (DATA) if the weights of the runs have different names or shapes.
    """
    streams = (a(None), b(None))
    sessions = [session_of(stream) for stream in streams]
    check_shapes(*(saved_tensors(session.model) for session in sessions))
    if found := first_difference(*(saved_tensors(session.model) for session in sessions)):
        return Parting(False, sessions[0].step, *found, module=found[0].rpartition(".")[0])
    for _ in range(sessions[0].step, min(session.run.steps for session in sessions)):
        before = [session.checkpoint() for session in sessions]
        taken = [isinstance(next(stream), Stepped) for stream in streams]
        if found := first_difference(*(saved_tensors(session.model) for session in sessions)):
            again = [
                session_of(opened(state)) for opened, state in zip((a, b), before, strict=True)
            ]
            return _within_step(again, *found)
        if not all(taken):
            break  # both have diverged
    return Parting(True, sessions[0].step)


def check_shapes(a: Tensors, b: Tensors) -> None:
    """Check that both have tensors of the same names and shapes. Raises UserError (DATA)."""
    shapes = [{name: list(tensor.shape) for name, tensor in one.items()} for one in (a, b)]
    names = dict.fromkeys([*a, *b])
    if odd := next((n for n in names if shapes[0].get(n) != shapes[1].get(n)), None):
        left, right = (one.get(odd, "none") for one in shapes)
        raise DataError(
            "the two have different shapes",
            why=f"{odd}: {left} against {right}",
            fix="compare models of the same sizes and parts",
        )


def first_difference(a: Tensors, b: Tensors) -> tuple[str, int] | None:
    """Find the first tensor whose bits differ, and the first row that differs in it.

    Returns None if all are equal. Bits are compared: two nans are equal, 0 and -0 are not.
    """
    for name in a:
        one, two = (t[name].cpu().contiguous().reshape(len(t[name]), -1) for t in (a, b))
        if one.dtype != two.dtype:
            return name, 0
        same = one.view(torch.uint8) == two.view(torch.uint8)
        if not same.all():
            return name, int((~same.all(dim=1)).nonzero()[0])
    return None


def _within_step(sessions: list[Session], tensor: str, row: int) -> Parting:
    """Repeat the sessions' next step, and compare outputs, gradients and updates within it."""
    step = sessions[0].step
    batches = [setup.make_batches(s.run, s.corpus).at(step) for s in sessions]
    batch_row = None
    if batches[0].shape != batches[1].shape:
        batch_row = 0
    elif len(rows := np.flatnonzero((batches[0] != batches[1]).any(axis=1))):
        batch_row = int(rows[0])
    _, *traces = zip(*map(trace, sessions), strict=True)
    first = {}
    for stage, (one, two) in zip(("forward", "gradient"), traces, strict=True):
        for name in one:
            if name in two and not _equal(one[name], two[name]):
                first[stage] = name
                break
    first["update"] = tensor.rpartition(".")[0]
    stage, module = next(iter(first.items()))
    return Parting(False, step + 1, tensor, row, module, stage, first, batch_row)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def bisect_models(a: Outputs, b: Outputs, exact: bool) -> Parting:
    """Compare the outputs of two models' modules, in float64 first.

    Args:
        a, b: dtype -> module -> its output on the same tokens, in the order of computation.
            Modules that only one model has are skipped.
        exact: True if the same code computed both, so that any different bit counts; otherwise
            differences within ROUNDING do not count.

    Raises UserError (DATA) if the models have no module in common, or with `exact` if their sizes
    differ.
    """
    apart = {dtype: _apart(a[dtype], b[dtype], exact) for dtype in sorted(a, reverse=True)}
    module = None
    for dtype, by_module in apart.items():
        limit = 0.0 if exact else ROUNDING[dtype]
        beyond = (name for name, (_, relative) in by_module.items() if relative > limit)
        module = module or next(beyond, None)
    if module is None:
        largest = {dtype: max(d for d, _ in found.values()) for dtype, found in apart.items()}
        return Parting(True, largest=largest)
    largest = {dtype: found[module][0] for dtype, found in apart.items()}
    return Parting(
        False, module=module, stage="forward", first={"forward": module}, largest=largest
    )


def _apart(a: Tensors, b: Tensors, exact: bool) -> dict[str, tuple[float, float]]:
    """Module -> its largest difference: absolute, and relative to the largest output of `a`."""
    shared = [name for name in a if name in b]
    if not shared:
        why = f"modules: {', '.join(list(a)[:3])} against {', '.join(list(b)[:3])}"
        raise DataError("the two have no module in common", why=why)
    found = {}
    for name in shared:
        if exact:
            check_shapes({name: a[name]}, {name: b[name]})
        one = a[name].double().flatten()  # one of the two may lack an axis of length 1
        two = b[name].double().flatten()
        if len(one) != len(two):
            found[name] = (math.inf, math.inf)
            continue
        apart = torch.where(one == two, 0.0, one - two).abs().nan_to_num(math.inf)
        largest = float(apart.amax()) if len(apart) else 0.0
        found[name] = (largest, largest / max(float(one.abs().amax()), 1e-30) if largest else 0.0)
    return found
