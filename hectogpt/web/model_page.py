"""What trained models show: the page of one and its checkpoints, and a run's newest weights for `hectogpt watch`."""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hectogpt.data import Tokenizer
from hectogpt.errors import UserError
from hectogpt.explore import model_view
from hectogpt.explore.model_view import HeadName
from hectogpt.generation import Sampling, complete
from hectogpt.interop import open_model
from hectogpt.model.transformer import Transformer
from hectogpt.run_records import CHECKPOINTS, checkpoint_steps, count_of, read_summary
from hectogpt.web.page import fill

LONGEST = 64  # tokens that the page shows maps of
NEW_TOKENS = 24  # that a look at a run writes
WINDOWS, WINDOW = 8, 512  # of held-out text, on which effects of heads are measured
MOST_HEADS = 64  # of which effects are measured one by one
MOST_STEPS = 12  # checkpoints that the page has
PROMPT = "The state of the Union is strong because the people of the Union are strong."


def model_page(
    folder: Path | str,
    prompt: str,
    held_out: np.ndarray | None,
    ideas: Sequence[Path] = (),
    step: int | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> str:
    """The page as HTML. held_out: token ids on which effects of heads are measured; None: on the prompt. step, note: as
    for `open_model`. Without a step the page has the checkpoints of a run too, at most MOST_STEPS, behind a slider.

    Raises UserError for a bad folder or prompt, and for a file that is not in `ideas`.
    """
    end = newest_step(Path(folder)) if step is None else step
    kept = [at for at in checkpoint_steps(Path(folder, CHECKPOINTS)) if at != end] if step is None else []
    spaced = np.unique(np.linspace(0, len(kept) - 1, min(len(kept), MOST_STEPS)).astype(int))
    moments: list[dict[str, Any]] = []
    for at in [*(kept[i] for i in spaced), step]:
        model, tokenizer = open_model(folder, step=at, idea=ideas, note=note)
        read = model_view.read_prompt(prompt, tokenizer, model, LONGEST)
        text = read.ids if held_out is None else held_out
        moments.append(moment(model, tokenizer, read.ids, text, last=at is step) | {"step": end if at is step else at})
    config = model.config
    data: dict[str, Any] = {
        "name": str(folder) if step is None else f"{folder}, step {step}",
        "about": f"{config.n_layers} layers of {config.n_heads} heads, {config.d_model} dimensions, context "
        f"{config.context_length:,}, {sum(p.numel() for p in model.parameters()):,} parameters.",
        "cut": read.cut,
        "tokens": model_view.name_tokens(read.ids, tokenizer),
        "shape": [config.n_layers, config.n_heads, len(read.ids)],
        "moments": moments,
        "text": "the prompt" if held_out is None else "held-out text of the run's corpus",
    }
    return fill("model", data)


def moment(model: Transformer, tokenizer: Tokenizer, ids: np.ndarray, text: np.ndarray, last: bool) -> dict[str, Any]:
    """What the page shows of a model at one step. last: with all effects, else only with those of heads set to zero."""
    seen = model_view.trace(model, ids)
    best = model_view.most_likely_tokens(seen)
    return {
        "losses": [round(float(loss), 4) for loss in seen.losses],
        "maps": packed(seen.maps),
        "next": [[model_view.name_tokens(np.array([i]), tokenizer)[0], round(p, 5)] for i, p in best],
        "effects": effects(model, text, all_of_them=last),
    }


def newest_step(folder: Path) -> int | None:
    """The step of the newest weights in a run's folder; None if there are none yet."""
    steps = checkpoint_steps(folder / CHECKPOINTS)
    if (folder / "model.safetensors").is_file():
        with suppress(UserError):
            last = count_of(read_summary(folder).get("steps"))
            steps += [last] if last is not None else []
    return max(steps, default=None)


def take_look(folder: Path, step: int, prompt: str | None, ideas: Sequence[Path]) -> dict[str, Any]:
    """A continuation of the prompt and its attention maps, by the weights after `step`. Raises UserError, OSError."""
    model, tokenizer = open_model(folder, step=step, idea=ideas)
    text = prompt or PROMPT
    ids = model_view.read_prompt(text, tokenizer, model, LONGEST // 2).ids
    maps = model_view.trace(model, ids).maps
    written = complete(
        model, tokenizer, text, Sampling(max_new_tokens=NEW_TOKENS, do_sample=True, temperature=0.8), seed=0
    )
    tokens = model_view.name_tokens(ids, tokenizer)
    return {"step": step, "text": text + written, "tokens": tokens, "maps": packed(maps), "shape": list(maps.shape[:3])}


def packed(maps: np.ndarray) -> str:
    """Weights as unsigned 16-bit numbers in base64: 65,535 is 1."""
    return base64.b64encode(np.round(maps * 65535).astype("<u2").tobytes()).decode()


def effects(model: Transformer, tokens: np.ndarray, all_of_them: bool = True) -> list[dict[str, Any]]:
    """How much the loss rises without each head, and without each pair of the four heads that matter most; or only the
    first, with zeros in the head's place.

    A row has heads, mode ("zero" or "mean"), delta in nats per token, and se, its standard error over windows (nan for
    one window). [] for a model of more than MOST_HEADS heads, or for one token.
    """
    config = model.config
    heads = [(layer, head) for layer in range(config.n_layers) for head in range(config.n_heads)]
    if not 0 < len(heads) <= MOST_HEADS or len(tokens) < 2:
        return []
    windows = cut_windows(tokens.astype(np.int64), min(WINDOW, config.context_length))
    whole, means = measure(model, windows), mean_outputs(model, windows)
    modes = ("zero", "mean") if all_of_them else ("zero",)
    found = [difference([head], mode, model, windows, whole, means) for mode in modes for head in heads]
    if not all_of_them:
        return found
    best = sorted((row for row in found if row["mode"] == "zero"), key=lambda row: -row["delta"])[:4]
    first: list[HeadName] = [(row["heads"][0][0], row["heads"][0][1]) for row in best]
    pairs = [[a, b] for i, a in enumerate(first) for b in first[i + 1 :]]
    return found + [difference(pair, "zero", model, windows, whole, means) for pair in pairs]


def cut_windows(tokens: np.ndarray, length: int) -> list[Tensor]:
    """Up to WINDOWS rows of the text that do not overlap, each int64 [1, at most length + 1]."""
    starts = range(0, max(len(tokens) - 1, 1), length)
    rows = [torch.from_numpy(tokens[at : at + length + 1])[None] for at in starts]
    return [row for row in rows if row.shape[1] > 1][:WINDOWS]


@torch.no_grad()
def measure(model: Transformer, windows: list[Tensor]) -> np.ndarray:
    """The sum of the losses of each window, float64 [windows]."""
    return np.array([model.loss(row[:, :-1], row[:, 1:], reduction="sum").item() for row in windows])


@contextmanager
def hooked(model: Transformer, hook: Callable[[int, nn.Module, tuple[Tensor]], tuple[Tensor] | None]) -> Iterator[None]:
    """Within it, hook(layer, module, inputs) is called before each output projection and may replace its input."""
    modules = enumerate(model_view.attention_modules(model))
    handles = [module.W_o.register_forward_pre_hook(partial(hook, layer)) for layer, module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mean_outputs(model: Transformer, windows: list[Tensor]) -> Tensor:
    """For each layer, the mean over the windows' tokens of what enters the output projection, [layers, d_model]."""
    sums = torch.zeros(model.config.n_layers, model.config.d_model, dtype=torch.float64)

    def keep(layer: int, module: nn.Module, inputs: tuple[Tensor]) -> None:
        sums[layer] += inputs[0].double().sum(dim=(0, 1))

    with hooked(model, keep):
        measure(model, windows)
    return (sums / sum(row.shape[1] - 1 for row in windows)).float()


def difference(
    off: Collection[HeadName], mode: str, model: Transformer, windows: list[Tensor], whole: np.ndarray, means: Tensor
) -> dict[str, Any]:
    """The row of `effects` for heads that are off together."""
    d = model.config.d_attention

    def replace(layer: int, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        x = inputs[0].clone()
        for part in (slice(head * d, (head + 1) * d) for at, head in off if at == layer):
            x[..., part] = means[layer, part].to(x.dtype) if mode == "mean" else 0
        return (x,)

    with hooked(model, replace):
        sums = measure(model, windows) - whole
    sizes = np.array([row.shape[1] - 1 for row in windows])
    delta, n = sums.sum() / sizes.sum(), len(windows)
    spread = np.sqrt(((sums - delta * sizes) ** 2).sum() * n / (n - 1)) / sizes.sum() if n > 1 else None
    se = None if spread is None else float(spread)
    return {"heads": [list(head) for head in off], "mode": mode, "delta": float(delta), "se": se}
