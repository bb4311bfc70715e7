"""What a checkpoint, or another process, tells of its run, text and machine, compared with what is here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hectogpt import errors, hardware
from hectogpt.errors import UserError
from hectogpt.serialization import diff
from hectogpt.training.run import Run, load_run

PACKAGE = Path(__file__).resolve().parents[1]
COMPUTES = ("data", "kernels", "model", "training")  # the layers whose code decides what a step computes
# Parts of a batch, which change no more than the last bits.
PARTS = ("leaves", "micro_batch")
# A checkpoint serves a run that differs in these: in its length, its machine, its parts, its name, its text's name.
NOT_STATE = {"steps", "device", "dtype", "head_dtype", "threads", "corpus", "recipe", "on_spike"}
NOT_STATE |= {f"data.{name}" for name in PARTS}


@cache
def code_hash() -> str:
    """The hash of the code that decides what a step computes, as it was when this process first asked."""
    return hardware.code_hash([PACKAGE / layer for layer in COMPUTES])


def file_hashes() -> dict[str, str]:
    """The beginning of the SHA-256 of each file of that code, by its path in the package."""
    files = [path for layer in COMPUTES for path in hardware.code_files(PACKAGE / layer)]
    return {p.relative_to(PACKAGE).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()[:12] for p in files}


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of the facts of a checkpoint is not as it is now, so that bits may differ; in words."""
    before, here = ({**facts.get("machine", {}), **_parts(facts)} for facts in (then, now))
    names = [*here, *(name for name in before if name == "sharing" and name not in here)]
    return [f"{name} {before.get(name)} -> {here.get(name)}" for name in names if here.get(name) != before.get(name)]


def _parts(facts: Mapping[str, Any]) -> dict[str, Any]:
    data = facts.get("run", {}).get("data", {})
    return {name: data.get(name) for name in PARTS}


def check_same(step: int, run: Run, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse the checkpoint of another run (CHECKPOINT) or of another text (DATA). A run may have more steps than its
    checkpoint says if that is its last one: it is being extended."""
    before = load_run(then.get("run"))
    if before.steps != run.steps and not step == before.steps < run.steps:
        raise UserError(
            f"the checkpoint of step {step} is of a run of {before.steps} steps",
            why=f"steps = {run.steps}, and learning rates depend on it",
            fix=f"set steps in run.json to {before.steps}, or go on from the checkpoint of another step",
            kept="the run, untouched",
            code=errors.CHECKPOINT,
        )
    changed = diff(before, run)
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


# --- processes of one run ---------------------------------------------------------------------------------------------


class DisagreementError(UserError):
    """The processes of a run do not have the same run. All of them raise it."""


def describe_odd(name: str, odd: list[int], told: dict[int, str]) -> DisagreementError:
    """The error that names who differs in what. told: the value of one usual rank and of the first odd one."""
    (usual, one), (other, two) = ((rank, json.loads(text)) for rank, text in told.items())
    differing = list(_differences(one, two, ""))
    shown = [f"{p or name}: {_brief(a)} at rank {usual}, {_brief(b)} at rank {other}" for p, a, b in differing[:3]]
    shown += [f"and {len(differing) - 3} more"] if len(differing) > 3 else []
    ranks = f"rank {odd[0]}" if len(odd) == 1 else f"ranks {', '.join(map(str, odd))}"
    return DisagreementError(
        f"{ranks} differ{'s' if len(odd) == 1 else ''} from rank {usual} in the {name}",
        why="; ".join(shown),
        fix="the same installation, command, files and threads for all processes",
        kept="nothing was written",
    )


def _differences(one: Any, two: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, dict) and isinstance(two, dict):
        for name in sorted(one.keys() | two.keys()):
            yield from _differences(one.get(name), two.get(name), f"{path}.{name}" if path else name)
    elif one != two:
        yield path, one, two


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
    return text[:12] if len(text) == 64 else text[:60]
