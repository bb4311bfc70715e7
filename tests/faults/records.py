"""Records of trials that strangers, editors and broken disks leave: read, or refused in one clear error.

No name or message that is read holds a control character, so no table, page or terminal gets one; settings of a run are
made printable where they are shown.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from forks import Line

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.lab import recipes
from hectogpt.lab.record import read_records
from hectogpt.serialization import dump

Row = dict[str, Any]
ARMS = ("baseline", "learning_rate")
SEEDS = 2
MUTATIONS = 1500  # random ones, of the long proof

MARKUP = 't"><img src=x onerror=document.body.remove()><i id="'
SCRIPT = "</script><script>document.body.remove()</script><!--<script>"
ESCAPE = "a\x1b]0;pwn\x07\x9b31mb\r\x7f"
NUL, SURROGATE, RIGHT_TO_LEFT = "a\0b", "a\ud800b", "a\u202eb"
MATHS = "$\\frac{$ $x^2$"
MARKDOWN = "x](javascript:a) | y\n# heading\n<b onclick=a>"
RICH = "[bold]x[/nope]"
TEXTS = (MARKUP, SCRIPT, ESCAPE, NUL, SURROGATE, RIGHT_TO_LEFT, MATHS, MARKDOWN, RICH, "", " ", "../../x", "x" * 300)
NUMBERS: tuple[Any, ...] = (float("nan"), float("inf"), -1, True, 10**400, 1e300, "3", [3], {}, 1.5, 0, 1e12, -0.0)
OTHERS: tuple[Any, ...] = ([], {}, [1], {"a": 1}, "x", 5, True, None, [[1]], [None], ["a"])

# Changes of one record each, by name.
CHANGES: dict[str, Row] = {
    **{f"{name} {text[:12]!r}": {name: text} for name in ("corpus", "track") for text in TEXTS},
    "recipe with escapes": {"recipe": ESCAPE, "arm": ESCAPE},
    "a name of 5000 characters": {"corpus": "x" * 5000},
    "error with markup": {"status": "failed", "error": f"{SCRIPT}\n{MARKDOWN}\n{ESCAPE}"},
    "rules with markup": {"rules_broken": [MARKUP, MARKDOWN, ESCAPE, SURROGATE]},
    "a rule that is a number": {"rules_broken": [1]},
    **{f"dev_loss {value!r:.18}": {"dev_loss": value} for value in (*NUMBERS, None)},
    "params a text": {"params": "many"},
    "seed of 30 digits": {"seed": 10**30},
    "losses of lists": {"losses": [[1.0], [2.0]]},
    "losses with NaN": {"losses": [1.0, float("nan")]},
    "losses a text": {"losses": "abc"},
    "losses far apart": {"losses": [1e-12, 1e12, 1.0], "grad_norms": [1e-12, 1e12, 0.0]},
    "no losses": {"losses": [], "grad_norms": []},
    "a curve of 5000 steps": {"losses": [3.0] * 5000},
    "anchors that are texts": {"ngram_kn3": None, "anchor_kn3": "3", "anchor_uniform": "10"},
    "overrides a list": {"overrides": ["steps"]},
    "overrides of markup": {"overrides": {MARKUP: MARKUP, "model.norm": {"type": SCRIPT}, "x": [ESCAPE]}},
    "overrides of dunders": {"overrides": {"__class__.__init__": 1}},
    "run a list": {"run": []},
    "run with steps of text": {"run": {"steps": "100"}},
    "run with odd parts": {"run": {"steps": 3, "model": {"norm": {"type": ["LayerNorm"]}}, "ideas": [SCRIPT]}},
    "run nested deeply": {"run": {"steps": 3, "model": json.loads("[" * 200 + "]" * 200)}},
    "hashes that are numbers": {"corpus_sha256": {"train": 5}},
    "machine a list": {"machine": [1]},
    "status unknown": {"status": "great"},
    "unknown fields": {MARKUP: ESCAPE, "more": {"x": [1]}},
}  # fmt: skip
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


def random_changes(count: int) -> Iterator[Row]:
    """Records with two fields changed at random, always the same ones."""
    draw = random.Random(0)
    fields = [*good_row("baseline", 0), "machine", "error", "rules_broken", "status", "ngram_kn3", "ngram_split"]
    for _ in range(count):
        change: Row = {}
        for _ in range(2):
            name = draw.choice(fields)
            change[name] = draw.choice([*TEXTS, *NUMBERS, *OTHERS, [draw.choice(NUMBERS)], [draw.choice(TEXTS)]])
        yield change


@cache
def _recipe(name: str) -> Row:
    return dump(replace(recipes.recipe(name), threads=1))  # type: ignore[no-any-return]


def good_row(recipe: str, seed: int) -> Row:
    """A record as `hectogpt compare` writes it, with a made-up curve."""
    loss = (3.5 if recipe == "baseline" else 3.0) + seed / 100
    run, curve = _recipe(recipe) | {"seed": seed}, [round(loss + 7 * 0.9**step, 4) for step in range(1, 101)]
    row: Row = {"corpus": "c", "track": "closed", "recipe": recipe, "arm": recipe, "seed": seed, "run": run}
    row |= {"corpus_sha256": {}, "overrides": {}, "modified": False, "steps": 100, "commit": "0" * 40}
    row |= {"dev_loss": loss, "dev_bpb": 1.1, "test_loss": loss, "test_bpb": 1.1, "seconds": 9.5, "params": 1000}
    return row | {"peak_mb": 500.0, "losses": curve, "grad_norms": curve, "version": "0", "dirty": False}


def files(mutations: int) -> Iterator[bytes]:
    """Files of records of which one or all are odd."""
    for change in CHANGES.values():
        rows = [good_row(recipe, seed) | change for seed in range(SEEDS) for recipe in ARMS]
        yield b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    yield from (line + b"\n" for line in LINES.values())
    yield from (json.dumps(good_row("baseline", 0) | change).encode() for change in random_changes(mutations))


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
    """Every odd record; the long proof adds random changes."""
    begun, faults, found = time.perf_counter(), [], list(files(0 if quick else MUTATIONS))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.jsonl"
        for content in found:
            path.write_bytes(content)
            faults += [f"{content[:300]!r}: {fault}"] if (fault := fault_of(path)) else []
    seconds = time.perf_counter() - begun
    return [
        Line("odd records: read or refused in one clear error", len(found), len(faults), seconds, "; ".join(faults[:3]))
    ]
