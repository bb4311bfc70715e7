"""The figures of docs/scale.md: memory, communication and time of training on many GPUs.

    python -m tools.scale             print the tables
    python -m tools.scale --write     fill them into docs/scale.md
    python -m tools.scale --measure   measure this machine (ten minutes), write results/scale.json, fill in the page;
                                      --measure gloo, memory or data does a part of it

Every figure that is not measured follows from ASSUMPTIONS and SHAPES by the formulas of tools/scale_model.py.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from math import ceil
from typing import Any

from hectogpt.files import write_atomic
from tools import ROOT
from tools.scale_model import (
    ASSUMPTIONS,
    FLOPS,
    MEASURED,
    NETWORK,
    NVLINK,
    SENDS,
    SHAPES,
    TOKENS,
    VALUE,
    bandwidth,
    best_plan,
    fits,
    process_memory,
)
from tools.schedules import GLOO, Network, gloo_bytes, ring_all_reduce, simulate, tree_sum

BUCKET = 4 << 20  # bytes of gradients that are sent together (hectogpt/training/leaves.py)
GPUS = (1, 8, 64, 512, 1024, 8192, 16384)
PAGE, RESULTS = ROOT / "docs" / "scale.md", ROOT / "results" / "scale.json"
MARK = re.compile(r"(<!-- scale: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
Row = list[str]


def gb(nbytes: float) -> str:
    """ "2.0 GB", or "310 MB"."""
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:,.0f} MB"


def seconds(value: float) -> str:
    """With two digits, in the unit that suits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:,.2g} {unit}" if value / size < 100 else f"{value / size:,.0f} {unit}"
    return "0"


def days(value: float) -> str:
    d = value / 86_400
    return f"{d:,.1f}" if d < 100 else f"{d:,.0f}"


def assumptions() -> list[Row]:
    return [["what", "value", "source"], *([n, a.shown, a.source] for n, a in ASSUMPTIONS.items())]


def models() -> list[Row]:
    rows = [["model", "d_model", "layers", "context", "parameters", "FLOP a token", "tokens a step"]]
    for s in SHAPES:
        numbers = f"{s.parameters:,}", f"{s.flops:.2g}", f"{s.batch:,}"
        rows.append([s.name, str(s.d), str(s.layers), f"{s.context:,}", *numbers])
    return rows


def memory() -> list[Row]:
    counts = (1, 8, 64, 1024)
    rows = [["model", *(f"states, {n:,} GPUs" if n > 1 else "states, 1 GPU" for n in counts)]]
    rows[0] += ["a sequence, kept", "computed again", "GPUs that FSDP2 needs"]
    for s in SHAPES:
        least = next(n for n in (2**i for i in range(20)) if fits(s, n))
        sequence = [gb(s.activations(kept)) for kept in (True, False)]
        rows.append([s.name, *(gb(s.states / n) for n in counts), *sequence, f"{least}"])
    return rows


def communication() -> list[Row]:
    rows = [["model", "by", "a GPU sends in a step", "over NVLink", "over the network", "one GPU computes a step in"]]
    for s in SHAPES:
        for name, each in SENDS.items():
            size, whole = each * s.parameters, seconds(s.batch * s.flops / FLOPS)
            rows.append([s.name, name, gb(size), seconds(size / NVLINK), seconds(size / NETWORK), whole])
    return rows


def hidden() -> list[Row]:
    """Tokens a GPU must have in a step for its computing to take as long as its sending: both grow with the number of
    parameters, which cancels. DDP sends during the backward pass, which is two thirds of the computing."""
    rows = [["by", "over NVLink", "over the network"]]
    for name, each in SENDS.items():
        flops = 4 if name == "DDP" else 6
        rows.append([name, *(f"{ceil(each * FLOPS / (flops * link)):,}" for link in (NVLINK, NETWORK))])
    return rows


def plans() -> list[Row]:
    rows = [["model", "GPUs", "tokens a step", "how", "tokens a GPU", "a step", "computing", "days for 10^12 tokens"]]
    for s in SHAPES:
        for gpus in GPUS:
            batch = s.batch * (4 if gpus > 8192 and s.context == 4096 else 1)
            p = best_plan(s, gpus, batch)
            how = p.method if p else "fewer sequences than GPUs" if fits(s, gpus) else "does not fit"
            numbers = [seconds(p.step), f"{p.busy:.0%}", days(TOKENS / batch * p.step)] if p else ["", "", ""]
            rows.append([s.name, f"{gpus:,}", f"{batch:,}", how, f"{batch // gpus:,}", *numbers])
    return rows


def sums() -> list[Row]:
    """A bucket of gradients by a ring and by the tree."""
    rows = [["GPUs", "a shard", "messages, ring", "messages, tree", "ring", "tree", "124 M by the tree"]]
    for gpus in (2, 8, 64, 512, 1024):
        network = Network(
            bandwidth(gpus), VALUE["latency of a round of messages"], VALUE["cost of a message at its sender"]
        )
        ring, tree = (simulate(s(gpus, BUCKET), gpus, network) for s in (ring_all_reduce, tree_sum))
        whole = tree.seconds * 4 * SHAPES[0].parameters / BUCKET
        shard = BUCKET // gpus
        size = f"{shard / 2**20:.0f} MiB" if shard >= 2**20 else f"{shard / 1024:.0f} KiB"
        row = [f"{gpus:,}", size, f"{ring.messages[0]:,}", f"{tree.messages[0]:,}"]
        rows.append([*row, seconds(ring.seconds), seconds(tree.seconds), seconds(whole)])
    return rows


