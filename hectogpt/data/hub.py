"""Whether the Hugging Face hub answers. Its library tries again and again, for minutes where nobody answers."""

from __future__ import annotations

import threading

TIMEOUT = 2.0  # seconds to wait for the hub's first answer


def check_hub_answers(kind: str, name: str, reached: bool = False) -> None:
    """Ask for a repository of "models" or "datasets". Raises OSError if nothing comes within TIMEOUT; reached: also if
    the hub cannot be reached at all, which its library finds soon.

    Looking up an address has no limit of time, so the question is asked from a thread that may be left behind.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE and not reached:  # the user's own wish: what is on this machine will do
        return
    faults: list[Exception] = []

    def ask() -> None:
        try:
            get_session().head(f"{constants.ENDPOINT}/api/{kind}/{name}", timeout=TIMEOUT)
        except Exception as error:  # of whatever library the hub's uses
            faults.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if thread.is_alive() or any("timeout" in type(fault).__name__.lower() for fault in faults):
        raise OSError(f"{constants.ENDPOINT} has not answered within {TIMEOUT:g} s")
    if faults and reached:
        raise OSError(f"{constants.ENDPOINT} cannot be reached: {faults[0]}")
