"""A child of hectogpt.process that does what its request says: `python -m child`, this folder on the path."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from hectogpt import process


def reply(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    what = request["do"]
    yield {"started": os.getpid()}
    if what == "echo":
        yield {"bytes": request}  # a name that the frame uses too
    elif what == "rubbish":  # past sys.stdout, as a library written in C does
        os.write(1, b"no JSON\n[1, 2]\n\xff\xfe\n")
        yield {"after": "rubbish"}
    elif what == "raise":
        raise ValueError("the child's own error")
    elif what == "nan":
        yield {"loss": float("nan")}
    elif what == "exit":
        sys.exit(7)
    elif what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "read":
        yield {"read": sys.stdin.read()}
    elif what == "hang":
        time.sleep(600)
    elif what == "leave a child":
        yield {"grandchild": subprocess.Popen(["sleep", "600"]).pid}
        time.sleep(600)


if __name__ == "__main__":
    process.answer(reply)
