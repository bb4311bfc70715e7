"""Attention and order: attention alone does not see it, a causal mask reveals some of it, sinusoids add it.

Pure functions of sizes and seeds, in float64 except where rounding to float32 or bfloat16 is the question. The
package's own Transformer is measured with random weights; nothing is trained here.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import sici

from hectogpt.model.attention import CausalAttention
from hectogpt.model.config import ModelConfig
from hectogpt.model.parts import NoPositions
from hectogpt.model.transformer import DecoderBlock, Transformer

Array = np.ndarray
BASE = 10000.0


# 2(a). Permutation


class BlockWeights(NamedTuple):
    """Weights of the question's block. Every matrix multiplies from the right; biases are rows."""

    W_q: Array
    W_k: Array
    W_v: Array
    W_1: Array
    b_1: Array
    W_2: Array
    b_2: Array


def draw_block(d: int, hidden: int, *, seed: int = 0) -> BlockWeights:
    """Normal weights of variance 2/fan-in: attention is then peaked, and biases matter."""
    rng = np.random.default_rng(seed)
    shapes = [(d, d)] * 3 + [(d, hidden), (1, hidden), (hidden, d), (1, d)]
    return BlockWeights(*(rng.standard_normal(s) * math.sqrt(2 / max(s[0], 2)) for s in shapes))


