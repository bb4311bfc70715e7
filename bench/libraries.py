"""GPT-2 as one would write it with other libraries, trained by their own AdamW: contenders of `bench.peers`.

Each is a function of a config and a dtype of products. It returns a step: ids [rows, tokens] -> the batch's loss. All
but Keras start from the same weights, so that their losses can be compared. Compilation happens in the first step.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from hectogpt.model import ModelConfig

Step = Callable[[np.ndarray], float]
LR = 1e-5
STD = 0.02


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of GPT-2's weights. Names of biases and norms begin with "b_" and "n_"."""
    d = config.d_model
    found: dict[str, tuple[int, ...]] = {"tokens": (config.vocab_size, d), "positions": (config.context_length, d)}
    for layer in range(config.n_layers):
        for name, size in {"qkv": (d, 3 * d), "out": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}.items():
            found |= {f"{name}{layer}": size, f"b_{name}{layer}": size[1:]}
        found |= {f"n_{name}{layer}": (2, d) for name in ("attention", "mlp")}
    found["n_final"] = (2, d)
    return found if config.lm_head.tied else found | {"head": (d, config.vocab_size)}


def drawn(config: ModelConfig) -> dict[str, np.ndarray]:
    """Initial weights: normal matrices, biases of 0, norms of gain 1 and bias 0."""
    draw = np.random.default_rng(0)
    found = {}
    for name, shape in shapes(config).items():
        weight = draw.normal(0, STD, shape) if name[:2] not in ("b_", "n_") else np.zeros(shape)
        if name.startswith("n_"):
            weight[0] = 1
        found[name] = weight.astype(np.float32)
    return found


