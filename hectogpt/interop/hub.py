"""A model's folder from the Hugging Face hub, or from the hub's cache on this machine."""

from __future__ import annotations

from pathlib import Path

from hectogpt import errors
from hectogpt.data.hub import HUB_NAME, TIMEOUT, check_hub_answers
from hectogpt.errors import UserError
from hectogpt.interop.hf_weights import SAFETENSORS

FILES = ("config.json", SAFETENSORS, "vocab.json", "merges.txt", "tokenizer.json")
CARD = ("README.md",)  # says whose the weights are, which an export passes on


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
    patterns = [*FILES, *CARD]
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        if (folder / SAFETENSORS).exists():
            return folder
    except LocalEntryNotFoundError:
        pass
    try:
        check_hub_answers("models", name, reached=True)
        return Path(snapshot_download(name, allow_patterns=patterns, etag_timeout=TIMEOUT))
    except (HfHubHTTPError, OSError, ValueError) as error:  # LocalEntryNotFoundError is one of them
        raise UserError(
            f"{name!r} is neither a folder here nor a model that the hub gave",
            why=(str(error).strip() or type(error).__name__).splitlines()[0][:200],
            fix=by_hand,
            code=errors.CHECKPOINT,
        ) from None
