"""What trained models show: the page of one and its checkpoints, and a run's newest weights for
`hectogpt watch`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from hectogpt.data import Tokenizer, open_corpus
from hectogpt.data.corpus import beginning
from hectogpt.errors import UserError
from hectogpt.generation import Sampling, complete, model_view
from hectogpt.interop import open_model
from hectogpt.model.transformer import Transformer
from hectogpt.run_records import (
    CHECKPOINTS,
    SavedCheckpoints,
    count_of,
    read_record,
    read_summary,
    text_of,
)
from hectogpt.web.page import fill

LONGEST = 64  # tokens that the page shows maps of
NEW_TOKENS = 24  # that a look at a run writes
MOST_STEPS = 12  # checkpoints that the page has
# if nothing else is known
PROMPT = "The state of the Union is strong because the people of the Union are strong."
READ_TOKENS = 24  # of the held-out text, which a run's page reads or continues


def model_page(
    folder: Path | str,
    prompt: str | None,
    held_out: np.ndarray | str | None,
    ideas: Sequence[Path] = (),
    step: int | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> str:
    """Return the page as HTML.

    prompt: what the model reads; None for the beginning of the held-out text.
    held_out: text or token ids on which effects of heads are measured; None for the prompt.
    step, note: as for `open_model`. Without a step the page has the checkpoints of a run too, at
        most MOST_STEPS,
        behind a slider.

    Raises UserError for a bad folder or prompt, and for a file that is not in `ideas`.
    """
    end = newest_step(Path(folder)) if step is None else step
    kept = (
        [at for at in SavedCheckpoints(Path(folder, CHECKPOINTS)).steps() if at != end]
        if step is None
        else []
    )
    spaced = np.unique(np.linspace(0, len(kept) - 1, min(len(kept), MOST_STEPS)).astype(int))
    moments: list[dict[str, Any]] = []
    for at in [*(kept[i] for i in spaced), step]:
        model, tokenizer = open_model(folder, step=at, idea=ideas, note=note)
        if prompt is None and isinstance(held_out, np.ndarray):
            prompt = beginning(held_out, tokenizer, READ_TOKENS)
        prompt = prompt or own_prompt(Path(folder))
        ids = model_view.read_prompt(prompt, tokenizer, model, LONGEST)
        text = (
            tokenizer.encode(held_out)
            if isinstance(held_out, str)
            else ids
            if held_out is None
            else held_out
        )
        moments.append(
            moment(model, tokenizer, ids, text, last=at is step)
            | {"step": end if at is step else at}
        )
    config = model.config
    data: dict[str, Any] = {
        "name": str(folder) if step is None else f"{folder}, step {step}",
        "about": f"{config.n_layers} layers of {config.n_heads} heads, {config.d_model} "
        f"dimensions, context {config.context_length:,}, "
        f"{sum(p.numel() for p in model.parameters()):,} parameters.",
        "cut": len(tokenizer.encode(prompt or "")) - len(ids),
        "tokens": model_view.name_tokens(ids, tokenizer),
        "shape": [config.n_layers, config.n_heads, len(ids)],
        "moments": moments,
        "text": "the prompt" if held_out is None else "held-out text of the run's corpus",
    }
    return fill("model", data)


def moment(
    model: Transformer, tokenizer: Tokenizer, ids: np.ndarray, text: np.ndarray, last: bool
) -> dict[str, Any]:
    """What the page shows of a model at one step. last: with all effects, else only with those of
    heads set to zero.
    """
    seen = model_view.trace(model, ids)
    best = np.argsort(-seen.next_probabilities, kind="stable")[:10]  # ties in order of id
    names = model_view.name_tokens(best, tokenizer)
    return {
        "losses": [round(float(loss), 4) for loss in seen.losses],
        "maps": packed(seen.maps),
        "next": [
            [name, round(float(p), 5)]
            for name, p in zip(names, seen.next_probabilities[best], strict=True)
        ],
        "effects": model_view.effects(model, text, all_of_them=last),
    }


def newest_step(folder: Path) -> int | None:
    """The step of the newest weights in a run's folder; None if there are none yet."""
    steps = SavedCheckpoints(folder / CHECKPOINTS).steps()
    if (folder / "model.safetensors").is_file():
        with suppress(UserError):
            last = count_of(read_summary(folder).get("steps"))
            steps += [last] if last is not None else []
    return max(steps, default=None)


def own_prompt(folder: Path) -> str:
    """Return what a run's model continues: the prompt of its summary, or the first words of its
    held-out text if that is at hand."""
    with suppress(UserError):
        record = read_record(folder)
        if kept := text_of(record.summary.get("prompt")):
            return kept
        name = str(record.run.get("corpus"))
        if Path(name).exists():  # nothing is downloaded for it
            corpus = open_corpus(name, progress=False, check=False)
            return beginning(corpus.dev, corpus.tokenizer, READ_TOKENS)
    return PROMPT


def take_look(
    folder: Path, step: int, prompt: str | None, ideas: Sequence[Path]
) -> dict[str, Any]:
    """A continuation of the prompt and its attention maps, by the weights after `step`. Raises
    UserError, OSError.
    """
    model, tokenizer = open_model(folder, step=step, idea=ideas)
    text = prompt or own_prompt(folder)
    written = complete(
        model,
        tokenizer,
        text,
        Sampling(max_new_tokens=NEW_TOKENS, do_sample=True, temperature=0.8),
        seed=0,
    )
    ids = model_view.read_prompt(text + written, tokenizer, model, LONGEST // 2)
    maps = model_view.trace(model, ids).maps
    tokens = model_view.name_tokens(ids, tokenizer)
    return {
        "step": step,
        "text": text + written,
        "tokens": tokens,
        "maps": packed(maps),
        "shape": list(maps.shape[:3]),
    }


def packed(maps: np.ndarray) -> str:
    """Weights as unsigned 16-bit numbers in base64: 65,535 is 1."""
    return base64.b64encode(np.round(maps * 65535).astype("<u2").tobytes()).decode()
