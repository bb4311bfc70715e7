"""What a checkpoint tells of the run, the text and the machine it was made with, compared with what is here."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hectogpt import errors, hardware
from hectogpt.errors import UserError
from hectogpt.serialization import diff
from hectogpt.train.run import Run, load_run

PACKAGE = Path(__file__).resolve().parents[1]
COMPUTES = ("data", "model", "train")  # the layers whose code decides what a step computes
# Parts of a batch, which change no more than the last bits.
PARTS = ("leaves", "micro_batch")
# A checkpoint serves a run that differs in these: in its length, its machine, its parts, its name, its text's name.
NOT_STATE = {"steps", "device", "dtype", "head_dtype", "threads", "corpus", "recipe", "on_spike"}
NOT_STATE |= {f"data.{name}" for name in PARTS}


@cache
def code_hash() -> str:
    """The hash of the code that decides what a step computes, as it was when this process first asked."""
    return hardware.code_hash([PACKAGE / layer for layer in COMPUTES])


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of the facts of a checkpoint is not as it is now, so that bits may differ; in words."""
    before, here = ({**facts.get("machine", {}), **_parts(facts)} for facts in (then, now))
    names = [*here, *(name for name in before if name == "sharing" and name not in here)]
    return [f"{name} {before.get(name)} -> {here.get(name)}" for name in names if here.get(name) != before.get(name)]


def _parts(facts: Mapping[str, Any]) -> dict[str, Any]:
    data = facts.get("run", {}).get("data", {})
    return {name: data.get(name) for name in PARTS}


def check_same(step: int, run: Run, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse the checkpoint of another run (CHECKPOINT) or of another text (DATA)."""
    changed = diff(load_run(then.get("run")), run)
    if other := [path for path in changed if path.split(".")[0] not in NOT_STATE and path not in NOT_STATE]:
        raise UserError(
            f"the checkpoint of step {step} is another run's",
            why=f"{other[0]} differs",
            kept="the run, untouched",
            code=errors.CHECKPOINT,
        )
    for name in ("corpus_sha256", "tokenizer_sha256"):
        if then.get(name) != now[name]:
            raise UserError(
                f"the text is not the one that the run has read so far (corpus {now['corpus']})",
                why=f"{name} was {_short(then.get(name))}, now it is {_short(now[name])}",
                fix="the old text, or a new run",
                kept="the run, untouched",
                code=errors.DATA,
            )


def _short(hashes: Any) -> str:
    """The beginning of a hash, or of that of the training text."""
    return str(hashes.get("train") if isinstance(hashes, dict) else hashes)[:12]
