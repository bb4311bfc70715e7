"""One training step against what people would pick on a CPU, each library in float32 and in bf16: best against best.

Besides the group `bench` it needs jax, optax, keras, tinygrad (which needs clang), mlx[cpu] and litgpt. (pip warns that
litgpt and transformers want different releases of huggingface-hub; both work.) Missing libraries have no row.

"first" is the first step of a contender, in which it is built and compiled; "step" is one of the later ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bench import step
from bench.libraries import LIBRARIES, drawn
from bench.race import Lap, Laps, Race, Row, timed
from hectogpt.model import ModelConfig, Transformer

PACKAGES = ("transformers", "x-transformers", "litgpt", "jax", "optax", "mlx", "keras", "tinygrad")
BF16 = " bf16"
COMPILED = " compiled"
OURS = ("ours fp32", "ours", "ours bf16")  # in float32; with the head in bf16 where that is quick; all in bf16
TORCH = ("huggingface", "x-transformers", "pytorch", "pytorch compiled", "litgpt")
# tinygrad writes C with a type for bf16 that only new compilers know.
THEIRS = (*(name + dtype for name in (*TORCH, "jax", "mlx", "keras") for dtype in ("", BF16)), "tinygrad")
SETTINGS = {name: step.SETTINGS[name] for name in ("assignment", "d256", "gpt2", "tiny")}


def litgpt(config: ModelConfig) -> tuple[nn.Module, step.Loss]:
    """litgpt's GPT with GPT-2's parts; it has no learned positions, so it rotates a quarter of each head."""
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    sizes: dict[str, Any] = {
        "n_embd": config.d_model,
        "n_head": config.n_heads,
        "n_layer": config.n_layers,
        "bias": True,
    }
    sizes |= {"block_size": config.context_length, "vocab_size": config.vocab_size, "norm_class_name": "LayerNorm"}
    model = GPT(Config(name="gpt2", padded_vocab_size=config.vocab_size, mlp_class_name="GptNeoxMLP", **sizes))
    if config.lm_head.tied:
        model.lm_head.weight = model.transformer.wte.weight
    return model, lambda ids: chunked_cross_entropy(model(ids[:, :-1]), ids[:, 1:], chunk_size=0)


def like_theirs(model: Transformer) -> None:
    """Load the weights that the other libraries start from, so that the first losses can be compared."""
    found = {name: torch.from_numpy(weight) for name, weight in drawn(model.config).items()}
    state = {"embeddings.weight": found["tokens"], "position_embeddings.weight": found["positions"]}
    for layer in range(model.config.n_layers):
        linear = dict(zip(("W_q", "W_k", "W_v"), found[f"qkv{layer}"].T.chunk(3), strict=True))
        linear = {f"attention.{name}": weight for name, weight in linear.items()}
        linear |= {"attention.W_o": found[f"out{layer}"].T, "mlp.fc1": found[f"up{layer}"].T}
        linear |= {"mlp.fc2": found[f"down{layer}"].T}
        for name, weight in linear.items():
            state[f"backbone.{layer}.{name}.weight"] = weight
    if not model.config.lm_head.tied:
        state["lm_head.weight"] = found["head"].T
    model.load_state_dict(state, strict=False)  # biases are 0 and norms 1 in both


def build(contender: str, config: ModelConfig) -> Callable[[Tensor], float]:
    """A contender's step."""
    name = contender.removesuffix(BF16)
    if name in LIBRARIES:
        theirs = LIBRARIES[name](config, "bfloat16" if contender.endswith(BF16) else "float32")
        return lambda ids: theirs(ids.numpy())
    trainer = step.Trainer(litgpt if name == "litgpt" else step.CONTENDERS[name.removesuffix(COMPILED)], config)
    if isinstance(trainer.model, Transformer):
        like_theirs(trainer.model)
    if name.endswith(COMPILED):
        trainer.loss = torch.compile(trainer.loss)

    def one(ids: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=contender.endswith(BF16)):
            loss = trainer.loss(ids)
        trainer.step_from(loss)
        return float(loss.detach())

    return one


def prepare(setting: str, contender: str, folder: str) -> dict[str, Lap]:
    """The first step of a batch, and a later one."""
    chosen = SETTINGS[setting]
    ids = chosen.batch()
    built: list[Callable[[Tensor], float]] = []

    def first() -> Row:
        begun = time.perf_counter()
        built.append(build(contender, chosen.config))
        loss = built[0](ids)
        seconds = time.perf_counter() - begun
        built[0](ids)  # some compile again, once the weights are results of a step
        return {"seconds": seconds, "first_seconds": round(seconds, 1), "first_loss": round(loss, 3)}

    return {"first": first, "step": timed(lambda: built[0](ids))}


def measure(setting: str, race: Race) -> Iterator[tuple[str, list[Row]]]:
    """Median seconds and ratios to ours, and the time and the loss of the first step.

    One library races at a time, in both dtypes, because all of them at once do not fit into 24 GB: the first against
    all of ours, the others against our quickest.
    """
    ours, rows = list(OURS), list[Row]()
    for library in dict.fromkeys(name.removesuffix(BF16) for name in THEIRS):
        if library.startswith(race.without):
            continue
        theirs = [name for name in THEIRS if name.removesuffix(BF16) == library]
        (laps,) = race.run(__name__, setting, [*ours, *theirs], warm_up=["first"])
        best = min((name for name in ours if name not in laps.lost), key=laps.median, default=ours[0])

        def figures(name: str, laps: Laps = laps, best: str = best) -> Row:
            row: Row = {"seconds": round(laps.median(name), 3)}
            if (ratio := laps.ratio(name, best)) is not None:
                row["this_over_our_best"] = ratio
            return row | {key: laps.facts[name][key] for key in ("first_seconds", "first_loss")}

        found = laps.rows(figures, setting=setting)
        rows += found[1:] if rows else found
        ours = [best]
    yield "training step, libraries", rows
