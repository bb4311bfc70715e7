"""Why a part is wrong: the mistake it may be. Only what reproduces the results is named.

The tables of known mistakes stand in mistakes.py. Numbers of the formulas that may be
mistyped are not listed but fitted: a family is the computation with free numbers in one step. They are fitted to a few
answers by least squares; only what then reproduces all answers is named, with its numbers. What ends in an error, or in
a result that is no tensor, is told by its message.
"""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from scipy.optimize import least_squares

from hectogpt.grade.calls import Call, Made, difference, listed, outcome, outcome_of
from hectogpt.grade.computation import Change, Computation, Method, Mistake, symptoms
from hectogpt.grade.mistakes import GRADIENTS, MISTAKES
from hectogpt.grade.result import Diagnosis
from hectogpt.grade.run_part import Answer

EXACT = dict.fromkeys(("xtol", "ftol", "gtol"), 1e-14)  # where least squares end
PAIRS = 3000  # that are tried at most: a second or two
Mistakes = tuple[Mistake, ...]


def diagnose(part: str, calls: list[Call]) -> Diagnosis | None:
    """The mistake in a part that has failed: a state that is kept, NaN, what gives the same gradients or the same numbers,
    or what the message of an error says. calls: those that count."""
    firsts = {call.setting.name: call.answer.tensor for call in calls if call.place == 0}
    lasts = {call.setting.name: call.answer.tensor for call in calls if call.place == len(call.setting.inputs)}
    if any(
        now is not None and (was := firsts[name]) is not None and difference(now, was) > 1e-4
        for name, now in lasts.items()
    ):
        if part == "generate":
            what = "Tokens are drawn at random, or a state is kept between calls; greedy decoding takes the likeliest."
            return Diagnosis(("sampling for greedy",), "the choice of the next token", what)
        what = "The same input gives another output the second time: something is random or kept between calls."
        return Diagnosis(("another answer the second time",), "what is kept between calls", what)
    built = [call for call in calls if not call.answer.building]
    wrong = [call for call in built if not call.is_right]
    tensors, found = [call.answer.tensor for call in built], None
    if wrong and all(tensor is not None and tensor.isnan().all() for tensor in tensors):
        why = ": minus infinity fills whole rows of the scores, or is multiplied by zero" * (part == "attention")
        return Diagnosis(("NaN everywhere",), "the causal mask" if why else "the result", f"Every number is NaN{why}.")
    if wrong and any(tensor is not None for tensor in tensors):
        found = explain_values(part, built)
    elif built and not wrong and part == "generate":  # a text has lost its beginning past the context
        found = diagnosis("generate", [(one,) for one in MISTAKES["generate"] if one.name == "returned text cropped"])
    elif built and not wrong:
        found = wrong_gradient(part, [call for call in built if call.setting.gradient])
    broken = next((call.answer for call in [*wrong, *calls] if call.answer.kind in ("error", "other")), None)
    return found or (by_answer(part, broken) if broken else None)


def wrong_gradient(part: str, calls: list[Call]) -> Diagnosis | None:
    """The values of these calls are right, their gradients are not."""
    told = next(filter(None, (call.answer.backward for call in calls)), "")
    if found := by_words(part, told):
        return found
    if fitting := [(one,) for one in GRADIENTS[part] if not any(call.wrong_gradients((one,)) for call in calls)]:
        return diagnosis(part, fitting)
    wrong = list(dict.fromkeys(name for call in calls for name in call.wrong_gradients()))
    without = [name for name in wrong if any(call.without([name]) for call in calls)]
    if told or not without:
        return None
    few = without == wrong and len(wrong) <= 4
    names = tuple(f"{name} by .data" for name in wrong) if few else ("no gradient of some weights",)
    what = "On the way to it something is detached, taken by .data, or computed under no_grad."
    return Diagnosis(names, listed(without), what)


def explain_values(part: str, calls: list[Call]) -> Diagnosis | None:
    """The mistake, the number that is another one, or else the pair of mistakes, that reproduces all the answers; None
    if there is none."""
    # Small inputs that tell much first: a wrong hypothesis is given up after one.
    calls = sorted(calls, key=lambda c: (c.setting.inputs[c.number][1] < 2, c.setting.size.n_layers, c.place))
    if found := [(one,) for one in MISTAKES[part] if reproduces((one,), calls)]:
        return diagnosis(part, found)
    if numbers := fit(part, calls):
        return numbers
    tensors = [call for call in calls if call.answer.tensor is not None]
    if pairs := [pair for pair in pairs_of(part, tensors) if reproduces(pair, calls)]:
        return diagnosis(part, pairs)
    if 2 <= len(tensors) < len(calls):  # some calls raised for another reason: the others tell
        return explain_values(part, tensors)
    return None


