"""Asks a trial's own process, `hectogpt.lab.trial`, for its result. Imports no torch: who asks only waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hectogpt import __version__, hardware, process

PACKAGE = Path(__file__).resolve().parents[1]


def ask(
    request: dict[str, Any],
    on_step: Callable[[int, float], None],
    environment: Mapping[str, str] | None = None,
    cancelled: threading.Event | None = None,
) -> dict[str, Any]:
    """Do a trial in a new process on this machine; the fields of its record that tell what came of it.

    on_step is called with (step, loss). environment, cancelled: as `process.ask` has them. Never raises for what goes
    wrong in the process: `status` is then "diverged", with the scores of a uniform guess, or "failed", without scores;
    `error` is the whole message. Raises process.CancelledError once `cancelled` is set.
    """
    result: dict[str, Any] = {}

    def receive(message: dict[str, Any]) -> None:
        if "step" in message:
            on_step(message["step"], message["loss"])
        else:
            result.update(message)

    outcome = process.ask("hectogpt.lab.trial", request, receive, environment=environment or {}, cancelled=cancelled)
    revision = hardware.revision(PACKAGE)
    origin = {"version": __version__, "commit": revision.commit, "dirty": revision.dirty}
    if outcome.error is None and result:
        return origin | result
    ended = f"the trial's process ended with {outcome.error or 'no result'}"
    return origin | {"status": "failed", "error": "\n".join(filter(None, [ended, outcome.last_words]))}
