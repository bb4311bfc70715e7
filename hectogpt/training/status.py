"""status.json in a run's folder: what ended the last attempt of a run that several processes share.

It is there only after a failure, and goes when the run goes on. The folder tells everything else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hectogpt.errors import UserError
from hectogpt.files import write_atomic

STATUS = "status.json"


def write_status(folder: Path, failure: Mapping[str, Any], processes: int, attempt: int) -> None:
    """Write the first failure of an attempt: its rank (None: not known), its cause, and the step it happened in."""
    told = {"state": "failed", "processes": processes, "attempt": attempt, **failure}
    with suppress(OSError, UserError):  # the disk may be what has failed
        if folder.is_dir():
            write_atomic(folder / STATUS, json.dumps(told, indent=2, allow_nan=False) + "\n")


def clear_status(folder: Path) -> None:
    """Remove the failure of an earlier attempt."""
    with suppress(OSError):
        (folder / STATUS).unlink(missing_ok=True)
