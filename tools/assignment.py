"""The expected values of the assignment's tests, computed by the textbook: python -m tools.assignment.

Writes assignment/tests/expected.json. tests/commands/test_assignment.py computes them again and compares.
Weights and inputs are drawn once, on a fixed stream, and rounded, so that the file is short and can be read.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from tools import ROOT

TESTS = ROOT / "assignment" / "tests"
EXPECTED = TESTS / "expected.json"
CONFIG = {"d_model": 15, "n_heads": 3, "n_layers": 2, "context_length": 10, "vocab_size": 13}
NO_TOKENS: Any = {"bos_token_id": None, "eos_token_id": None}
CONVERTED = GPT2Config(n_embd=4, n_head=2, n_layer=12, n_positions=3, vocab_size=5, **NO_TOKENS)
MARGIN = 0.01  # between the best and the second best token, at every token that is generated


# --- drawn ------------------------------------------------------------------------------------------------------------


def draw(random: np.random.RandomState, *shape: int, std: float = 1.0, mean: float = 0.0) -> list[Any]:
    """Normally distributed numbers, rounded to two decimals."""
    return (np.round(mean + std * random.standard_normal(shape), 2) + 0.0).tolist()


def draw_weights(random: np.random.RandomState) -> dict[str, Any]:
    """Weights by name, such that attention is peaked, and gains and biases matter."""
    d, vocab, context = CONFIG["d_model"], CONFIG["vocab_size"], CONFIG["context_length"]
    drawn: dict[str, Any] = {
        "embeddings.weight": draw(random, vocab, d),
        "position_embeddings.weight": draw(random, context, d, std=0.7),
        "final_layer_norm.weight": draw(random, d, std=0.4, mean=1),
        "final_layer_norm.bias": draw(random, d, std=0.4),
        "lm_head.weight": draw(random, vocab, d, std=0.8),
    }
    for layer in range(CONFIG["n_layers"]):
        for name, rows, columns, std in (
            ("attention.W_k", d, d, 0.55),
            ("attention.W_q", d, d, 0.55),
            ("attention.W_v", d, d, 0.4),
            ("attention.W_o", d, d, 0.4),
            ("mlp.fc1", 4 * d, d, 0.4),
            ("mlp.fc2", d, 4 * d, 0.4),
        ):
            drawn[f"backbone.{layer}.{name}.weight"] = draw(random, rows, columns, std=std)
            drawn[f"backbone.{layer}.{name}.bias"] = draw(random, rows, std=0.4)
        for name in ("pre_layer_norm", "post_layer_norm"):
            drawn[f"backbone.{layer}.{name}.weight"] = draw(random, d, std=0.4, mean=1)
            drawn[f"backbone.{layer}.{name}.bias"] = draw(random, d, std=0.4)
    return drawn


def draw_inputs(random: np.random.RandomState) -> dict[str, dict[str, Any]]:
    """The tests' inputs by part."""
    d, vocab, context = CONFIG["d_model"], CONFIG["vocab_size"], CONFIG["context_length"]
    small = [draw(random, context, d), draw(random, context, d), draw(random, context, d, std=0.05)]

    def ids(rows: int, columns: int) -> list[Any]:
        return random.randint(0, vocab, (rows, columns)).tolist()

    return {
        "gelu": {"x": np.round(np.linspace(-6, 6, 49), 2).reshape(7, 7).tolist()},
        "mlp": {"x": draw(random, 2, context, d)},
        "attention": {"x": draw(random, 2, context, d)},
        "block": {"x": small},  # the last row is small enough for a norm's epsilon to matter
        "forward": {"ids": ids(3, context)},
        "generate": {"prompt": [[1, 7, 3, 12], [1, 7, 3, 11], [9, 0, 5, 5]], "short": [[3], [8]]},
        "loss": {"ids": ids(3, 8)},
        "together": {"ids": ids(2, context), "prompt": [[4, 10, 2], [6, 1, 2]]},
        "converter": {"theirs": number_theirs()},
    }


def number_theirs() -> dict[str, Any]:
    """Two layers of a small GPT-2 under Hugging Face's names, with numbers that all differ."""
    start, numbered = 0, {}
    for name, tensor in GPT2LMHeadModel(CONVERTED).state_dict().items():
        if ".h." not in name or name.split(".")[2] in ("0", "11"):
            numbered[name] = torch.arange(start, start + tensor.numel()).view(tensor.shape).tolist()
            start += tensor.numel()
    return numbered


