"""What the newest weights of a run write and look at, for `hectogpt watch`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hectogpt.errors import UserError
from hectogpt.run_records import CHECKPOINTS, checkpoint_steps, count_of, read_summary
from hectogpt.web.model_page import PROMPT, packed

NEW_TOKENS = 24
LONGEST = 32  # tokens of the text whose maps are drawn


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
    from hectogpt.explore.model_view import name_tokens, read_prompt, trace
    from hectogpt.generation import Sampling, complete
    from hectogpt.interop.open import open_model

    model, tokenizer = open_model(folder, step=step, idea=ideas)
    text = prompt or PROMPT
    ids = read_prompt(text, tokenizer, model, LONGEST).ids
    maps = trace(model, ids).maps
    written = complete(
        model, tokenizer, text, Sampling(max_new_tokens=NEW_TOKENS, do_sample=True, temperature=0.8), seed=0
    )
    tokens = name_tokens(ids, tokenizer)
    return {"step": step, "text": text + written, "tokens": tokens, "maps": packed(maps), "shape": list(maps.shape[:3])}
