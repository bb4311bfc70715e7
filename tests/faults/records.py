"""Records of trials that strangers, editors and broken disks leave: read, or refused in one clear error.

No name or message that is read holds a control character, so no table, page or terminal gets one; settings of a run are
made printable where they are shown.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from forks import Line

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.lab import recipes
from hectogpt.lab.record import read_records
from hectogpt.serialization import dump

Row = dict[str, Any]
QUICK = 150  # odd records, of all

MARKUP = 't"><img src=x onerror=document.body.remove()><i id="'
SCRIPT = "</script><script>document.body.remove()</script><!--<script>"
ESCAPE = "a\x1b]0;pwn\x07\x9b31mb\r\x7f"
NUL, SURROGATE, RIGHT_TO_LEFT = "a\0b", "a\ud800b", "a\u202eb"
MATHS = "$\\frac{$ $x^2$"
MARKDOWN = "x](javascript:a) | y\n# heading\n<b onclick=a>"
RICH = "[bold]x[/nope]"
TEXTS = (MARKUP, SCRIPT, ESCAPE, NUL, SURROGATE, RIGHT_TO_LEFT, MATHS, MARKDOWN, RICH, "", " ", "../../x", "x" * 300)
NUMBERS: tuple[Any, ...] = (float("nan"), float("inf"), -1, True, 10**400, 1e300, "3", [3], {}, 1.5, 0, 1e12, -0.0)
NESTED = json.loads("[" * 200 + "]" * 200)
ODD: tuple[Any, ...] = (
    *TEXTS, *NUMBERS, *([one] for one in (*TEXTS, *NUMBERS)), "x" * 5000, 10**30, None, [], {}, {"a": 1}, [[1]], [None],
    {MARKUP: MARKUP, "model.norm": {"type": SCRIPT}, "x": [ESCAPE]}, {"__class__.__init__": 1}, {"steps": "100"},
    {"steps": 3, "model": {"norm": {"type": ["LayerNorm"]}}, "ideas": [SCRIPT]}, {"steps": 3, "model": NESTED},
    [1e-12, 1e12, 1.0], [3.0] * 5000,
)  # fmt: skip
# Lines that are no record at all.
LINES: dict[str, bytes] = {
    "brackets without end": b"[" * 100_000,
    "braces without end": b'{"a":' * 100_000,
    "nothing but NUL": b"\0" * 500,
    "no UTF-8": b'{"corpus": "\xff\xfe"}',
    "a byte order mark": b'\xef\xbb\xbf{"corpus": "c"}',
    "half a record": b'{"corpus": "c", "track": "clo',
    "two records": b'{"corpus": "c"} {"corpus": "c"}',
    "a key twice": b'{"corpus": "c", "corpus": "d"}',
    "a number of 5000 digits": b'{"seed": ' + b"9" * 5000 + b"}",
    "a list": b"[1, 2]",
    "only the needed fields": b'{"corpus": "c", "track": "t", "recipe": "r", "seed": 0, "run": {"steps": 1}}',
}


def good_row(recipe: str, seed: int) -> Row:
    """A record as `hectogpt compare` writes it, with a made-up curve."""
    loss = (3.5 if recipe == "baseline" else 3.0) + seed / 100
    run, curve = dump(replace(recipes.recipe(recipe), threads=1, seed=seed)), [loss + 7 * 0.9**n for n in range(100)]
    row: Row = {"corpus": "c", "track": "closed", "recipe": recipe, "arm": recipe, "seed": seed, "run": run}
    row |= dict.fromkeys(("dev_loss", "test_loss"), loss) | dict.fromkeys(("losses", "grad_norms"), curve)
    row |= {"dev_bpb": 1.1, "test_bpb": 1.1, "seconds": 9.5, "params": 1000, "peak_mb": 500.0, "steps": 100}
    row |= {"corpus_sha256": {}, "overrides": {}, "modified": False, "dirty": False}
    return row | {"commit": "0" * 40, "version": "0"}


def files(quick: bool) -> Iterator[bytes]:
    """Files with a record that has an odd value in one field, and with lines that are none. quick: some of them."""
    good, sound = good_row("baseline", 0), json.dumps(good_row("learning_rate", 1))
    good |= {"machine": {}, "error": None, "rules_broken": [], "status": "ok", "ngram_kn3": 3.3, "ngram_split": "test"}
    odd = list(itertools.product([*good, MARKUP], ODD))
    for number, (field, value) in enumerate(random.Random(0).sample(odd, QUICK) if quick else odd):
        row = good | ({"status": "failed"} if number % 5 == 0 else {}) | {field: value}
        yield f"{sound}\n{json.dumps(row)}\n".encode()
    yield from (line + b"\n" for line in LINES.values())


def texts(value: Any) -> Iterator[str]:
    """Every text in a record, keys among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inside in value.items():
            yield from (*texts(key), *texts(inside))
    elif isinstance(value, list | tuple):
        for inside in value:
            yield from texts(inside)


def fault_of(path: Path) -> str:
    """What is wrong with how a file of records is read, "" if nothing."""
    try:
        records = read_records(path)
    except UserError as error:
        clear = (
            error.code == errors.DATA and re.search(r"line \d+ is not a record", error.what) and len(str(error)) < 2000
        )
        return "" if clear and str(error).replace("\n", "").isprintable() else f"not clear: {str(error)[:200]!r}"
    except Exception:
        return traceback.format_exc(limit=-1)
    shown = [{n: v for n, v in asdict(record).items() if n not in ("run", "overrides")} for record in records]
    odd = [text for text in texts(shown) if not text.replace("\n", "").isprintable()]
    return f"not printable: {odd[0][:50]!r}" if odd else ""


def check(quick: bool) -> list[Line]:
    """Every odd record, or some of them."""
    begun, faults, found = time.perf_counter(), [], list(files(quick))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.jsonl"
        for content in found:
            path.write_bytes(content)
            faults += [f"{content[:300]!r}: {fault}"] if (fault := fault_of(path)) else []
    seconds = time.perf_counter() - begun
    return [
        Line("odd records: read or refused in one clear error", len(found), len(faults), seconds, "; ".join(faults[:3]))
    ]
