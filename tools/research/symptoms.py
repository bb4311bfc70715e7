"""Measure how each known mistake shows itself to the one who made it: python -m tools.research.symptoms.

Writes hectogpt/grade/symptoms.json: part -> mistake -> a few sentences. The computation with the mistake is run on the
grader's inputs, on fresh weights, and as a model of two layers that is trained for 200 steps on a text whose second
half repeats its first: the right one ends at a loss of about 0.4 (ln 13 = 2.6 is chance) and continues nearly every
text correctly. The page docs/traps.md shows the sentences, and `hectogpt grade` shows them with the mistake.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

from hectogpt.grade import calls, laws
from hectogpt.grade.answer import Answer, Raised, Values, short
from hectogpt.grade.calls import Call, pattern
from hectogpt.grade.child import answer_of_error
from hectogpt.grade.computation import Computation
from hectogpt.grade.laws import Setting, Size, given, shapes, weights
from hectogpt.grade.mistakes import GRADIENTS, MISTAKES, Mistake, with_mistakes
from hectogpt.grade.watch import close
from tools import ROOT

FILE = ROOT / "hectogpt" / "grade" / "symptoms.json"
SIZE = Size(d_model=16, n_heads=2, n_layers=2, context_length=12, vocab_size=13)
HALF, NEW, STEPS, ROWS = 6, 5, 200, 16
NEAR = 0.15  # losses that differ by less are called the same; two seeds of the right model differ by 0.05
Kind = type[Computation]


@lru_cache(maxsize=512)
def text(rows: int, seed: int) -> Tensor:
    """[rows, 12]: six tokens, each one of two possible successors of the one before it, and the same six again."""
    successors = torch.randint(13, (13, 2), generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(seed)
    half = [torch.randint(13, (rows,), generator=generator)]
    while len(half) < HALF:
        half.append(successors[half[-1], torch.randint(2, (rows,), generator=generator)])
    return torch.stack(half * 2, 1)


def fresh(size: Size, std: float) -> dict[str, Tensor]:
    """Initial weights as the course draws them, float64."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes(size).items():
        draw = torch.randn(shape, generator=generator, dtype=torch.float64)
        fixed = torch.full_like(draw, float(name.endswith("norm.weight")))
        state[name] = fixed if "norm" in name or name.endswith("bias") else std * draw
    return state


