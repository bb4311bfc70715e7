"""What Python users call beside a run: trained models that are opened, that continue a text, and are looked into."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from hectogpt.data import Tokenizer
from hectogpt.errors import UserError
from hectogpt.explore.model_view import read_prompt, trace
from hectogpt.generation import Sampling, complete
from hectogpt.interop import open_model
from hectogpt.model.transformer import Transformer
from hectogpt.serialization import did_you_mean
from hectogpt.training.evaluate import evaluating
from hectogpt.training.session import RunResult

Source = RunResult | Path | str | tuple[Transformer, Tokenizer]
TEMPERATURE = 0.8  # of the draws, if none is named: small models repeat themselves where the likeliest token is taken


def load(source: Source, idea: Path | str | Sequence[Path | str] = ()) -> tuple[Transformer, Tokenizer]:
    """A model, on the CPU and in evaluation mode, and its tokenizer.

    source: a folder that a run left, a folder in Hugging Face's GPT-2 layout, a name on the hub ("gpt2"), or a
    RunResult, whose own model this is. idea: your own file (or several) whose classes the model has; it is imported. A
    file that you ran here and that has not changed since need not be named.

    Raises UserError (CHECKPOINT) for what is no model, and for a file that would have to be imported unasked.
    """
    if isinstance(source, RunResult):
        return source.model, source.tokenizer
    if isinstance(source, tuple):
        return source
    model, tokenizer = open_model(source, download=isinstance(source, str), idea=idea)
    return model, tokenizer


def generate(
    source: Source, prompt: str = "", *, max_new_tokens: int = 100, seed: int = 0, greedy: bool = False, **options: Any
) -> str:
    """The prompt and the model's continuation, as `hectogpt generate` writes them.

    source: a RunResult, a folder, a name on the hub, or what `load` returned. An empty prompt starts a new text.
    Tokens are drawn at a temperature of 0.8 among the 50 likeliest; greedy: the likeliest is taken. options: the other
    fields of Sampling (temperature, top_k, stop_strings, ...). The text ends before an end-of-text token, or before
    `eos_token_id` (-1: never).

    Raises UserError for an option that does not exist or does not fit.
    """
    model, tokenizer = load(source)
    sampling = _sampling({"do_sample": not greedy, "temperature": TEMPERATURE} | options, tokenizer.end_of_text)
    return prompt + complete(model, tokenizer, prompt, replace(sampling, max_new_tokens=max_new_tokens), seed=seed)


def _sampling(options: dict[str, Any], end_of_text: int) -> Sampling:
    known = [f.name for f in fields(Sampling) if f.name not in ("max_new_tokens", "num_return_sequences")]
    for name in options:
        if name not in known:
            raise UserError(
                f"generate has no option {name!r}", why=f"it has {', '.join(known)}", fix=did_you_mean(name, known)
            )
    eos = options.get("eos_token_id")
    eos = end_of_text if eos is None else eos
    options["eos_token_id"] = tuple(eos) if isinstance(eos, (tuple, list)) else (eos,) if eos >= 0 else ()
    options["stop_strings"] = _texts(options.get("stop_strings", ()))
    return Sampling(**options)


def _texts(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def attention_maps(source: Source, text: str) -> Float[np.ndarray, "layers heads time time"]:
    """The attention of every layer and head on a text: [layer, head, t, s] is the weight that token t gives to s.

    Rows sum to 1, and what lies in the future (s > t) is 0. Of a text longer than the context the end is taken.
    source: as for `generate`. Raises UserError for an empty text.
    """
    model, tokenizer = load(source)
    ids = read_prompt(text, tokenizer, model).ids
    if model.embeddings.weight.device.type != "cpu":
        model = copy.deepcopy(model).to(torch.device("cpu"))
    with evaluating(model):
        return trace(model, ids).maps
