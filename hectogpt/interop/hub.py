"""A model's folder from the Hugging Face hub, or from the hub's cache on this machine."""

from __future__ import annotations

import threading
from pathlib import Path

from hectogpt import errors
from hectogpt.data.names import HUB_NAME
from hectogpt.errors import UserError
from hectogpt.interop.weight_files import INDEX, PICKLE, PICKLE_INDEX, SAFETENSORS

FILES = ("config.json", SAFETENSORS, "vocab.json", "merges.txt", "tokenizer.json")
SHARDS = (INDEX, "model-*-of-*.safetensors")
OTHERS = (PICKLE, PICKLE_INDEX, "pytorch_model-*-of-*.bin")  # where a model has no safetensors
CARD = ("README.md",)  # says whose the weights are, which an export passes on
TIMEOUT = 3.0  # seconds to wait for the hub's first answer


def fetch(name: str) -> Path:
    """The folder of the hub's model `name`. Nothing is downloaded if this machine's cache has it.

    Raises UserError (USAGE) for what cannot be a name, and within seconds UserError (CHECKPOINT) if the hub does
    not answer; both say which files to copy by hand.
    """
    by_hand = f"copy {', '.join(FILES[:4])} into a folder and name that folder"
    if not HUB_NAME.match(name):
        raise UserError(f"no folder {name[:200]!r}", why="and it cannot be a name on the hub", fix=by_hand)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise UserError(
            f"no folder {name[:200]!r}",
            why="to look for it on the hub, the package huggingface_hub is needed",
            fix=f"python -m pip install 'hectogpt[hf]', or {by_hand}",
        ) from None
    patterns = [*FILES, *SHARDS, *CARD]
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*patterns, *OTHERS], local_files_only=True))
        if any((folder / file).exists() for file in (SAFETENSORS, INDEX, PICKLE, PICKLE_INDEX)):
            return folder
    except LocalEntryNotFoundError:
        pass
    try:
        _ask(name)
        folder = Path(snapshot_download(name, allow_patterns=patterns, etag_timeout=TIMEOUT))
        if not any((folder / file).exists() for file in (SAFETENSORS, INDEX)):
            folder = Path(snapshot_download(name, allow_patterns=[*patterns, *OTHERS], etag_timeout=TIMEOUT))
        return folder
    except (HfHubHTTPError, OSError, ValueError) as error:  # LocalEntryNotFoundError is one of them
        raise UserError(
            f"{name!r} is neither a folder here nor a model that the hub gave",
            why=(str(error).strip() or type(error).__name__).splitlines()[0][:200],
            fix=by_hand,
            code=errors.CHECKPOINT,
        ) from None


def _ask(name: str) -> None:
    """Find out whether the hub answers at all. Its library tries again and again, and looking up a name has no limit of
    time, so the question is asked from a thread that may be left behind. Raises OSError."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    faults: list[Exception] = []

    def ask() -> None:
        try:
            get_session().head(f"{constants.ENDPOINT}/api/models/{name}", timeout=TIMEOUT)
        except Exception as error:  # of whatever library the hub's uses
            faults.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if thread.is_alive():
        raise OSError(f"{constants.ENDPOINT} has not answered within {TIMEOUT:.0f} s")
    if faults:
        raise OSError(f"{constants.ENDPOINT} cannot be reached: {faults[0]}")
