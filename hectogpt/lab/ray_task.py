"""The task that Ray runs for a trial, on one of its machines: the trial in a process of its own, and how far it is.

Imports no torch: Ray's worker only waits for that process.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from hectogpt import __version__, hardware
from hectogpt.errors import UserError
from hectogpt.lab.trial_process import PACKAGE, ask

NEWS_SECONDS = 0.3  # between two messages of a trial: each costs Ray an object


def code_here() -> dict[str, str]:
    """Whose files a trial would run here, and what must be equal everywhere: their version and hash."""
    where = f"{socket.gethostname()}:{PACKAGE}"
    return {"where": where, "code": f"{__version__}, files {hardware.code_hash([PACKAGE])}"}


def do_trial(request: dict[str, Any], code: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The task, on Ray's side: {step, loss} now and then, at last the fields of the record."""
    here = code_here()
    if here["where"] != code["where"] and here["code"] != code["code"]:
        raise UserError(
            "another hectogpt is installed where Ray runs trials",
            why=f"there {here['code']}; here {code['code']}. Other code may compute other losses",
            fix="install the same version on every machine",
        )
    folder = request["scratch"] and Path(request["scratch"])
    if folder and not folder.with_suffix(".claim").exists():  # the comparison's folder is not shared with this machine
        request = request | {"scratch": None}
    posts: SimpleQueue[Any] = SimpleQueue()

    def run() -> None:
        try:
            posts.put(ask(request, lambda step, loss: posts.put((step, loss))))
        except Exception as error:
            posts.put(error)

    threading.Thread(target=run, daemon=True).start()
    told = 0.0
    while True:
        post = posts.get()
        if isinstance(post, Exception):
            raise post
        if isinstance(post, dict):
            yield post
            return
        if time.monotonic() - told > NEWS_SECONDS:
            told = time.monotonic()
            yield {"step": post[0], "loss": post[1]}
