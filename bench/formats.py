"""What smaller weights change in trained models, and how fast the ladder's top decodes beside a GPT-2 of its size.

Recipes are trained for some steps on the State of the Union. Top-1 is how often the likeliest next token is that of
float32, over held-out text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from bench.decode import decode_ours, random_prompts
from bench.race import race
from bench.record import Row
from hectogpt.data import open_corpus
from hectogpt.generation.quantize import WeightFormat, quantize
from hectogpt.lab import recipes
from hectogpt.model import ModelConfig, Transformer
from hectogpt.training.session import Session

ROUNDS = 5
PACKAGES = ()
FORMATS: tuple[WeightFormat, ...] = ("bfloat16", "int8")
USED = 26_046  # tokens of the vocabulary that occur in the State of the Union, for which the top's head has rows


class Setting(NamedTuple):
    """How long the recipes are trained, on how many tokens they are compared, and how many are decoded."""

    steps: int = 60
    held_out: int = 4096
    new: int = 24
    recipes: tuple[str, ...] = ("minute", "adamw_128")


SETTINGS = {"sotu": Setting(), "tiny": Setting(1, 64, 3, ("adamw_128",))}


def trained(recipe: str, steps: int) -> tuple[Transformer, Tensor]:
    """A recipe's model after some steps, and held-out text, [1, token]."""
    session = Session.open(replace(recipes.recipe(recipe), steps=steps), open_corpus("sotu"))
    for _ in session.steps():
        pass
    held_out = torch.from_numpy(session.corpus.dev[:].astype("int64"))
    return session.model.eval(), held_out[None]


@torch.no_grad()
def log_probabilities(model: Transformer, rows: Tensor) -> Tensor:
    """[row, token, vocab]: of the next token, after each but the last."""
    return torch.stack([model(row[None])[0, :-1].log_softmax(-1) for row in rows])


def quality(recipe: str, setting: Setting) -> list[Row]:
    """Top-1 agreement with float32, and perplexity over that of float32."""
    model, text = trained(recipe, setting.steps)
    length = min(model.config.context_length, setting.held_out)
    rows = text[0, : setting.held_out // length * length].view(-1, length)
    exact = log_probabilities(model, rows)
    loss = -exact.gather(2, rows[:, 1:, None]).mean().item()
    found: list[Row] = []
    for form in FORMATS:
        near = log_probabilities(quantize(model, form), rows)
        row: Row = {"contender": form, "top1_agreement": (near.argmax(-1) == exact.argmax(-1)).float().mean().item()}
        row["perplexity_ratio"] = math.exp(-near.gather(2, rows[:, 1:, None]).mean().item() - loss)
        found.append(row | {"float32_loss": loss, "tokens": float(exact.shape[0] * exact.shape[1])})
    return found


def top_and_gpt2() -> dict[str, Transformer]:
    """The ladder's top and a GPT-2 of its width, heads and layers, with first weights, in float32 and int8."""
    config = recipes.recipe("top").model
    top = Transformer(config)
    top.lm_head.compact(torch.arange(USED))
    sizes = (config.d_model, config.n_heads, config.n_layers, config.context_length, config.vocab_size)
    models = {"top": top.eval(), "gpt2": Transformer(ModelConfig(*sizes)).eval()}
    smaller = {f"{name} int8": quantize(model, "int8") for name, model in models.items()}
    return {f"{name} float32": quantize(model) for name, model in models.items()} | smaller


def measure(setting: str, rounds: int) -> Iterator[tuple[str, list[Row]]]:
    """The quality of every format, and the speeds of the top."""
    chosen = SETTINGS[setting]
    for recipe in chosen.recipes:
        yield f"quality_{recipe}", quality(recipe, chosen)
    models = top_and_gpt2()
    for batch in (1, 8):
        prompts = random_prompts(batch, 16)
        laps = race({name: decode_ours(m, prompts, chosen.new) for name, m in models.items()}, rounds)
        rows: list[Row] = []
        for name in laps.seconds:
            row: Row = {"contender": name, "tokens_per_s": round(batch * chosen.new / laps.median(name), 1)}
            rows.append(row | {"times_gpt2": round(laps.ratio("gpt2 " + name.split()[1], name), 3)})
        yield f"decode_top_batch_{batch}", rows