def reproduces(mistakes: Mistakes, calls: list[Call]) -> bool:
    """Whether the mistakes give every answer."""
    return all(call.agrees(outcome(mistakes, call.setting, call.number)) for call in calls)


def pairs_of(part: str, calls: list[Call]) -> Sequence[Mistakes]:
    """Pairs that may fit: they change different steps, and neither alone raises, has another shape, or is wrong where
    the answer is neither."""

    def may_be(mistake: Mistake) -> bool:
        for call in calls:
            made, yours = outcome((mistake,), call.setting, call.number), call.answer.tensor
            if isinstance(made, str) or yours is None or made.shape not in (call.right.shape, yours.shape):
                return False
            if call.is_right and not call.agrees(made):
                return False
        return True

    pairs = combinations(filter(may_be, MISTAKES[part]), 2)
    return [(one, two) for one, two in pairs if not one.changes.keys() & two.changes.keys()][:PAIRS]


def diagnosis(part: str, found: Sequence[Mistakes]) -> Diagnosis:
    """The first of the explanations, with the names of the others."""
    first, *others = (tuple(one.name for one in mistakes) for mistakes in found)
    wheres = ["; ".join(dict.fromkeys(one.where for one in mistakes)) for mistakes in found[:3]]
    what = " ".join(one.what for one in found[0])
    effect = symptoms()[part].get(first[0], "") if len(first) == 1 else ""
    return Diagnosis(first, ", or ".join(dict.fromkeys(wheres)), what, tuple(map(" + ".join, others)), effect)


