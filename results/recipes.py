"""Recipes of records here that the package does not have: `hectogpt train results/recipes.py:nanochat@baseline`.

Each was measured on the ladder of its day; LADDER.md has the numbers, LOG.md what they mean.
"""

from __future__ import annotations

from dataclasses import replace

from hectogpt import (
    AdamW,
    Data,
    EmbeddingNorm,
    Init,
    LinearDecay,
    Muon,
    NoPositions,
    Optim,
    PerKind,
    ReLU2,
    RMSNorm,
    Rotary,
    Run,
    SinusoidalPositions,
    SOAPMuon,
)
from hectogpt.lab.ladder import (
    LADDER,
    apply,
    layers_4,
    linear_decay,
    lower_lr_long_hold,
    own_document,
    rotary,
    soap_before_muon,
    width_128_shared_row,
    width_256,
)

# Their first weights came from counts of the text, which the package had up to commit 55c4b35e.
INEXPRESSIBLE = {
    "counts": "The ladder up to `lower_lr_long_hold`. Embeddings, head and head bias start from counts of the bigrams "
    "that the run is going to read, the layers from zero (track closed+statistics, no longer in the package).",
}


def learned_positions(run: Run) -> Run:
    """For answers/positions.md: a learned position table; 2 layers of d_model = 128, batches of 16
    rows of 128 tokens."""
    run = apply(run, linear_decay, _rms_norm, _unigram_bias)
    lrs = PerKind(embedding=0.2, table=0.1, head=0.01, head_bias=0.2, scalar=0.03)
    return replace(
        run,
        model=replace(run.model, d_model=128, n_heads=2, n_layers=2),
        init=Init(embedding=1.0, linear=0.05, residual=0.0, head=0.0),
        data=Data(batch_size=16, seq_len=128),
        optim=AdamW(lr=0.01, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, lrs=lrs),
    )


def sinusoidal_positions(run: Run) -> Run:
    """As learned_positions, with sinusoids added to the embeddings instead of the table."""
    run = learned_positions(run)
    return replace(run, model=replace(run.model, positions=SinusoidalPositions()))


def rotary_positions(run: Run) -> Run:
    """As learned_positions, with rotary positions in every head instead of the table."""
    run = learned_positions(run)
    return replace(run, model=replace(run.model, positions=NoPositions(), attention_parts=(Rotary(),)))


def no_positions(run: Run) -> Run:
    """As learned_positions, without positions: order comes from the causal mask alone."""
    run = learned_positions(run)
    return replace(run, model=replace(run.model, positions=NoPositions()))


# --- parts of the following


def _zero_start(run: Run) -> Run:
    """Embeddings of unit variance; the projections into the residual stream start at zero.

    Before the first step the network is embedding, norm and head, which is a bigram model. It
    learns at once, and random deeper layers would only disturb it."""
    return replace(run, init=Init(embedding=1.0, linear=0.05, residual=0.0, head=0.0))


def _rms_norm(run: Run) -> Run:
    """Norms without mean, gain or bias, one of them right after the embedding, and linear maps
    without biases.
    """
    inputs = (EmbeddingNorm(), *run.model.inputs)
    return replace(run, model=replace(run.model, norm=RMSNorm(eps=1e-6), inputs=inputs, biases=False))


def _relu2(run: Run) -> Run:
    """The squared rectifier in the MLP."""
    return replace(run, model=replace(run.model, activation=ReLU2()))


def _unigram_bias(run: Run) -> Run:
    """A learned bias per token in the head: it can learn the tokens' frequencies in a few
    steps.
    """
    return replace(run, model=replace(run.model, lm_head=replace(run.model.lm_head, bias=True)))


def _ladder_of_the_day(run: Run) -> Run:
    return apply(run, *LADDER[: LADDER.index(lower_lr_long_hold) + 1])


def soap(run: Run) -> Run:
    """The ladder up to `lower_lr_long_hold` with SOAP before Muon, which is the first part of
    `soap_rare_tokens`.
    """
    return soap_before_muon(_ladder_of_the_day(run))


def one_pass(run: Run) -> Run:
    """The ladder up to `lower_lr_long_hold` with six layers, learning rates that fall from the
    start, and 19 rows a step, which read a million tokens once (track open-cpu)."""
    run = linear_decay(_ladder_of_the_day(run))
    return replace(run, model=replace(run.model, n_layers=6), data=Data(batch_size=19, seq_len=512))


def large_batch(run: Run) -> Run:
    """The ladder up to `own_document` with six layers and 32 rows a step, which read a million
    tokens 1.6 times (track open-cpu).
    """
    run = apply(run, *LADDER[: LADDER.index(own_document) + 1])
    return replace(run, model=replace(run.model, n_layers=6), data=Data(batch_size=32, seq_len=512))


def _speedrun(run: Run, optim: Optim) -> Run:
    """The architecture that the public speed records share, at the size of `soap_rare_tokens`,
    with a shared row for tokens that are not read: RMS norms and no biases, one norm after the
    embedding, rotary positions on half of each head, QK-norm, squared ReLU, logits capped at 15,
    head and projections from zero."""
    run = apply(run, _zero_start, width_128_shared_row, width_256, layers_4, _rms_norm, rotary, _relu2)
    model = replace(run.model, lm_head=replace(run.model.lm_head, soft_cap=15.0))
    return replace(run, model=model, optim=optim, schedule=LinearDecay(hold=0.4))


def _speedrun_adamw(embedding: float, head: float, scalar: float) -> AdamW:
    lrs = PerKind(embedding=embedding, head=head, scalar=scalar)
    return AdamW(lr=0.01, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, lrs=lrs)


def modded_nanogpt(run: Run) -> Run:
    """Muon and AdamW with the learning rates of modded-nanogpt's optimizer track: embedding 0.7,
    head 0.004, matrices 0.025."""
    rest = _speedrun_adamw(0.7, 0.004, 0.015)
    return _speedrun(run, Muon(lr=0.025, momentum=0.95, momentum_start=0.85, momentum_steps=50, rest=rest))


def nanochat(run: Run) -> Run:
    """Muon and AdamW with nanochat's learning rates, scaled by its own rules to d_model = 256 and
    8,192 tokens a step."""
    return _speedrun(run, Muon(lr=0.0025, momentum=0.95, rest=_speedrun_adamw(0.065, 0.0017, 0.06)))


def soap_muon(run: Run) -> Run:
    """Like modded_nanogpt, but with SOAP before Muon: of the optimizers on its track, the one with
    the lowest loss at step 125."""
    rest = _speedrun_adamw(0.7, 0.004, 0.015)
    return _speedrun(run, SOAPMuon(lr=0.025, momentum=0.95, momentum_start=0.85, momentum_steps=50, rest=rest))


RECIPES = (
    learned_positions,
    sinusoidal_positions,
    rotary_positions,
    no_positions,
    soap,
    one_pass,
    large_batch,
    modded_nanogpt,
    nanochat,
    soap_muon,
)
