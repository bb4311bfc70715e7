"""`hectogpt yardstick TEXT`: the losses of counting models on a text, to judge a loss by."""

from __future__ import annotations

import math
from typing import Any

from hectogpt.cli.console import note, show
from hectogpt.cli.options import YardstickOptions
from hectogpt.errors import UserError
from hectogpt.lab.loss_logs import Curve, read_curves
from hectogpt.lab.yardstick import Per, Yardstick, open_encoder, plot_yardstick, yardstick


def main(options: YardstickOptions) -> None:
    """Measure, print the lines, and compare the given losses with them. Raises UserError."""
    for loss in options.loss:
        if not (math.isfinite(loss) and loss > 0):
            raise UserError(f"--loss {loss:g}", why="a loss is positive", fix="--loss 3.1")
    if options.train_tokens is not None and options.train_tokens < 2:
        raise UserError(
            f"--train-tokens {options.train_tokens}",
            why="it must be 2 or more",
            fix="--train-tokens 819200",
        )
    # Read before the work, so that an unreadable log costs no time.
    curves = {} if options.log is None else read_curves(options.log)
    found = yardstick(options.text, open_encoder(options.tokenizer), options.train_tokens)
    losses = [found.nats(loss, options.per) for loss in options.loss]
    unit = "nats per token" if options.per == "token" else f"bits per {options.per}"
    lines = found.table()
    placed = []
    for loss, nats in zip(options.loss, losses, strict=True):
        lines.append(found.sentence(nats, f"A loss of {loss:g} {unit}"))
        placed.append(place(found, nats) | {"loss": loss})
    log = {}
    for name, curve in curves.items():
        per = per_of(name, options.per)
        step, last = curve[-1]
        nats = found.nats(last, per)
        since = found.since(curve, per)
        facts = {"values": len(curve), "last_step": step, "below_since": since}
        log[name] = facts | place(found, nats)
        what = f"{name}, {last:.4g} at step {step}, the last of {len(curve)},"
        lines.append(found.sentence(nats, what))
        passed = [f"{line} since step {at}" for line, at in since.items() if at is not None]
        lines.append(f"  below {', '.join(passed) or 'no line'}")
    bits = {"bits_per_byte": found.bits("byte"), "bits_per_character": found.bits("character")}
    show(options.json, vars(found) | bits | {"placed": placed, "log": log}, lines)
    if options.picture is not None:
        drawn = {
            name: in_nats(found, curve, per_of(name, options.per))
            for name, curve in curves.items()
        }
        plot_yardstick(options.picture, found, drawn, losses)
        note(f"wrote {options.picture}")


def per_of(name: str, per: Per) -> Per:
    """The unit of a curve: bits per byte if its name says so, otherwise `per`."""
    return "byte" if "bpb" in name.lower() else per


def in_nats(found: Yardstick, curve: Curve, per: Per) -> Curve:
    """Convert a curve to nats per token."""
    return [(step, found.nats(loss, per)) for step, loss in curve]


def place(found: Yardstick, nats: float) -> dict[str, Any]:
    """A loss and the levels around it, for JSON."""
    above, below = found.place(nats)
    value = nats if math.isfinite(nats) else None
    return {"nats_per_token": value, "below": above, "not_below": below}