# --- computed by the textbook -----------------------------------------------------------------------------------------


def compute(reference: Path = ROOT / "reference") -> dict[str, Any]:
    """The contents of expected.json. Imports files of the textbook and of the tests by their bare names.

    Raises AssertionError if a generated token is chosen by less than MARGIN.
    """
    for folder in (TESTS, reference):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    torch.set_num_threads(1)
    random = np.random.RandomState(224)
    expected: dict[str, Any] = {"config": CONFIG, "weights": draw_weights(random), **draw_inputs(random)}
    if not EXPECTED.exists():
        EXPECTED.write_text("{}", encoding="utf-8")  # checking reads it
    import checking

    checking.EXPECTED = expected
    for part, values in computed(checking).items():
        expected[part] |= {name: plain(value) for name, value in values.items()}
    return expected


def computed(checking: Any) -> dict[str, dict[str, Any]]:
    """The expected results by part."""
    from model_solution import GELU
    from utils import state_dict_converter

    value = checking.value
    model, whole = checking.make_model_with_logits()[0], checking.make_transformer()
    ids = value("loss", "ids")
    loss = model.get_loss_on_batch(ids)
    loss.backward()
    tokens, margin = generate(model, value("generate", "prompt"), 14)
    short, short_margin = generate(model, value("generate", "short"), 5)
    together, together_margin = generate(whole, value("together", "prompt"), 14)
    assert min(margin, short_margin, together_margin) > MARGIN, (margin, short_margin, together_margin)
    theirs = {name: torch.tensor(numbers) for name, numbers in checking.EXPECTED["converter"]["theirs"].items()}
    return {
        "gelu": {"y": GELU()(value("gelu", "x"))},
        "mlp": {"y": checking.make_mlp()(value("mlp", "x")), "y_of_large": checking.make_mlp()(8 * value("mlp", "x"))},
        "attention": {"y": checking.make_attention()(value("attention", "x"))},
        "block": {"y": checking.make_block()(value("block", "x"))},
        "forward": {
            "logits": checking.make_forward()(value("forward", "ids")),
            "logits_of_small": checking.make_small()(value("forward", "ids")),
        },
        "generate": {"tokens": tokens, "short": short},
        "loss": {
            "loss": loss,
            "gradient": model.lm_head.weight.grad[0, 0],
            "loss_of_two_tokens": model.get_loss_on_batch(ids[:1, :2]),
            "loss_of_five_tokens": model.get_loss_on_batch(ids[1:, :5]),
        },
        "together": {
            "logits": whole(value("together", "ids")),
            "loss": whole.get_loss_on_batch(value("together", "ids")),
            "tokens": together,
        },
        "converter": {"ours": {name: tensor.tolist() for name, tensor in state_dict_converter(theirs).items()}},
    }


def generate(model: Any, prompt: Tensor, new: int) -> tuple[Tensor, float]:
    """The textbook's continuation, and the smallest margin of a chosen token over the next best."""
    margins: list[float] = []
    forward = model.forward

    def watched(x: Tensor) -> Tensor:
        logits = forward(x)
        best = logits[:, -1].topk(2).values
        margins.append((best[:, 0] - best[:, 1]).min().item())
        return logits

    model.forward = watched
    tokens = model.generate(prompt, new)
    model.forward = forward
    return tokens, min(margins)


def plain(value: Any) -> Any:
    """Numbers for JSON, with ten digits after the point: far more than the tests compare."""
    if isinstance(value, Tensor):
        value = value.detach()
        return value.tolist() if not value.is_floating_point() else (np.round(value.numpy(), 10) + 0.0).tolist()
    return value


def written(value: Any, indent: int = 0) -> str:
    """JSON in which each row of numbers is a line."""
    if isinstance(value, dict):
        items = [f"{json.dumps(name)}: {written(item, indent + 1)}" for name, item in value.items()]
    elif isinstance(value, list) and value and isinstance(value[0], list):
        items = [written(item, indent + 1) for item in value]
    else:
        return json.dumps(value)
    margin, (first, last) = "\n" + " " * (indent + 1), "{}" if isinstance(value, dict) else "[]"
    return f"{first}{margin}{f',{margin}'.join(items)}{margin[:-1]}{last}"


def main() -> None:
    """Write the file."""
    os.environ["TQDM_DISABLE"] = "1"
    EXPECTED.write_text(written(compute()) + "\n", encoding="utf-8")
    print(EXPECTED.relative_to(ROOT))


if __name__ == "__main__":
    main()