def train(kind: Kind, steps: int = STEPS) -> tuple[list[float], dict[str, Tensor]]:
    """Losses as they are reported, and the weights at the end. Raises what the computation raises."""
    state = {name: value.requires_grad_() for name, value in fresh(SIZE, 0.1).items()}
    optimizer = torch.optim.Adam(state.values(), lr=0.01, betas=(0.9, 0.98), fused=True)
    losses = []
    for step in range(steps):
        loss = kind(state, SIZE).loss(text(ROWS, 10 + step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            break
    return losses, {name: value.detach() for name, value in state.items()}


def ending(losses: list[float]) -> float:
    return sum(losses[-20:]) / len(losses[-20:])


@lru_cache
def right() -> tuple[float, dict[str, Tensor]]:
    """The loss that the right model reaches, and its weights."""
    losses, state = train(Computation)
    return ending(losses), state


def continued(kind: Kind, state: dict[str, Tensor]) -> float:
    """The share of the second half's tokens that greedy generation gets right with this computation."""
    rows = text(256, 5)
    with torch.no_grad():
        return float((kind(state, SIZE).generate(rows[:, :HALF], HALF)[:, HALF:] == rows[:, HALF:]).double().mean())


# --- sentences --------------------------------------------------------------------------------------------------------


def percent(share: float | Tensor) -> str:
    share = float(share.double().mean()) if isinstance(share, Tensor) else share
    return "nearly all" if 0.995 < share < 1 else "none" if share < 0.005 else f"{share:.0%}"


def of_training(kind: Kind) -> str:
    """The symptoms of training with the mistake."""
    best, _ = right()
    try:
        losses, state = train(kind)
        if not math.isfinite(losses[-1]):
            return f"The loss is {'NaN' if math.isnan(losses[-1]) else 'infinite'} from step {len(losses)} on."
        end, share = ending(losses), continued(kind, state)
    except Exception as error:
        return f"In the model it raises {type(error).__name__}: {short(str(error), 90).rstrip('.')}."
    nonsense = f"only {percent(share)} of the generated tokens are right" if share < 0.9 else ""
    if end < best - NEAR:
        too_low = f"The loss falls to {end:.1f}, below the {best:.1f} that is possible"
        return f"{too_low}, and {nonsense}." if nonsense else f"{too_low}."
    if end < best + NEAR:
        return f"Training looks right, but {nonsense}." if nonsense else "Training looks as it should."
    if end > losses[0] - NEAR:
        return f"The loss does not fall: {end:.1f} at the end."
    return f"The loss stops at {end:.1f}, where {best:.1f} is possible."


def made_by(kind: Kind, setting: Setting, number: int, state: dict[str, Tensor] | None = None) -> Answer:
    new = setting.new_tokens[number] if setting.new_tokens else 0
    try:
        with torch.no_grad():
            result = kind(state or weights(setting), setting.size).run(setting.part, given(setting, number), new)
        return Values(tensors={"": result})
    except Exception as error:
        return answer_of_error(error)


def asked(part: str) -> list[Setting]:
    return [setting for setting in laws.settings_of(part) if setting.counts]


def in_letters(shape: torch.Size, setting: Setting) -> str:
    """A shape of the first input's result, by the names of its axes."""
    (batch, seq), size = setting.inputs[0], setting.size
    names = {size.vocab_size: "vocab", size.d_model: "d_model", 4 * size.d_model: "4 d_model", size.n_heads: "heads"}
    names |= {size.d_attention: "d_attention", batch * seq: "batch * seq", seq - 1: "seq - 1"}
    names |= {batch * (seq - 1): "batch * (seq - 1)", batch: "batch", seq: "seq", 1: "1"}
    return f"[{', '.join(names.get(n, str(n)) for n in shape)}]" if shape else "a scalar"


def of_values(part: str, kind: Kind) -> str:
    """The symptoms in the part's own result: an error, a wrong shape, NaN, or which numbers are off, by how much."""
    made = [Call(s, n, made_by(kind, s, n), "float64") for s in asked(part) for n in range(len(s.inputs))]
    if broken := [(call, call.answer) for call in made if isinstance(call.answer, Raised)]:
        error = f"{broken[0][1].error}: {short(broken[0][1].text, 90).rstrip('.')}"
        if len(broken) == len(made):
            return f"It raises {error}."
        whole = any(given(call.setting, call.number).shape[1] == call.setting.size.context_length for call, _ in broken)
        return f"{'Some inputs' if whole else 'Inputs shorter than the context'} raise {error}."
    first = next((call for call in made if not call.is_right), made[0])
    yours, expected = first.result, first.right
    assert yours is not None
    if yours.shape != expected.shape and first is made[0]:
        return "It returns {}, not {}.".format(*(in_letters(one.shape, first.setting) for one in (yours, expected)))
    if yours.shape != expected.shape:
        x = list(given(first.setting, first.number).shape)
        return f"For an input of shape {x} the result has shape {list(yours.shape)}, not {list(expected.shape)}."
    if yours.is_floating_point() != expected.is_floating_point():
        return "It returns {}, not {}.".format(*(str(one.dtype)[6:] for one in (yours, expected)))
    if not yours.isfinite().all():
        if not yours.isfinite().any():
            return "Every number is NaN."
        only = yours.dim() > 1 and bool(yours[:, 1:].isfinite().all())
        return "Position 0 is NaN." if only else f"{percent(~yours.isfinite())} of the numbers are NaN."
    if first.is_right or expected.dim() < 2 or not expected.is_floating_point():
        return ""
    miss, spread = (yours - expected).double(), calls.scale_of(expected)
    off = float(miss.square().mean().sqrt()) / spread
    size = f"{off:.0f} times" if off >= 10 else f"{off:.0%} of" if off >= 0.01 else f"{off:.1g} of"
    many = percent(miss.abs() > first.tolerance * spread)
    words = pattern(made) or f"{'all' if many == '100%' else f'{many} of the'} numbers are wrong"
    return f"{words[0].upper()}{words[1:]}; the difference is {size} the right numbers' spread."


def of_dependence(part: str, kind: Kind) -> Iterator[str]:
    """Yield a sentence if a result depends on later positions, and one if it depends on other rows."""
    setting = asked(part)[0]
    x, computation = given(setting, 0), kind(weights(setting), setting.size)

    def result(*place: slice | int) -> Tensor:
        changed = x.clone()
        if place:
            changed[place] = changed[place] + 1.0 if x.is_floating_point() else (changed[place] + 1) % 17
        with torch.no_grad():
            return computation.run(part, changed, 0)

    if not isinstance(made_by(kind, setting, 0), Values):
        return
    before, later, rows = result(), result(slice(None), -1), result(1)
    if before.shape[:2] == x.shape[:2] and before.is_floating_point():
        if not torch.allclose(later[:, :-1], before[:, :-1], atol=1e-9, equal_nan=True):
            yield "A later token changes earlier results."
        if not torch.allclose(rows[0], before[0], atol=1e-9, equal_nan=True):
            yield "A row's result depends on the other rows."


def in_model(part: str, mistake: Mistake) -> Kind:
    """The computation with the mistake wherever a model uses that part, even if the mistake is at the part's end."""
    kind = with_mistakes((mistake,))
    if "after" not in mistake.changes:
        return kind
    method: Callable[..., Tensor] = getattr(kind, part)
    ended = {part: lambda self, *a: self.after(method(self, *a)), "run": lambda self, *a: self.compute(*a)}
    return type("Ending", (kind,), ended)


def of_model(part: str, mistake: Mistake) -> str:
    """GELU to forward: a part of the model, called on the grader's weights and on fresh ones, and trained."""
    kind, setting = in_model(part, mistake), asked(part)[0]
    found = [of_values(part, kind)]
    if not found[0].startswith(("It r", "Every")):
        found += of_dependence(part, kind) if part not in ("gelu", "mlp") else ()
        state = fresh(setting.size, 0.02)
        mine, expected = (Call(setting, 0, made_by(one, setting, 0, state), "").result for one in (kind, Computation))
        if mine is not None and expected is not None and mine.shape == expected.shape:
            found += ["On fresh weights the numbers are right."] * bool((mine - expected).abs().max() < 1e-5)
    training = of_training(kind)
    return " ".join(filter(None, [*found, "" if found[0] and "it raises" in training else training]))


def of_gradient(part: str, mistake: Mistake) -> str:
    """The symptoms of a wrong gradient: which weights get none, and how training ends."""
    setting = next(setting for setting in laws.settings_of(part) if setting.gradient)
    made, expected = (calls.gradients_with(mistakes, setting, 0) for mistakes in ((mistake,), ()))
    training = of_training(with_mistakes((mistake,)))
    if made is None or expected is None:
        return f"The values are right, and nothing has a gradient. {training}"
    groups: dict[str, list[bool]] = {}
    for name, (mine, theirs) in {name: (made[name], expected[name]) for name in expected}.items():
        group = ".".join(step for step in name.split(".")[:-1] if step != "backbone" and not step.isdigit()) or name
        groups.setdefault(group, []).append(bool((mine == 0).all() and (theirs.abs() > 1e-12).any()))
    none = [name for name, zero in groups.items() if all(zero)]
    some = [f"a weight of {name}" for name, zero in groups.items() if any(zero)]
    words = f"no gradient reaches {calls.listed(none or some, 4)}" if some else "another gradient comes back"
    return f"The values are right, but {words}. {training}"


def of_loss(part: str, mistake: Mistake) -> str:
    """The symptoms of a wrong loss: its value for a fresh model, the loss that training reports, and the true one."""
    kind = with_mistakes((mistake,))
    if (found := of_values(part, kind)).startswith("It r"):
        return found + " Backward raises." * ("returns [" in found)
    try:
        losses, state = train(kind)
    except RuntimeError:
        return f"{found} The loss has no gradient, so backward raises."
    with torch.no_grad():
        true = float(Computation(state, SIZE).loss(text(256, 5)))
    (best, _), end, expected = right(), ending(losses), math.log(SIZE.vocab_size)
    learned = f"The model learns less: its true loss stops at {true:.1f} where {best:.1f} is possible."
    if true < best + NEAR:
        learned = "The model learns as it should" + f", though {end:.1f} is reported" * (abs(end - best) > NEAR) + "."
    elif end < best - NEAR:
        share = percent(continued(Computation, state))
        learned = f"The reported loss falls to {end:.1f}, but only {share} of the generated tokens are right."
    begin = f"A fresh model has a loss of {losses[0]:.1f} where ln(vocab) = {expected:.1f} is right. "
    return begin * (abs(losses[0] - expected) >= 0.1) + learned


def of_generation(part: str, mistake: Mistake) -> str:
    """The symptoms of wrong generation by a trained model: five tokens after six, for several rows."""
    kind, found = with_mistakes((mistake,)), of_values(part, with_mistakes((mistake,)))
    if found.startswith(("It raises", "It returns float", "Some")):
        return found
    _, state = right()
    prompt = text(64, 7)[:, :HALF]

    def continuations(new: int) -> list[Tensor]:
        with torch.no_grad():
            return [one(state, SIZE).generate(prompt, new) for one in (kind, Computation)]

    try:
        mine, theirs = continuations(NEW)
    except Exception as error:
        return f"It raises {type(error).__name__}: {short(str(error), 90).rstrip('.')}."
    if torch.equal(mine, theirs):
        if torch.equal(*continuations(3 * NEW)):
            return "Several rows are continued rightly; a single row or token is not."
        return "The text is right up to the context, and wrong past it."
    if mine.shape[:1] != theirs.shape[:1] or mine.dim() != 2:
        return f"It returns a tensor of shape {list(mine.shape)} where {list(theirs.shape)} is right."
    if mine.shape != theirs.shape:
        return f"The text has {mine.shape[1]} tokens where 6 + 5 are right."
    if not torch.equal(mine[:, :HALF], prompt):
        return "The text does not begin with the prompt."
    new, same = mine[:, HALF:], (mine == theirs)[:, HALF:]
    sentences = ["All rows get the same tokens."] * bool((new == new[:1]).all())
    sentences += ["The same token comes again and again."] * bool((new == new[:, :1]).all())
    if same[:, 0].all():
        sentences.append(f"The first new token is right, of the later ones {percent(same[:, 1:])}.")
    elif same[0].all():
        sentences.append(f"The first row is right, of the others {percent(same[1:])}.")
    else:
        sentences.append(f"{percent(same)} of the new tokens are right.".capitalize())
    return " ".join(sentences)


def of_loop(calls: list[Answer], right: list[Answer]) -> str:
    """The difference between what a wrong loop records and what the right one does, without clipping and with it."""
    for begin, made, asked in zip(("The", "With clipping, the"), calls, right, strict=True):
        if isinstance(made, Raised):
            return f"It raises {made.error}: {short(made.text, 90).rstrip('.')}."
        losses, norms, true, size = (one.tensors[name] for one in (made, asked) for name in ("losses", "norms"))
        if len(losses) != len(true):
            return f"There are {len(losses)} losses where {len(true)} are asked for."
        wrong = [n for n in range(len(true)) if not close(losses[n], true[n])]
        if wrong:
            where = f"{begin} loss differs from step {wrong[0] + 1} on"
            return f"{where}: {losses[-1]:.2f} after {len(losses)} steps where {true[-1]:.2f} is right."
        if not close(norms, size):
            first = next(n for n in range(len(size)) if not close(norms[n], size[n]))
            words = f"{norms[first]:.2g} at step {first + 1} where {size[first]:.2g} is right"
            return f"{begin} losses are right, the norms are not: {words}."
    return "Losses and norms hardly differ in these steps."


def of_loops() -> dict[str, str]:
    """The symptoms of the wrong loops of the tests."""
    sys.path.insert(0, str(ROOT / "tests"))
    from grade_solutions import BASE, TRAIN, edited, transcript
    from grade_tables import LOOPS

    def calls_of(source: str) -> list[Answer]:
        found = transcript(BASE, ("train",), train=source)
        return [found.answers[one.name, "patched"][1][0] for one in laws.settings_of("train")]

    right = calls_of(TRAIN)
    return {name: of_loop(calls_of(edited(TRAIN, (old, new))), right) for name, old, new in LOOPS}


def measure(part: str, mistake: Mistake, gradient: bool = False) -> str:
    """The symptom of a mistake in a part of the model."""
    of = {"loss": of_loss, "generate": of_generation}.get(part, of_model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (of_gradient if gradient else of)(part, mistake)


def main() -> None:
    """Write the file."""
    torch.set_num_threads(1)
    found: dict[str, dict[str, str]] = {}
    for part, listed in MISTAKES.items():
        found[part] = {one.name: measure(part, one) for one in listed}
        found[part] |= {one.name: measure(part, one, gradient=True) for one in GRADIENTS.get(part, ())}
    found["loop"] = of_loops()
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(FILE.relative_to(ROOT))


if __name__ == "__main__":
    main()