def jax(config: ModelConfig, dtype: str) -> Step:
    """JAX with jit and optax."""
    import jax
    import jax.numpy as jnp
    import optax

    def norm(x: Any, weight: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight[0] + weight[1]

    def linear(w: Any, name: str, x: Any) -> Any:
        y = jnp.matmul(x.astype(dtype), w[name].astype(dtype), preferred_element_type=jnp.float32)
        return y + w[f"b_{name}"] if f"b_{name}" in w else y

    def loss_of(w: Any, ids: Any) -> Any:
        x = w["tokens"][ids[:, :-1]] + w["positions"][: ids.shape[1] - 1]
        for layer in range(config.n_layers):
            qkv = linear(w, f"qkv{layer}", norm(x, w[f"n_attention{layer}"])).astype(dtype)
            q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, config.n_heads, -1), 2, 0)
            attended = jax.nn.dot_product_attention(q, k, v, is_causal=True)
            x = x + linear(w, f"out{layer}", attended.reshape(x.shape))
            x = x + linear(w, f"down{layer}", jax.nn.gelu(linear(w, f"up{layer}", norm(x, w[f"n_mlp{layer}"]))))
        head = w | {"head": w["tokens"].T} if config.lm_head.tied else w
        logits = linear(head, "head", norm(x, w["n_final"]))
        return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(LR, weight_decay=0.01))

    def update(w: Any, state: Any, ids: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(w, ids)
        updates, state = optimizer.update(gradients, state, w)
        return optax.apply_updates(w, updates), state, loss

    compiled = jax.jit(update)
    weights = jax.tree.map(jnp.asarray, drawn(config))
    kept = [weights, optimizer.init(weights)]

    def step(ids: np.ndarray) -> float:
        *kept[:], loss = compiled(*kept, jnp.asarray(ids))
        return float(loss)

    return step


def mlx(config: ModelConfig, dtype: str) -> Step:
    """MLX, its CPU package, with mx.compile."""
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim

    mx.set_default_device(mx.cpu)
    kind = getattr(mx, dtype)

    def linear(w: Any, name: str, x: Any) -> Any:
        y = (x.astype(kind) @ w[name].astype(kind)).astype(mx.float32)
        return y + w[f"b_{name}"] if f"b_{name}" in w else y

    def norm(x: Any, weight: Any) -> Any:
        return mx.fast.layer_norm(x, weight[0], weight[1], 1e-5)

    def loss_of(w: Any, ids: Any) -> Any:
        x = w["tokens"][ids[:, :-1]] + w["positions"][: ids.shape[1] - 1]
        for layer in range(config.n_layers):
            qkv = linear(w, f"qkv{layer}", norm(x, w[f"n_attention{layer}"])).astype(kind)
            q, k, v = qkv.reshape(*x.shape[:2], 3, config.n_heads, -1).transpose(2, 0, 3, 1, 4)
            scale = 1 / math.sqrt(config.d_attention)
            attended = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal")
            x = x + linear(w, f"out{layer}", attended.transpose(0, 2, 1, 3).reshape(x.shape))
            x = x + linear(w, f"down{layer}", nn.gelu_approx(linear(w, f"up{layer}", norm(x, w[f"n_mlp{layer}"]))))
        head = w | {"head": w["tokens"].T} if config.lm_head.tied else w
        return nn.losses.cross_entropy(linear(head, "head", norm(x, w["n_final"])), ids[:, 1:], reduction="mean")

    weights = {name: mx.array(weight) for name, weight in drawn(config).items()}
    optimizer = optim.AdamW(LR, bias_correction=True)
    optimizer.init(weights)
    value_and_grad = mx.value_and_grad(loss_of)
    state = [weights, optimizer.state]

    def update(ids: Any) -> Any:
        loss, gradients = value_and_grad(weights, ids)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        weights.update(optimizer.apply_gradients(gradients, weights))
        return loss

    compiled = mx.compile(update, inputs=state, outputs=state)

    def step(ids: np.ndarray) -> float:
        loss = compiled(mx.array(ids))
        mx.eval(loss, state)
        return float(loss)

    return step


def tinygrad(config: ModelConfig, dtype: str) -> Step:
    """tinygrad on its CPU backend, with TinyJit."""
    os.environ.setdefault("DEV", "CPU")
    from tinygrad import Context, Tensor, TinyJit, dtypes
    from tinygrad.nn.optim import AdamW

    kind = getattr(dtypes, dtype)
    w = {name: Tensor(weight).contiguous() for name, weight in drawn(config).items()}
    optimizer = AdamW(list(w.values()), lr=LR)

    def linear(name: str, x: Tensor, weight: Tensor | None = None) -> Tensor:
        y = (x.cast(kind) @ (w[name] if weight is None else weight).cast(kind)).float()
        return y + w[f"b_{name}"] if f"b_{name}" in w else y

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x.layernorm(eps=1e-5) * weight[0] + weight[1]

    def loss_of(ids: Tensor) -> Tensor:
        x = w["tokens"][ids[:, :-1]] + w["positions"][: ids.shape[1] - 1]
        for layer in range(config.n_layers):
            qkv = linear(f"qkv{layer}", norm(x, w[f"n_attention{layer}"])).cast(kind)
            q, k, v = qkv.reshape(*x.shape[:2], 3, config.n_heads, -1).permute(2, 0, 3, 1, 4)
            attended = q.scaled_dot_product_attention(k, v, is_causal=True)
            x = x + linear(f"out{layer}", attended.transpose(1, 2).reshape(*x.shape))
            x = x + linear(f"down{layer}", linear(f"up{layer}", norm(x, w[f"n_mlp{layer}"])).gelu())
        head = w["tokens"].transpose() if config.lm_head.tied else w["head"]
        return linear("head", norm(x, w["n_final"]), head).sparse_categorical_crossentropy(ids[:, 1:])

    def update(ids: Tensor) -> Tensor:
        with Context(TRAINING=1):
            optimizer.zero_grad()
            loss = loss_of(ids).backward()
            squares = [(p.grad.float() ** 2).sum() for p in optimizer.params if p.grad is not None]
            factor = (1.0 / (sum(squares[1:], squares[0]).sqrt() + 1e-6)).clamp(max_=1.0)
            for p in optimizer.params:
                p.grad = p.grad * factor
            Tensor.realize(loss, *optimizer.schedule_step())
            return loss

    compiled = TinyJit(update)
    return lambda ids: float(compiled(Tensor(ids.astype(np.int32)).realize()).item())


def keras(config: ModelConfig, dtype: str) -> Step:
    """Keras on JAX, with its own layers and train_on_batch."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    from keras import layers, ops

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("mixed_bfloat16" if dtype == "bfloat16" else "float32")
    start = keras.initializers.RandomNormal(stddev=STD)
    tied = config.lm_head.tied
    table = (layers.ReversibleEmbedding if tied else layers.Embedding)(
        config.vocab_size, config.d_model, embeddings_initializer=start
    )
    ids = keras.Input((None,), dtype="int32")
    positions = layers.Embedding(config.context_length, config.d_model, embeddings_initializer=start)
    x = table(ids) + positions(ops.cumsum(ops.ones_like(ids), axis=1) - 1)
    for _ in range(config.n_layers):
        attention = layers.MultiHeadAttention(config.n_heads, config.d_attention, kernel_initializer=start)
        h = layers.LayerNormalization(epsilon=1e-5)(x)
        x = x + attention(h, h, use_causal_mask=True)
        h = layers.Dense(4 * config.d_model, "gelu", kernel_initializer=start)(
            layers.LayerNormalization(epsilon=1e-5)(x)
        )
        x = x + layers.Dense(config.d_model, kernel_initializer=start)(h)
    x = layers.LayerNormalization(epsilon=1e-5)(x)
    head = layers.Dense(config.vocab_size, use_bias=False, kernel_initializer=start)
    model = keras.Model(ids, table(x, reverse=True) if tied else head(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(LR, global_clipnorm=1.0), loss)
    return lambda batch: float(model.train_on_batch(batch[:, :-1], batch[:, 1:]))


LIBRARIES: dict[str, Callable[[ModelConfig, str], Step]] = {
    "jax": jax,
    "mlx": mlx,
    "tinygrad": tinygrad,
    "keras": keras,
}