def self_attention_block(X: Float[Array, "T d"], w: BlockWeights, *, causal: bool = False) -> Float[Array, "T d"]:
    """H = softmax(Q K^T / sqrt(d)) V with Q = X W_q and so on; Z = ReLU(H W_1 + 1 b_1) W_2 + 1 b_2."""
    scores = (X @ w.W_q) @ (X @ w.W_k).T / math.sqrt(X.shape[1])
    if causal:
        scores = np.where(np.tri(len(X), dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    H = weights / weights.sum(axis=1, keepdims=True) @ (X @ w.W_v)
    return np.maximum(H @ w.W_1 + w.b_1, 0) @ w.W_2 + w.b_2


def equivariance_gap(T: int, d: int, *, causal: bool = False, positions: bool = False, seed: int = 0) -> float:
    """max |Z(P X) - P Z(X)| for one random X, P and block: 0 if and only if the block does not see order.

    positions: sinusoids are added to the rows of X after permuting, as a model adds them.
    """
    rng = np.random.default_rng(seed)
    X, order = rng.standard_normal((T, d)), draw_derangement(T, rng)
    phi = sinusoids(T, d) if positions else np.zeros((T, d))
    w = draw_block(d, 4 * d, seed=seed + 1)
    of_permuted = self_attention_block(X[order] + phi, w, causal=causal)
    return float(np.abs(of_permuted - self_attention_block(X + phi, w, causal=causal)[order]).max())


def draw_derangement(T: int, rng: np.random.Generator) -> Int[Array, " {T}"]:
    """A random cyclic permutation: no element stays in its place."""
    cycle = rng.permutation(T)
    order = np.empty(T, dtype=np.int64)
    order[cycle] = np.roll(cycle, -1)
    return order


def build_model_without_positions(
    layers: int, d: int, *, heads: int, vocab: int, causal: bool, seed: int = 0
) -> Transformer:
    """The package's own model in float64, without positions, with random weights; with a full mask unless `causal`.

    Weights have standard deviation 1/sqrt(d); norms and biases are random too, so that no part is near the identity.
    """
    config = ModelConfig(d, heads, layers, 1, vocab, positions=NoPositions())
    model = Transformer(config).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(noise / math.sqrt(d) if p.ndim == 2 else noise * 0.3 + float("norm.weight" in name))
        model.embeddings.weight.mul_(math.sqrt(d))
    for module in model.modules():
        if isinstance(module, CausalAttention):
            module.causal = causal
    return model


@torch.no_grad()
def decoder_equivariance_gap(layers: int, T: int, *, causal: bool, d: int = 32, seed: int = 0) -> float:
    """max |logits(P tokens) - P logits(tokens)| of the package's Transformer without positions."""
    rng = np.random.default_rng(seed)
    model = build_model_without_positions(layers, d, heads=4, vocab=64, causal=causal, seed=seed)
    ids, order = torch.from_numpy(rng.permutation(64)[:T])[None], torch.from_numpy(draw_derangement(T, rng))
    return float((model(ids[:, order]) - model(ids)[:, order]).abs().max())


@torch.no_grad()
def last_token_gap(layers: int, T: int, *, d: int = 32, seed: int = 0) -> float:
    """The largest change of the last token's logits if earlier tokens are permuted; causal mask, no positions.

    One layer sees them as a multiset: the change is 0. With more layers it is not, since every earlier row has
    attended to a different prefix.
    """
    rng = np.random.default_rng(seed)
    model = build_model_without_positions(layers, d, heads=4, vocab=64, causal=True, seed=seed)
    ids = torch.from_numpy(rng.permutation(64)[:T])[None]
    order = torch.from_numpy(np.append(draw_derangement(T - 1, rng), T - 1))
    return float((model(ids[:, order])[:, -1] - model(ids)[:, -1]).abs().max())


class Probe(NamedTuple):
    """Held-out R^2 of predicting ln(1 + t) from the hidden state at t, with the targets and the predictions."""

    r2: float
    target: Array
    prediction: Array


@torch.no_grad()
def probe_positions(
    *, causal: bool, layers: int = 2, T: int = 64, texts: int = 192, d: int = 32, seed: int = 0
) -> Probe:
    """How well a token's position can be predicted from an untrained model without position embeddings.

    Tokens are uniform random, so no input holds the position. A ridge regression on the last hidden state and its
    squares (a mean of t values has a variance of order 1/t) is fitted on half of the texts and tested on the rest.
    """
    rng = np.random.default_rng(seed)
    model = build_model_without_positions(layers, d, heads=4, vocab=64, causal=causal, seed=seed)
    ids = torch.from_numpy(rng.integers(64, size=(texts, T)))
    x = model.embeddings(ids)
    blocks = [block for block in model.backbone if isinstance(block, DecoderBlock)]
    view = blocks[0].attention.view(torch.arange(T)[None])
    for block in blocks:
        x = block(x, view)
    h = x.numpy().reshape(texts * T, d)
    features = np.column_stack([np.ones(len(h)), h, h * h])
    target = np.tile(np.log1p(np.arange(T)), texts)
    cut = texts // 2 * T
    scale = features[:cut].std(axis=0) + (features[:cut].std(axis=0) == 0)
    A, y = features[:cut] / scale, target[:cut]
    solution = np.linalg.solve(A.T @ A + np.eye(A.shape[1]), A.T @ y)
    prediction, held_out = (features[cut:] / scale) @ solution, target[cut:]
    r2 = float(1 - np.square(held_out - prediction).mean() / held_out.var())
    return Probe(r2, held_out, prediction)


# 2(b). Sinusoids


def frequencies(d: int) -> Float[Array, " pairs"]:
    """BASE^(-2i/d) for i = 0 .. d/2 - 1 (arXiv 1706.03762, section 3.5)."""
    return BASE ** (-np.arange(0, d, 2) / d)


def sinusoids(T: int, d: int) -> Float[Array, "{T} {d}"]:
    """The matrix Phi[t, 2i] = sin(t / BASE^(2i/d)), Phi[t, 2i+1] = cos(t / BASE^(2i/d))."""
    return sinusoids_at(np.arange(T), d)


def sinusoids_at(t: Int[Array, " rows"], d: int) -> Float[Array, "rows {d}"]:
    """The rows of Phi at any integer positions, negative ones included."""
    angle = t[:, None] * frequencies(d)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(len(t), d)


def rotation(s: int, d: int) -> Float[Array, "{d} {d}"]:
    """The matrix R(s) with Phi(t + s) = R(s) Phi(t) for every t: a rotation by -s omega_i in each (sin, cos) plane."""
    R = np.zeros((d, d))
    angle = s * frequencies(d)
    even = np.arange(0, d, 2)
    R[even, even] = R[even + 1, even + 1] = np.cos(angle)
    R[even, even + 1], R[even + 1, even] = np.sin(angle), -np.sin(angle)
    return R


def similarity(distance: Int[Array, " n"], d: int) -> Float[Array, " n"]:
    """Phi(t) . Phi(t + distance) = sum_i cos(omega_i distance), the same for every t; d/2 at distance 0."""
    return np.cos(distance[:, None] * frequencies(d)).sum(axis=1)


def similarity_limit(distance: Float[Array, " n"]) -> Float[Array, " n"]:
    """similarity / (d/2) for d -> infinity: int_0^1 cos(s BASE^-u) du = (Ci(s) - Ci(s / BASE)) / ln(BASE), s > 0."""
    return (sici(distance)[1] - sici(distance / BASE)[1]) / math.log(BASE)


def embedding_distance(apart: Int[Array, " n"], d: int) -> Float[Array, " n"]:
    """|Phi(t) - Phi(t + apart)| = sqrt(sum_i 4 sin^2(omega_i apart / 2)), the same for every t."""
    half = np.zeros(len(apart))
    for frequency in frequencies(d):  # one at a time: no d x T array for T = 10^6 and d = 512
        half += np.square(np.sin(apart * (frequency / 2)))
    return 2 * np.sqrt(half)


class NearestPair(NamedTuple):
    """The closest two rows in float32, `s` < `t`, with their distance; `exact` is their distance before rounding.

    `ties`: how many pairs are equally far apart before rounding. Distance depends on t - s only, so all T - (t - s)
    pairs with that separation tie, and rounding decides between them.
    """

    s: int
    t: int
    distance: float
    exact: float
    ties: int


def find_nearest_pair(T: int, d: int) -> NearestPair:
    """The closest two of T embeddings (exact sines rounded to float32), found without comparing all pairs.

    Before rounding, a distance depends on t - s only: there are T - 1 distances, not T (T - 1) / 2. Rounding
    changes a coordinate by at most 2^-25, so a distance by at most 2 sqrt(d) 2^-25. Only separations within twice
    that of the smallest can be nearest; for these, all pairs of float32 rows are compared.
    """
    gap = embedding_distance(np.arange(1, T), d)
    slack = 4 * math.sqrt(d) * 2.0**-25
    best = NearestPair(0, 0, math.inf, math.inf, 0)
    for apart in (np.flatnonzero(gap <= gap.min() + slack) + 1).tolist():
        for start in range(0, T - apart, 1 << 14):
            stop = min(start + (1 << 14), T - apart)
            near, far = _round_rows(start, stop, apart, d)
            squares = np.square(far - near).sum(axis=1)
            if squares.min() < best.distance**2:
                s = int(start + squares.argmin())
                best = NearestPair(s, s + apart, math.sqrt(squares.min()), float(gap[apart - 1]), T - apart)
    return best


def _round_rows(start: int, stop: int, apart: int, d: int) -> tuple[Array, Array]:
    """Rows start .. stop and the rows `apart` later, rounded to float32; overlapping rows are computed once."""
    if apart < stop - start:
        rows = sinusoids_at(np.arange(start, stop + apart), d).astype(np.float32).astype(np.float64)
        return rows[: stop - start], rows[apart:]
    halves = (sinusoids_at(np.arange(a, a + stop - start), d) for a in (start, start + apart))
    near, far = (half.astype(np.float32).astype(np.float64) for half in halves)
    return near, far


def find_first_repeat(T: int, d: int, dtype: torch.dtype) -> tuple[int, int] | None:
    """The first two of T positions whose rows are equal after rounding to `dtype`, or None."""
    rows = torch.from_numpy(sinusoids(T, d)).to(dtype).float().numpy()
    seen: dict[bytes, int] = {}
    for t, row in enumerate(rows):
        key = (row + 0.0).tobytes()  # -0 and 0 are the same number
        if key in seen:
            return seen[key], t
        seen[key] = t
    return None


def single_precision_error(T: int, d: int) -> float:
    """max |error| below position T of sinusoids whose angles are computed in float32 too, as is common.

    A frequency has a relative error of about 2^-24, which grows with the angle to about T 2^-24 for the fast pairs.
    """
    t = np.unique(np.linspace(0, T - 1, 4096).astype(np.int64))
    frequency = np.exp(np.arange(0, d, 2, dtype=np.float32) * np.float32(-math.log(BASE) / d))
    angle = t.astype(np.float32)[:, None] * frequency
    single = np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(len(t), d)
    return float(np.abs(single - sinusoids_at(t, d)).max())


def average_outputs(sentences: Sequence[str], *, positions: bool, d: int = 16, seed: int = 0) -> Float[Array, "n {d}"]:
    """The mean output of the question's block for each sentence; words are random vectors."""
    words = sorted({w for s in sentences for w in s.split()})
    table = np.random.default_rng(seed).standard_normal((len(words), d))
    w = draw_block(d, 4 * d, seed=seed + 1)
    means = []
    for sentence in sentences:
        X = table[[words.index(word) for word in sentence.split()]]
        means.append(self_attention_block(X + sinusoids(len(X), d) if positions else X, w).mean(axis=0))
    return np.array(means)