def gloo() -> list[Row]:
    """What local processes measured of the schedules, beside what the model says."""
    rows = [["call", "processes", "size", "bytes sent, computed", "measured", "time, computed", "measured", "error"]]
    for run in measured()["gloo"]:
        ranks = run["processes"]
        if ranks == 1:
            continue
        network = Network(run["bandwidth"], run["latency"])
        for row in run["rows"]:
            cost = simulate(GLOO[row["call"]](ranks, row["size"]), ranks, network)
            error = f"{cost.seconds / row['seconds'] - 1:+.0%}"
            sent = [f"{gloo_bytes(cost):,}", f"{row['bytes']:,}"]
            times = [seconds(cost.seconds), seconds(row["seconds"]), error]
            rows.append([row["call"], str(ranks), f"{row['size'] >> 20} MiB", *sent, *times])
    return rows


def shards() -> list[Row]:
    """What processes of one machine measured of their memory, beside what the formulas say."""
    rows = [
        ["shared by", "process", "states, activations", "head", "sharing", "sum", "in steps", "error", "at the end"]
    ]
    for run in measured()["memory"]:
        count, ranks = run["processes"], run["ranks"]
        parts = [part / 2**20 for part in process_memory(run["how"], count)]
        groups = {"": ranks[:1]} if count == 1 else {"rank 0": ranks[:1], "others": ranks[1:]}
        if run["how"] == "ddp":
            groups = {"each": ranks} if count > 1 else groups
        for name, group in groups.items():
            whole = 4 * MEASURED.parameters / 2**20 if run["how"] == "fsdp" and name != "others" else 0.0
            plan, head, sharing = parts[0], parts[1], parts[2] + whole
            total, found = plan + head + sharing, max(rank["trained"] for rank in group)
            figures = [f"{value:,.0f}" for value in (plan, head, sharing, total, found)]
            ended = f"{max(rank['ended'] for rank in group):,.0f}"
            label = run["how"] if run["how"] == "none" else f"{run['how']}, {count}"
            rows.append([label, name, *figures, f"{total / found - 1:+.0%}", ended])
    return rows


def data() -> list[Row]:
    """Preparing a corpus on this machine, and what a corpus of 10^12 tokens would take."""
    found = measured()["data"]
    sizes = sorted(found["sizes"], key=int)
    whole, again = found["sizes"][sizes[-1]], found["after_kill"]
    rate = int(sizes[-1]) / whole["cpu"]
    text = 4.5 * TOKENS  # bytes: a GPT-2 token stands for 4 to 5 of English
    rows = [["what", "figure"]]
    for size in sizes:
        of = found["sizes"][size]
        rows.append(
            [f"{size} MB of .jsonl prepared", f"{of['cpu']:.1f} s of computing, {of['peak_mib']:.0f} MiB at most"]
        )
    rows.append([f"the rest of the {sizes[-1]} MB after a kill", f"{again['cpu']:.1f} s of computing"])
    folder = found["folder"]
    figure = f"{folder['again']:.2f} s"
    rows.append(["a folder of 100,000 files recognised as unchanged", figure])
    rows.append(
        [f"text of 10^12 tokens (4.5 bytes a token) at {rate:.0f} MB/s", f"{days(text / rate / 1e6)} days of a core"]
    )
    rows.append(["its token files", gb(2 * TOKENS)])
    rows.append(["their order in memory, sequences of 4,096 tokens", gb(8 * TOKENS / 4096)])
    return rows


def where() -> list[Row]:
    """When and on what the tables of measurements were made."""
    rows = [["table", "date", "machine", "load before"]]
    for name, about in measured()["about"].items():
        rows.append([name, about["date"], about["machine"], str(about["load"])])
    return rows


TABLES: dict[str, Callable[[], list[Row]]] = {
    t.__name__: t for t in (assumptions, models, memory, communication, hidden, plans, shards, sums, gloo, data, where)
}


def measured() -> dict[str, Any]:
    """The figures of this machine, as `--measure` has written them."""
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def markdown(rows: list[Row]) -> str:
    """A table, with its first row on top."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def fill(page: str) -> str:
    """The page with its tables. Raises KeyError for a mark that names none."""
    return MARK.sub(lambda found: found[1] + markdown(TABLES[found[2]]()) + found[4], page)


def main(argv: list[str]) -> int:
    """Print, fill in or measure."""
    if "--measure" in argv:
        from tools.scale_measure import measure

        known = measured() if RESULTS.exists() else {}
        write_atomic(RESULTS, json.dumps(known | measure(argv[1:]), indent=1) + "\n")
    if argv:
        write_atomic(PAGE, fill(PAGE.read_text(encoding="utf-8")))
        return 0
    for name, table in TABLES.items():
        print(f"{name}\n\n{markdown(table())}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
