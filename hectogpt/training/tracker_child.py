"""The child of a tracker: reads what happens in a run, a line of JSON each, and tells one library of it.

It knows neither torch nor the run's classes. Whatever the library prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from hectogpt import process

NICE = 10


class TensorBoard:
    """Event files in RUN/tensorboard."""

    def begin(self, run: dict[str, Any]) -> str:
        """Open a new event file; returns how to look at it."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = Path(run["folder"]) / "tensorboard"
        if run["group"]:
            folder = Path(run["folder"]) / run["group"] / re.sub(r'[\x00-\x1f\\/:*?"<>|]', "_", run["name"]).strip(". ")
        self.writer = EventFileWriter(str(folder), flush_secs=2)
        log = SessionLog(status=SessionLog.START)  # rows of later steps that an earlier process has told of are void
        self.writer.add_event(Event(step=run["step"] + 1, session_log=log))
        self._add(
            0,
            _tensorboard_text(
                "run", "    " + json.dumps(run["fields"], indent=2, allow_nan=False).replace("\n", "\n    ")
            ),
        )
        return f"tensorboard --logdir {Path(run['folder'])}"

    def row(self, step: int, values: dict[str, float]) -> None:
        """One scalar a column."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        found = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step, Summary(value=found))

    def picture(self, name: str, path: Path, step: int) -> None:
        """An encoded PNG with its size."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        content = path.read_bytes()
        width, height = struct.unpack(">II", content[16:24])
        image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=content)
        self._add(step, Summary(value=[Summary.Value(tag=name, image=image)]))

    def finish(self) -> None:
        """Close the file."""
        self.writer.close()

    def _add(self, step: int, summary: Any) -> None:
        import time

        from tensorboard.compat.proto.event_pb2 import Event

        self.writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))


def _tensorboard_text(name: str, markdown: str) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype=DT_STRING, string_val=[markdown.encode()], tensor_shape=shape)
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return Summary(value=[Summary.Value(tag=name, metadata=metadata, tensor=tensor)])


class Wandb:
    """Weights & Biases. Without a key, and unless WANDB_MODE says otherwise, a run stays on this machine."""

    def begin(self, run: dict[str, Any]) -> str:
        """Begin or resume a run; returns its address, or how to send it."""
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.wandb = wandb
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")
        options: dict[str, Any] = {"id": run["id"], "group": run["group"] or None, "dir": run["folder"], "mode": mode}
        self.run = wandb.init(project=run["project"], name=run["name"], config=run["fields"], resume="allow", **options)
        return self.run.url or f"wandb sync {Path(self.run.dir).parent}"

    def row(self, step: int, values: dict[str, float]) -> None:
        """A row."""
        self.run.log(values, step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """A PNG."""
        self.run.log({name: self.wandb.Image(str(path))}, step=step)

    def finish(self) -> None:
        """Wait until all is written."""
        self.run.finish()


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    with suppress(OSError, RuntimeError):
        return "api.wandb.ai" in (Path.home() / ".netrc").read_text(encoding="utf-8", errors="replace")
    return False


class Trackio:
    """Trackio, which keeps runs in a database on this machine."""

    def begin(self, run: dict[str, Any]) -> str:
        """Begin or resume a run; returns how to look at it."""
        import trackio

        self.trackio = trackio
        options: dict[str, Any] = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False, "resume": "allow"}
        name = f"{run['name']} {run['id']}"
        trackio.init(run["project"], name=name, group=run["group"] or None, config=_flat(run["fields"]), **options)
        return "trackio show"

    def row(self, step: int, values: dict[str, float]) -> None:
        """A row."""
        self.trackio.log(values, step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """A PNG."""
        self.trackio.log({name: self.trackio.Image(str(path), caption=name)}, step=step)

    def finish(self) -> None:
        """Wait until all is written."""
        self.trackio.finish()


def _flat(fields: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Nested fields with dotted names."""
    found: dict[str, Any] = {}
    for key, value in fields.items():
        name = f"{where}.{key}" if where else key.lstrip("_")
        found |= _flat(value, name) if isinstance(value, dict) else {name: value}
    return found


TRACKERS = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": Wandb}


def messages() -> Iterator[dict[str, Any]]:
    """What the parent sends, until it says that this is the end."""
    while True:
        for line in process.request().splitlines():
            message = json.loads(line)
            if message.get("end"):
                return
            yield message


def main() -> None:
    """Pass on each message; ends by itself once all is written."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    if hasattr(os, "nice"):
        with suppress(OSError):
            os.nice(NICE)
    tracker: Any = None
    begun = False
    for message in messages():
        if "tracker" in message:
            tracker = TRACKERS[message["tracker"]]()
        elif "begin" in message:
            if begun:
                tracker.finish()
            begun = True
            print(json.dumps({"link": tracker.begin(message["begin"])}, allow_nan=False), file=answers, flush=True)
        elif "row" in message:
            values = dict(message["row"])
            step = int(values.pop("step"))
            tracker.row(step, {name: float(value) for name, value in values.items() if name not in ("seed",)})
        elif "picture" in message:
            picture = message["picture"]
            tracker.picture(picture["name"], Path(picture["path"]), picture["step"])
    if begun:
        tracker.finish()


if __name__ == "__main__":
    main()