# --- numbers that may be mistyped -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """name: short, for tables. what: a sentence with {value} in it. right: the right value, None if there is none.
    starts: where the search begins."""

    name: str
    what: str
    right: float | None
    starts: tuple[float, ...]


@dataclass(frozen=True)
class Family:
    """part: where it is tried, "" for all. where: the step. changes: from the values of its numbers, method -> what takes
    its place."""

    part: str
    where: str
    changes: Callable[[list[float]], Mapping[str, Method]]
    numbers: tuple[Number, ...]


def gelu(v: list[float]) -> Change:
    factor, cubic, half, one = v
    return lambda self, x: half * x * (one + torch.tanh(factor * (x + cubic * x**3)))


ROOT = math.sqrt(2 / math.pi)
CURVE = (
    Number("factor", "The factor before the bracket is {value}, not sqrt(2/pi) = 0.797885.", ROOT, (ROOT, 2.0, -ROOT)),
    Number("coefficient", "The coefficient of the cube is {value}, not 0.044715.", 0.044715, (0.044715, 0.5)),
    Number("half", "The factor in front is {value}, not one half.", 0.5, (0.5,)),
    Number("1 +", "What is added to tanh is {value}, not 1.", 1.0, (1.0,)),
)
SCALE, MASK, ORDER = "the scale of the scores", "the causal mask", "the order of mask and scale"
FILLED = "which large scores outweigh: minus infinity hides the future"
FAMILIES = (
    Family("gelu", "GELU.forward", lambda v: {"gelu": gelu(v)}, CURVE),
    Family("mlp", "the activation between fc1 and fc2", lambda v: {"bend": gelu(v)}, CURVE),
    Family("attention", SCALE, lambda v: {"scale": lambda s, t: t * v[0]}, (Number("scores times", "The scores are multiplied by {value}, whatever the width of a head.", None, (0.1, 1.0)),)),
    Family("attention", SCALE, lambda v: {"scale": lambda s, t: t * v[0] / s.size.d_attention**0.5}, (Number("scale times", "The scores, divided by the root of the head's width, are {value} times what they should be.", 1.0, (0.5, 2.0, -1.0)),)),
    Family("attention", MASK, lambda v: {"hide": lambda s, t: t.masked_fill(s.future(t), v[0])}, (Number("mask of", f"The future is filled with {{value}}, {FILLED}.", None, (-1.0, -8.0, -15.0)),)),
    Family("attention", MASK, lambda v: {"hide": lambda s, t: t + v[0] * s.future(t)}, (Number("added to the future:", f"{{value}} is added to the scores of the future, {FILLED}.", 0.0, (-1.0, -8.0, -15.0)),)),
    Family("attention", ORDER, lambda v: {"pattern": lambda s, t: s.normalise(s.scale(t.masked_fill(s.future(t), v[0])))}, (Number("before the scale, mask of", f"The future is filled with {{value}} before the scores are scaled, {FILLED}.", None, (-4.0, -20.0)),)),
    Family("attention", ORDER, lambda v: {"pattern": lambda s, t: s.normalise(s.scale(t + v[0] * s.future(t)))}, (Number("before the scale, added to the future:", f"{{value}} is added to the scores of the future before they are scaled, {FILLED}.", 0.0, (-4.0, -20.0)),)),
    Family("block", "the norms", lambda v: {"eps": lambda s: v[0]}, (Number("eps", "The eps of the norms is {value}, not GPT-2's 1e-5.", 1e-5, (1e-6, 1e-4)),)),
    Family("loss", "the cross entropy", lambda v: {"surprise": lambda s, y, t: (1 - v[0]) * Computation.surprise(s, y, t) - v[0] * y.log_softmax(-1).mean(-1)}, (Number("label smoothing", "Label smoothing of {value} is on.", 0.0, (0.05,)),)),
    Family("", "the result", lambda v: {"after": lambda s, y: v[0] * y}, (Number("result times", "Every number is {value} times the right one.", 1.0, (1.0,)),)),
)  # fmt: skip


def fit(part: str, calls: list[Call]) -> Diagnosis | None:
    """The first family that reproduces all answers with some numbers, and these numbers."""
    if not all((t := call.answer.tensor) is not None and t.numel() and t.isfinite().all() for call in calls):
        return None
    return next(filter(None, (fitted(family, calls) for family in FAMILIES if family.part in (part, ""))), None)


def fitted(family: Family, calls: list[Call]) -> Diagnosis | None:
    """The numbers with which a family reproduces all the calls."""

    def made(values: Iterable[float], call: Call) -> Made:
        kind = type("Fitted", (Computation,), dict(family.changes([float(value) for value in values])))
        return outcome_of(kind, call.setting, call.number)

    # Of each model the shortest call: what depends on its sizes must fit both.
    few = {c.setting.name: c for c in sorted(calls, key=lambda c: c.setting.inputs[c.number][1])}

    def misses(values: Iterable[float]) -> np.ndarray:
        """By how much each number of these calls is missed."""
        parts = []
        for call in few.values():
            mine, yours = made(values, call), call.answer.tensor
            if isinstance(mine, str) or yours is None or mine.shape != yours.shape or not mine.isfinite().all():
                raise ArithmeticError
            parts.append((mine.double() - yours.double()).flatten())
        return torch.cat(parts).numpy()

    first = [number.starts[0] for number in family.numbers]
    more = [(n, start) for n, number in enumerate(family.numbers) for start in number.starts[1:]]
    for start in (first, *([*first[:n], other, *first[n + 1 :]] for n, other in more)):
        with suppress(ArithmeticError):
            values = least_squares(misses, start, method="lm", diff_step=1e-6, max_nfev=100, **EXACT).x
            if not all(call.agrees(made(values, call)) for call in calls):
                continue
            rows = [(n, round(float(value), 9) + 0.0) for n, value in zip(family.numbers, values, strict=True)]
            if others := [(n, v) for n, v in rows if n.right is None or abs(v - n.right) > 1e-3 * abs(n.right) + 1e-12]:
                names = tuple(f"{number.name} {value:.5g}" for number, value in others)
                what = " ".join(number.what.format(value=f"{value:.5g}") for number, value in others)
                return Diagnosis(names, family.where, what)
    return None


# --- messages ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """pattern: searched in "ErrorName: message | line of code", or in what came instead of a tensor. parts: where the
    rule holds, () for all."""

    name: str
    pattern: str
    where: str
    what: str
    parts: tuple[str, ...] = ()


FAULTS = (
    Fault("prints without end", r"^output flood: .*printed", "a print in the function", "The function prints far too much, or without end."),
    Fault("nothing returned", r"^result: None", "the end of the function", "The result is computed but nothing is returned: the return is missing."),
    Fault("changed in place", r"modified by an inplace operation|leaf Variable that requires grad", "a sum or mask in place", "A tensor that the gradient needs is changed in place, by += say: backward fails. A new tensor is asked for."),
    Fault("a helper returns nothing", r"not NoneType|'NoneType' (object|and)|got NoneType|NoneType: None", "a helper function", "A function of yours that is called here computes its result but does not return it: the return is missing."),
    Fault("exception raised for return", r"exceptions must derive from BaseException", "the end of the function", "The result is raised as an exception: `raise` stands where `return` belongs."),
    Fault("several values returned", r"^result: a (tuple|list)", "the end of the function", "Several values are returned; one tensor is asked for."),
    Fault("layers outside a ModuleList", r"LookupError: parameters differ.*missing: backbone\.0\.mlp\.fc1\.weight", "the constructor of Transformer", "The blocks are not registered: a plain list hides their parameters from PyTorch."),
    Fault("bias missing in a layer", r"LookupError: parameters differ.*missing: [\w., ]*bias(?!.*missing: [\w., ]*weight)", "the constructor", "A linear layer has been made without its bias."),
    Fault("d_ff is not 4 d_model", r"LookupError: parameters differ.*fc[12]\.", "the constructor of MLP", "The hidden layer of the MLP has to be 4 d_model wide."),
    Fault("parameters of one head's width", r"LookupError: parameters differ.*W_[kqvo]\.\w+: \[", "the constructor of CausalAttention", "A projection has another shape than (d_model, d_model); all heads share one matrix."),
    Fault("parameters renamed", r"LookupError: parameters differ", "the constructor", "Names or shapes of parameters are not the assignment's."),
    Fault("nn.Softmax given the scores", r"TypeError: .*Softmax.*|TypeError: .*'dim'.*\| .*Softmax\(|RuntimeError: .*ambiguous.*\| .*Softmax\(", "the softmax", "nn.Softmax is a class: it is built with its axis first, then called with the scores.", ("attention",)),
    Fault("shape called", r"'torch.Size' object is not callable", "reading a shape", "`shape` is an attribute; it is not called."),
    Fault("n_heads not stored", r"AttributeError: .*has no attribute '(n_heads|num_heads|n_head|num_attention_heads|d_head|head_dim)'", "the attributes of the module", "The module has no such attribute: only what its constructor stores is there (the head's width is, and d_model with it)."),
    Fault("attribute missing", r"AttributeError: .*has no attribute", "the attributes of a module", "An attribute is used that nothing has set."),
    Fault("name not defined", r"NameError|UnboundLocalError", "a name", "A name is used that is not defined there."),
    Fault("extra required argument", r"missing \d+ required positional argument", "the arguments", "A function asks for an argument that its caller does not give; extra arguments need a default."),
    Fault("positions not in the table", r"IndexError: index out of range", "the position embeddings", "A table is asked for a row that it does not have.", ("forward",)),
    Fault("context overrun", r"IndexError: index out of range|do not fit a context|must match the size of tensor", "what the model is given at each step", "The model is given more tokens than its context holds.", ("generate",)),
    Fault("mask not sliced", r"RuntimeError: The size of tensor a \(\d+\) must match the size of tensor b \(10|7\)", "the causal mask", "The mask is not cut to the length of the input: only inputs as long as the context work.", ("attention",)),
    Fault("heads not joined before W_o", r"mat1 and mat2 shapes cannot be multiplied.*\| .*W_o", "joining the heads", "What reaches W_o does not have d_model numbers at each position: the heads are not put side by side.", ("attention",)),
    Fault("mask of another shape", r"must match the size of tensor.*\| .*mask", "the causal mask", "The mask and the scores have different shapes: the mask has to be cut to (T, T).", ("attention",)),
    Fault("view of a transposed tensor", r"view size is not compatible", "a change of shape", "A transposed or sliced tensor cannot be viewed in another shape: it has to be made contiguous, or reshaped."),
    Fault("the new token lacks an axis", r"same number of dimensions|Sizes of tensors must match", "appending the new token", "The new tokens have another number of axes than the text: one token a row makes a column.", ("generate",)),
    Fault("position embeddings of another shape", r"must match the size of tensor.*\| .*pos", "the position embeddings", "Token and position embeddings have different lengths: positions are counted along the sequence.", ("forward",)),
    Fault("shapes do not fit in a product", r"mat1 and mat2 shapes|Expected size for first two dimensions|must match the size of tensor|shape .* is invalid|einsum|Shape mismatch|EinopsError", "shapes", "The shapes of two tensors do not fit together."),
    Fault("cross entropy over the wrong axis", r"Expected target size|Expected input batch_size|Expected target", "the shapes given to cross entropy", "Cross entropy wants the classes on the second axis: logits and targets have to be flattened alike, or transposed.", ("loss",)),
    Fault("exit called", r"^SystemExit|SystemExit:|^crashed: .*exit code 0", "a call of exit", "The code ends the program."),
    Fault("something that needs the network", r"OfflineError:|no network while grading", "a download", "The code uses something that has to be downloaded."),
)  # fmt: skip


def by_words(part: str, words: str) -> Diagnosis | None:
    """The first rule that holds, for "ErrorName: message | line of code" or what came instead of a tensor."""
    for fault in FAULTS:
        if (not fault.parts or part in fault.parts) and re.search(fault.pattern, words, re.DOTALL):
            return Diagnosis((fault.name,), fault.where, fault.what)
    return None


def by_answer(part: str, broken: Answer) -> Diagnosis | None:
    """The first rule that holds for what came instead of a tensor."""
    error = f"{broken.error}: {broken.text} | {broken.line.partition(': ')[2]}"
    return by_words(part, f"result: {broken.text}" if broken.kind == "other" else error)
