"""Every recipe by name: the rungs of the ladder, whole or without one, and those beside it.

A recipe named after a change on the ladder is the ladder up to and including it; the others stand alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hectogpt.errors import UserError
from hectogpt.lab.ladder import (
    DEFAULT,
    LADDER,
    Recipe,
    baseline,
    change_adamw,
    decay,
    depth,
    learning_rate,
    plateau,
    rotary,
    soap_before_muon,
    wide,
    width,
)
from hectogpt.model import Init
from hectogpt.model.inputs import EmbeddingNorm
from hectogpt.model.parts import NoPositions, ReLU2, RMSNorm, Rotary, Sinusoidal
from hectogpt.train.counts import BigramStart
from hectogpt.train.optim import AdamW, Muon, Optim, Rates, SOAPMuon
from hectogpt.train.run import Data, Run
from hectogpt.train.schedules import Linear
from hectogpt.values import did_you_mean


def first(run: Run) -> Run:
    """AdamW at a real rate with warm-up and decay to zero, d 128, 3 layers, and nothing else."""
    run = replace(decay(run), optim=AdamW(lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0))
    return replace(run, model=replace(run.model, d_model=128, n_heads=4))


def learned_positions(run: Run) -> Run:
    """For answers/positions.md: 2 layers of d 128 on 16 windows of 128, in an early form of the ladder."""
    for change in (decay, rms_norm, unigram_bias):
        run = change(run)
    rates = Rates(embedding=0.2, table=0.1, head=0.01, head_bias=0.2, scalar=0.03)
    return replace(
        run,
        model=replace(run.model, d_model=128, n_heads=2, n_layers=2),
        init=Init(embedding=1.0, linear=0.05, residual=0.0, head=0.0),
        data=Data(batch_size=16, window=128),
        optim=AdamW(lr=0.01, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, rates=rates),
    )


def sinusoidal_positions(run: Run) -> Run:
    """The same with sinusoids added to the embedding."""
    run = learned_positions(run)
    return replace(run, model=replace(run.model, positions=Sinusoidal()))


def rotary_positions(run: Run) -> Run:
    """The same with rotary positions in every head and nothing added."""
    run = learned_positions(run)
    return replace(run, model=replace(run.model, positions=NoPositions(), heads=(Rotary(),)))


def no_positions(run: Run) -> Run:
    """The same without positions: order comes from the causal mask alone."""
    run = learned_positions(run)
    return replace(run, model=replace(run.model, positions=NoPositions()))


# --- ideas that gained nothing at the top (results/LOG.md has the numbers), used by recipes below ---------------------


def zero_start(run: Run) -> Run:
    """Embeddings of unit variance; the projections into the residual stream start at zero.

    Nothing has to be unlearned: before the first step the network is embedding, norm and head, a log-bilinear bigram,
    which learns at once what random deeper layers would only disturb.
    """
    return replace(run, init=Init(embedding=1.0, linear=0.05, residual=0.0, head=0.0))


def rms_norm(run: Run) -> Run:
    """Norms without mean, gain or bias, one right after the embedding, and linear maps without biases."""
    inputs = (EmbeddingNorm(), *run.model.inputs)
    return replace(run, model=replace(run.model, norm=RMSNorm(eps=1e-6), inputs=inputs, biases=False))


def relu2(run: Run) -> Run:
    """The squared rectifier in the MLP."""
    return replace(run, model=replace(run.model, activation=ReLU2()))


def unigram_bias(run: Run) -> Run:
    """A learned bias per token in the head, at a high rate: the frequencies of words in thirty steps."""
    return replace(run, model=replace(run.model, head=replace(run.model.head, bias=True)))


# --- beside the ladder ------------------------------------------------------------------------------------------------


def _plateau(run: Run) -> Run:
    for change in LADDER[: LADDER.index(plateau) + 1]:
        run = change(run)
    return run


def counts(run: Run) -> Run:
    """The ladder up to `plateau`, started from the bigrams that it is going to read, its layers from zero (track
    closed+statistics)."""
    return replace(zero_start(unigram_bias(_plateau(run))), statistics=BigramStart())


def soap(run: Run) -> Run:
    """The ladder up to `plateau` with SOAP before Muon's orthogonalisation, the first part of `rare`."""
    return soap_before_muon(_plateau(run))


def one_pass(run: Run) -> Run:
    """The ladder up to `plateau` with six layers, rates that fall from the start, and 19 windows a step, which read a
    million tokens just once (track open-cpu)."""
    run = decay(_plateau(run))
    return replace(run, model=replace(run.model, n_layers=6), data=Data(batch_size=19, window=512))


def large_batch(run: Run) -> Run:
    """The ladder up to `plateau` on 32 windows a step, which read a million tokens 1.6 times (track open-cpu)."""
    return replace(_plateau(run), data=Data(batch_size=32, window=512))


def adamw_gpt2(run: Run) -> Run:
    """GPT-2 itself at the top's size, d 256, 4 layers, with AdamW at 1e-3, the best of 5e-4, 1e-3, 2e-3 and 5e-3 on
    dev, warm-up and decay to zero."""
    run = change_adamw(decay(learning_rate(run)), lambda adamw: replace(adamw, lr=1e-3))
    return replace(run, model=replace(run.model, d_model=256, n_heads=4, n_layers=4))


def _speedrun(run: Run, optim: Optim) -> Run:
    """The architecture that the public speed records share, at the top's size: RMS norms and no biases, one norm
    after the embedding, half-truncated rotary positions and QK-norm, relu^2, logits capped at 15, head and projections
    from zero."""
    for change in (zero_start, width, wide, depth, rms_norm, rotary, relu2):
        run = change(run)
    model = replace(run.model, head=replace(run.model.head, soft_cap=15.0))
    return replace(run, model=model, optim=optim, schedule=Linear(hold=0.4))


def _speedrun_rates(embedding: float, head: float, scalar: float) -> AdamW:
    rates = Rates(embedding=embedding, head=head, scalar=scalar)
    return AdamW(lr=0.01, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, rates=rates)


def modded_nanogpt(run: Run) -> Run:
    """Muon and AdamW with the rates of modded-nanogpt's optimizer track: embedding .7, head .004, matrices .025."""
    rest = _speedrun_rates(0.7, 0.004, 0.015)
    return _speedrun(run, Muon(lr=0.025, momentum=0.95, momentum_start=0.85, momentum_steps=50, rest=rest))


def nanochat(run: Run) -> Run:
    """Muon and AdamW with nanochat's rates, scaled by its own rules to d 256 and 8,192 tokens a step."""
    return _speedrun(run, Muon(lr=0.0025, momentum=0.95, rest=_speedrun_rates(0.065, 0.0017, 0.06)))


def soap_muon(run: Run) -> Run:
    """modded_nanogpt with SOAP before Muon's orthogonalisation, the fastest at 125 steps on its optimizer track."""
    rest = _speedrun_rates(0.7, 0.004, 0.015)
    return _speedrun(run, SOAPMuon(lr=0.025, momentum=0.95, momentum_start=0.85, momentum_steps=50, rest=rest))


OTHERS: tuple[Recipe, ...] = (
    counts,
    soap,
    one_pass,
    large_batch,
    adamw_gpt2,
    modded_nanogpt,
    nanochat,
    soap_muon,
    first,
    learned_positions,
    sinusoidal_positions,
    rotary_positions,
    no_positions,
)


def compound(changes: Iterable[Recipe], name: str) -> Run:
    """The baseline with the changes applied in order. Its numbers are pinned to float32; from the first change on the
    machine chooses."""
    run = baseline()
    for change in changes:
        run = change(run)
    return replace(run, recipe=name, dtype="auto", head_dtype="auto")


def rung(n: int) -> Run:
    """The ladder's first n changes; rung(0) is the baseline."""
    return compound(LADDER[:n], LADDER[n - 1].__name__) if n else recipe("baseline")


def without(name: str, top: str = DEFAULT) -> Run:
    """The ladder up to `top` but for one change. Raises UserError for a name that is not on it."""
    known = [change.__name__ for change in LADDER]
    if top in known:
        known = known[: known.index(top) + 1]
    for wanted in (top, name):
        if wanted not in known:
            raise UserError(
                f"{wanted!r} is not on the ladder", why=f"it has {', '.join(known)}", fix=did_you_mean(wanted, known)
            )
    changes = LADDER[: len(known)]
    return compound((change for change in changes if change.__name__ != name), f"without-{name}")


def recipe(name: str) -> Run:
    """The Run of a named recipe; `top` is the ladder's last rung. Raises UserError with the nearest name for one that
    does not exist."""
    if name == "top":
        name = DEFAULT
    if name == "baseline":
        # float32 throughout, so that its losses and gradient norms are the textbook's to 1e-4 at every step.
        return replace(baseline(), dtype="float32", head_dtype="float32")
    for n, change in enumerate(LADDER, start=1):
        if change.__name__ == name:
            return rung(n)
    for change in OTHERS:
        if change.__name__ == name:
            return compound((change,), name)
    raise UserError(f"unknown recipe {name!r}", why=f"recipes: {', '.join(names())}", fix=did_you_mean(name, names()))


def names() -> list[str]:
    """Every recipe's name, the baseline first, the ladder in order, then the others."""
    return ["baseline", *(change.__name__ for change in (*LADDER, *OTHERS))]


def describe(name: str) -> str:
    """What a recipe does, or, for one on the ladder, what it adds to the one before: one sentence or two."""
    return _paragraphs(name)[0]


def explain(name: str) -> str:
    """Why it should help, as far as the recipe says; may be empty."""
    return "\n\n".join(_paragraphs(name)[1:])


def _paragraphs(name: str) -> list[str]:
    functions = {change.__name__: change for change in (*LADDER, *OTHERS)} | {"baseline": baseline}
    return [" ".join(paragraph.split()) for paragraph in (functions[name].__doc__ or "").split("\n\n")]
