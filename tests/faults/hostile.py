"""Files from strangers: pickles that would run code, crafted and damaged headers, configs, corpora, records.

Every file is given to every way in which a user can name a model, a corpus or a record. It may be refused by a
UserError, or read for what it is; it may not run code, raise anything else, or cost more time and memory than its size
explains.
"""

from __future__ import annotations

import faulthandler
import io
import itertools
import json
import os
import pickle
import random
import re
import shutil
import socket
import struct
import tempfile
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import runs
import torch
from experiments import record_of
from forks import Line
from safetensors.torch import save

from hectogpt import errors
from hectogpt.cli.check import verify_run
from hectogpt.data import open_corpus, token_files
from hectogpt.data.corpus import build_with_vocabulary
from hectogpt.errors import UserError
from hectogpt.files import MANIFEST
from hectogpt.interop import open_model
from hectogpt.interop.export import export
from hectogpt.lab.plan import plan
from hectogpt.lab.record import read_records
from hectogpt.model import ModelConfig, Transformer
from hectogpt.model.inputs import Spelling
from hectogpt.model.weights import save_config, save_model
from hectogpt.run_records import CHECKPOINTS, LOCK, METRICS, RUN, STATE, SavedCheckpoints, find_runs, read_record
from hectogpt.serialization import dump

SECONDS = 0.3  # of processor time for one refusal, and one more per 100 MB of the file
FLOOR = 16 << 20  # bytes that a refusal may cost whatever the file's size: parsed headers, torch's modules
HANG = 30  # seconds after which the proof ends with the traceback of a try that has not ended
SIZES = ModelConfig(16, 2, 1, 16, 257)

Try = tuple[str, Callable[[], object], int]  # its name, what reads the file, the file's bytes


def fault_of(name: str, read: Callable[[], object], size: int, must_refuse: bool = False) -> str:
    """What is wrong with how a file is met, "" if nothing."""
    tracemalloc.start()
    faulthandler.dump_traceback_later(HANG, exit=True)
    begun = time.process_time()
    try:
        read()
        return f"{name}: accepted" if must_refuse else ""
    except UserError:
        spent, peak = time.process_time() - begun, tracemalloc.get_traced_memory()[1]
        if spent > SECONDS * (1 + size / 1e8):
            return f"{name}: {1000 * spent:.0f} ms"
        return f"{name}: {peak / 2**20:.0f} MiB for {size:,} bytes" if peak > 2 * size + FLOOR else ""
    except BaseException:  # whatever it is, a user would see a traceback
        return f"{name}: {traceback.format_exc(limit=-1)}"
    finally:
        faulthandler.cancel_dump_traceback_later()
        tracemalloc.stop()


def line_of(promise: str, tries: Iterator[Try], must_refuse: bool = False) -> Line:
    """The line of these tries. A file is spoilt just before its try is taken from `tries`."""
    begun = time.monotonic()
    found = [fault_of(*one, must_refuse) for one in tries]
    return Line(promise, len(found), list(filter(None, found)), time.monotonic() - begun)


def check(quick: bool) -> list[Line]:
    """All of them. quick: fewer changed bytes and records."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(write_run(folder / "run"), folder / "gpt2")
        for kind in ("run", "gpt2"):
            open_model(folder / kind)  # and nothing is imported while time is measured
        (folder / "text.txt").write_text("\n\n".join(f"Passage {n} of the text, and no other." for n in range(400)))
        build_with_vocabulary(str(folder / "text.txt"), 280, folder / "tokens")
        return [
            line_of("pickles never run", pickle_tries(folder)),
            line_of("crafted safetensors headers are refused", header_tries(folder), must_refuse=True),
            line_of("safetensors headers with a changed byte", byte_tries(folder, 200 if quick else 2000)),
            line_of("invalid configs, and files that are not configs", config_tries(folder), must_refuse=True),
            line_of("odd corpora are refused or read as they are", corpus_tries(folder)),
            line_of("links, pipes and sockets in folders are not followed, read or written", odd_tries(folder)),
            line_of("odd records: read, or refused with one clear error", record_tries(folder, quick)),
        ]


# --- folders to spoil -------------------------------------------------------------------------------------------------


def write_run(folder: Path) -> Path:
    """A model's folder as a run leaves it, with a vocabulary of bytes alone."""
    folder.mkdir(parents=True)
    save_model(Transformer(SIZES), folder)
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return folder


def spoilt(folder: Path, kind: str, name: str, new: bytes | Callable[[Path], object]) -> Path:
    """A copy of a sound folder of this kind with something else in the place of one file, which may be there or not."""
    path = shutil.copytree(folder / kind, Path(tempfile.mkdtemp(dir=folder)) / kind)
    (path / name).unlink(missing_ok=True)
    if isinstance(new, bytes):
        (path / name).write_bytes(new)
    else:
        new(path / name)
    return path


def read_corpus(path: Path | str, folder: Path) -> Callable[[], object]:
    """Opens a corpus of this name."""
    return lambda: open_corpus(str(path), cache=folder / "cache", progress=False)


# --- pickles ----------------------------------------------------------------------------------------------------------


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def pickle_tries(folder: Path) -> Iterator[Try]:
    """Three containers of a pickle, whatever each is called and wherever it lies; what would load each shows that its
    canary is alive."""
    canary, zipped, array = folder / "canary", io.BytesIO(), io.BytesIO()
    torch.save({"weight": Canary(canary)}, zipped)
    np.save(array, np.array([Canary(canary)], dtype=object), allow_pickle=True)

    def read(action: Callable[[], object]) -> None:
        try:
            action()
        finally:
            assert not canary.exists(), "its code ran"

    loaders: tuple[tuple[str, bytes, Callable[[io.BytesIO], object]], ...] = (
        ("pytorch_model.bin", zipped.getvalue(), partial(torch.load, weights_only=False)),
        ("model.pickle", pickle.dumps({"weight": Canary(canary)}), pickle.load),
        ("array.npy", array.getvalue(), partial(np.load, allow_pickle=True)),
    )
    for name, content, load in loaders:
        load(io.BytesIO(content))
        canary.rmdir()
        for label, action in _ways(folder, name, content):
            yield f"{name} as {label}", partial(read, action), len(content)


def _ways(folder: Path, name: str, content: bytes) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every way in which a user can name this content as a model or as a corpus."""
    for kind in ("run", "gpt2"):
        beside = spoilt(folder, kind, name, content)
        (beside / "model.safetensors").unlink()
        yield f"only weights of a {kind}", partial(open_model, beside)
        for file in ("model.safetensors", *(f"{part}.json" for part in ("config", "vocab", "tokenizer", "run"))):
            yield f"{file} of a {kind}", partial(open_model, spoilt(folder, kind, file, content))
    yield "run.json, to be listed", partial(read_record, spoilt(folder, "run", "run.json", content))
    texts, tokens = (Path(tempfile.mkdtemp(dir=folder)) for _ in range(2))
    for path in (texts / name, *(texts / f"x{ending}" for ending in (".txt", ".jsonl", ".bin", ".json"))):
        path.write_bytes(content)
        yield f"a corpus {path.suffix}", read_corpus(path, folder)
    yield "a model by itself", partial(open_model, texts / name)
    yield "a folder of texts", read_corpus(texts, folder)
    for split in ("train", "dev", "test"):
        (tokens / f"{split}.bin").write_bytes(content)
    yield "token files", read_corpus(tokens, folder)
    (tokens / "index.json").write_bytes(content)
    yield "token files with an index", read_corpus(tokens, folder)


# --- headers of safetensors files -------------------------------------------------------------------------------------


def headers(whole: bytes) -> dict[str, bytes]:
    """Crafted files, made from one that is sound."""
    length = int.from_bytes(whole[:8], "little")
    entries: dict[str, Any] = json.loads(whole[8 : 8 + length])
    data = whole[8 + length :]
    names = [name for name in entries if name != "__metadata__"]
    first, second = sorted(names, key=lambda name: entries[name]["data_offsets"])[:2]

    def seal(header: str | bytes, data: bytes = data) -> bytes:
        header = header.encode() if isinstance(header, str) else header
        return struct.pack("<Q", len(header)) + header + data

    def changed(name: str, **fields: Any) -> bytes:
        return seal(json.dumps(entries | {name: entries[name] | fields}))

    begin, end = entries[first]["data_offsets"]
    nothing = ",".join(f'"t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(200_000))
    values = bytearray(whole)
    struct.pack_into("<f", values, 8 + length + begin, float("nan"))
    return {
        "empty": b"",
        "length 2^63": struct.pack("<Q", 2**63) + whole[8:],
        "longer than the file": struct.pack("<Q", len(whole)) + whole[8:],
        "no JSON": seal(b"not json" * 20),
        "no UTF-8": seal(json.dumps(entries).encode().replace(first.encode(), b"\xff\xfe", 1)),
        "overlap": changed(second, data_offsets=[begin, end], shape=entries[first]["shape"]),
        "hole": seal(json.dumps({n: e for n, e in entries.items() if n != first})),
        "shape overflow": changed(first, shape=[2**62, 2**62]),
        "negative": changed(first, shape=[-1, -(end - begin) // 4]),
        "shape and bytes": changed(first, shape=[*entries[first]["shape"], 2]),
        "dtype": changed(first, dtype="F31"),
        "trailing bytes": whole + b"\0",
        "metadata": seal(json.dumps(entries | {"__metadata__": {"format": 1}})),
        "nesting": seal(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "200,000 tensors": seal(f"{{{nothing}}}", b""),
        "not a number": bytes(values),
    }


def header_tries(folder: Path) -> Iterator[Try]:
    """Weights whose header is crafted."""
    for kind in ("run", "gpt2"):
        for name, content in headers((folder / kind / "model.safetensors").read_bytes()).items():
            path = spoilt(folder, kind, "model.safetensors", content)
            yield f"{kind}, {name}", partial(open_model, path), len(content)
    config = replace(SIZES, inputs=(Spelling(7),))
    state = Transformer(config).state_dict() | {"inputs.0.rows_of_token": torch.full((257, 4), 7)}
    path = spoilt(folder, "run", "model.safetensors", save(state))
    save_config(config, path)
    yield "rows beyond a table", partial(open_model, path), 0
    path = spoilt(folder, "run", "model.safetensors", save(state, {"hectogpt_config": "[" * 100_000}))
    (path / "config.json").unlink()
    yield "a nested config in the header", partial(open_model, path), 0


def byte_tries(folder: Path, count: int) -> Iterator[Try]:
    """A header with a changed byte is refused, or names the same tensors."""
    chance, likely = random.Random(0), b'0123456789{}[]":, abcFIU_.'  # most other bytes are no JSON at once
    for kind in ("run", "gpt2"):
        expected, path = open_model(folder / kind)[0].state_dict(), folder / kind / "model.safetensors"
        whole = path.read_bytes()

        def read(kind: str = kind, expected: dict[str, torch.Tensor] = expected) -> None:
            found = open_model(folder / kind)[0].state_dict()
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

        for _ in range(count // 2):
            at = chance.randrange(8 + int.from_bytes(whole[:8], "little"))
            changed = bytearray(whole)
            changed[at] = chance.choice(likely) if chance.random() < 0.5 else chance.randrange(256)
            path.write_bytes(changed)
            yield f"{kind}, byte {at}", read, len(whole)
        path.write_bytes(whole)


# --- configs ----------------------------------------------------------------------------------------------------------

ODD_FILES: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path),
}


def config_tries(folder: Path) -> Iterator[Try]:
    """Configs that are no model's, merges that make a token of a gigabyte, and what is no file in the place of one."""
    own: dict[str, Any] = {"model_type": "hectogpt", **dump(SIZES)}
    ours: list[dict[str, Any]] = [
        {"d_model": 10**9, "n_heads": 1}, {"vocab_size": 10**12}, {"context_length": 2**62}, {"d_model": 10**30},
        {"n_layers": 10**5}, {"n_layers": -1}, {"inputs": [{"type": "EmbeddingNorm"}] * 10**4}, {"norm": None},
        {"norm": {"type": ["LayerNorm"]}}, {"norm": {"type": "Module"}}, {"d_model": True}, {"d_model": "16"},
        {"d_model": 16.0}, {"n_heads": 3}, {"vocab_size": None}, {"more": 1}, {"attention_scale": 10**400},
        {"inputs": [{"type": "NgramHash", "order": 10**9}]}, {"inputs": [{"type": "NgramHash", "common": 10**400}]},
        {"lm_head": []}, {"lm_head": {"soft_cap": -1.0}},
        {"attention_parts": [{"type": "Rotary", "fraction": 1e9}]}, {"pointer": {"type": "Canary"}}, {"x" * 10**5: 0},
        {"norm": {"type": "LayerNorm", "eps": -1.0}},
        {"positions": {"type": "SinusoidalPositions"}, "context_length": 10**6, "d_model": 10**5, "n_heads": 1},
    ]  # fmt: skip
    others: list[dict[str, Any]] = [
        {"n_layer": 10**9}, {"n_embd": {"a": 1}, "n_inner": 4}, {"vocab_size": 1e2}, {"n_positions": 0}, {"n_head": 3},
        {"n_inner": "64"}, {"activation_function": "relu"}, {"scale_attn_by_inverse_layer_idx": True},
        {"model_type": ["gpt2"]}, {"tie_word_embeddings": "yes"}, {"layer_norm_epsilon": -1.0},
        {"auto_map": {"AutoModel": "x.Y"}, "n_layer": 2},
    ]  # fmt: skip
    theirs, text = json.loads((folder / "gpt2" / "config.json").read_text()), json.dumps(own).encode()
    raw = [
        b"", b"[]", text[:-20], b"\xff\xfe" + text, b"[" * 100_000, b'{"a":' * 100_000, text + b" " * (2 << 20),
        text.replace(b"16", b"NaN", 1), text.replace(b"16", b"1e999", 1), b'{"a": ' + b"9" * 5000 + b"}",
    ]  # fmt: skip
    found = [("run", json.dumps(own | change).encode()) for change in ours]
    found += [("gpt2", json.dumps(theirs | change).encode()) for change in others]
    for kind, content in [*found, *(("run", content) for content in raw)]:
        path = spoilt(folder, kind, "config.json", content)
        yield f"{kind}, {content[:300]!r}", partial(open_model, path), len(content)
    doubling = "\n".join(f"{'a' * 2**i} {'a' * 2**i}" for i in range(20))
    for merges in (doubling.encode(), b"a b\n" * (2 << 20)):
        path = spoilt(folder, "run", "merges.txt", merges)
        yield f"{len(merges)} bytes of merges", partial(open_model, path), len(merges)
    for label, spoil in ODD_FILES.items():
        for name in ("config.json", "model.safetensors", "merges.txt", "tokenizer.json"):
            yield f"{label} as {name}", partial(open_model, spoilt(folder, "run", name, spoil)), 0
        (path := spoilt(folder, "run", "model.safetensors", spoil)).joinpath("config.json").unlink()
        yield f"{label} as all that there is", partial(open_model, path), 0


# --- corpora ----------------------------------------------------------------------------------------------------------


def corpus_tries(folder: Path) -> Iterator[Try]:
    """Odd names of corpora, and odd files."""
    names = ["", "x" * 5000, "y/" * 3000, "~nosuchuser/x", "hf:", "hf:../../x", "hf:a/b/c", "hf:" + "a" * 5000, "hf:\0",
             "a\0b", "\udc80", "/dev/zero", "/dev/null", "/nope", "x.jsonl:y", "-rf", "\x1b]0;title\x07"]  # fmt: skip
    yield from (("the name " + repr(name)[:20], read_corpus(name, folder), 0) for name in names)
    text = "\n\n".join(f"Passage {number} of the text, and no other." for number in range(400)).encode()
    contents = {
        "empty.txt": b"", "blank.txt": b" \n\t", "short.txt": b"a few words", "png.txt": b"\x89PNG\r\n\x1a\n" + text,
        "nul.txt": text + b"\0" + text, "latin.txt": text + b"caf\xe9 " + text, "cut.txt": text + b"\xe2\x82",
        "utf16.txt": text.decode().encode("utf-16"), "utf16le.txt": text.decode().encode("utf-16-le"),
        "crlf.txt": text.replace(b"\n", b"\r\n"), "bom.txt": b"\xef\xbb\xbf" + text, "x.json": b"[]",
        "surrogate.txt": text + b"\xed\xa0\x80" + text, "separator.txt": b"<|endoftext|>" * 2000,
        "deep.jsonl": b"[" * 100_000, "half.jsonl": b'{"text": "a"}\n{"text": ', "none.jsonl": b'{"a": 1}\n',
        "lone.jsonl": b'{"text": "\\ud800"}\n', "digits.jsonl": b'{"text": ' + b"9" * 5000 + b"}\n",
        "odd.bin": b"\x01\x00\x02", "range.bin": b"\xff\xff" * 9, "none.bin": b"",
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        yield name, read_corpus(folder / name, folder), len(content)
    index = token_files.read_index(folder / "tokens")
    del index["sha256"]
    dev, wrong = index["splits"]["dev"], ({"documents": "1"}, {"tokens": 0}, {"tokens": -1}, {"sha256": None})
    changes: list[dict[str, Any]] = [{"splits": index["splits"] | {"dev": dev | change}} for change in wrong]
    values: tuple[Any, ...] = ([], None, {}, 5, [5], {"dev": {}}, "x" * (17 << 20))
    changes += [{name: value} for name in index for value in values]
    for change in changes:  # each with its own hash right
        content = token_files.render_index(index | change)
        path = spoilt(folder, "tokens", "index.json", content)
        yield f"an index with {str(change)[:60]}", read_corpus(path, folder), len(content)
    for name in ("pipe", "endless", "loop"):
        ODD_FILES[name](folder / name)
        yield name, read_corpus(folder / name, folder), 0


# --- a run's folder and a corpus's, with something else in the place of each name -------------------------------------


def odd_tries(folder: Path) -> Iterator[Try]:
    """A link to another run's file or folder, one to nothing, a pipe and a socket under every name that a folder of
    ours can have, given to all that reads or writes there. Nothing may change elsewhere, and nothing may wait."""
    case = replace(runs.make_cases(folder, 4)["plain"], steps=4)
    mine, theirs, tokens = folder / "mine" / "run", folder / "theirs", folder / "tokens"
    for place in (mine, theirs):
        runs.train(case, place)
    (theirs / "idea.py").write_text("original")
    (theirs / ".lock").write_text("original")
    (theirs / "tensorboard").mkdir()
    for name in ("summary.json", "manifest.json"):  # as of a run that was killed before its end
        (mine / name).unlink()

    def contents() -> dict[Path, bytes]:
        return {p: p.read_bytes() for place in (theirs, tokens) for p in place.rglob("*") if p.is_file()}

    before = contents()

    def read(*actions: Callable[[], object]) -> None:
        refused = 0
        for action in actions:
            try:
                action()
            except UserError:
                refused += 1
        assert contents() == before, "a file elsewhere has changed"
        if refused:
            raise UserError("refused")

    newest = SavedCheckpoints(mine / CHECKPOINTS).steps()[-1]
    step = f"{CHECKPOINTS}/step-{newest:08d}"
    for name, kind in itertools.product((*NAMES, step, f"{step}/{STATE}", f"{step}/{MANIFEST}"), ("link", *ODD_KINDS)):
        path = spoilt_copy(mine, name, kind, theirs)
        resume = partial(runs.train, case, path)
        yield f"{kind} as {name}", partial(read, partial(find_runs, path.parent), partial(verify_run, path), resume), 0
        yield f"{kind} as {name}, a model", partial(read, partial(open_model, path)), 0
    for name, kind in itertools.product(sorted(token_files.FILES), ("link", *ODD_KINDS)):
        path = spoilt_copy(tokens, name, kind, tokens)
        again = partial(build_with_vocabulary, str(folder / "text.txt"), 280, path)
        yield f"{kind} as {name}", partial(read, read_corpus(path, folder)), 0
        yield f"{kind} as {name}, to be replaced", partial(read, again), 0


NAMES = (RUN, METRICS, "summary.json", "manifest.json", "config.json", "model.safetensors", "merges.txt", "idea.py",
         "losses_and_grad_norms.png", LOCK, CHECKPOINTS, "tensorboard")  # fmt: skip
ODD_KINDS: dict[str, Callable[[Path], object]] = {
    "a link to nothing": lambda path: path.symlink_to(path.with_name("nothing")),
    "a pipe": os.mkfifo,
    "a socket": lambda path: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path)),
}


def spoilt_copy(whole: Path, name: str, kind: str, target: Path) -> Path:
    """A copy of a folder in which one name is something else: a link to the same name in `target`, or an odd kind."""
    path = Path(shutil.copytree(whole, Path(tempfile.mkdtemp(dir=whole.parents[1])) / "copy"))
    place = path / name
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    place.symlink_to(target / name) if kind == "link" else ODD_KINDS[kind](place)
    return path


# --- records of trials ------------------------------------------------------------------------------------------------

MARKUP = 't"><img src=x onerror=document.body.remove()><i id="'
SCRIPT = "</script><script>document.body.remove()</script><!--<script>"
ESCAPE = "a\x1b]0;pwn\x07\x9b31mb\r\x7f"
MARKDOWN = "x](javascript:a) | y\n# heading\n<b onclick=a>"
TEXTS = (MARKUP, SCRIPT, ESCAPE, "a\0b", "a\ud800b", "a\u202eb", "$\\frac{$ $x^2$", MARKDOWN, "[bold]x[/nope]", "", " ",
         "../../x", "x" * 300)  # fmt: skip
NUMBERS: tuple[Any, ...] = (float("nan"), float("inf"), -1, True, 10**400, 1e300, "3", [3], {}, 1.5, 0, 1e12, -0.0)
ODD: tuple[Any, ...] = (
    *TEXTS, *NUMBERS, *([one] for one in (*TEXTS, *NUMBERS)), "x" * 5000, 10**30, None, [], {}, {"a": 1}, [[1]], [None],
    {MARKUP: MARKUP, "model.norm": {"type": SCRIPT}, "x": [ESCAPE]}, {"__class__.__init__": 1}, {"steps": "100"},
    {"steps": 3, "model": {"norm": {"type": ["LayerNorm"]}}, "ideas": [SCRIPT]}, [1e-12, 1e12, 1.0], [3.0] * 5000,
    {"steps": 3, "model": json.loads("[" * 200 + "]" * 200)},
)  # fmt: skip
# No record at all; the last has only the fields that are needed.
LINES = (
    b"[" * 100_000, b'{"a":' * 100_000, b"\0" * 500, b'{"corpus": "\xff\xfe"}', b'\xef\xbb\xbf{"corpus": "c"}',
    b'{"corpus": "c", "track": "clo', b'{"corpus": "c"} {"corpus": "c"}', b'{"corpus": "c", "corpus": "d"}',
    b'{"seed": ' + b"9" * 5000 + b"}", b"[1, 2]",
    b'{"corpus": "c", "track": "t", "recipe": "r", "seed": 0, "run": {"steps": 1}}',
)  # fmt: skip


def record_tries(folder: Path, quick: bool) -> Iterator[Try]:
    """Files with a record that has an odd value in one field, and with lines that are none. quick: some of them."""
    more = {"test_loss": 3.5, "dev_bpb": 1.1, "test_bpb": 1.1, "grad_norms": [1.0] * 100, "machine": {}}
    arms = plan(["baseline", "learning_rate"])
    good, other = (asdict(record_of(runs.small_corpus(), arm, 0, 3.5, **more)) for arm in arms)
    odd = list(itertools.product([*good, MARKUP], ODD))
    changes = random.Random(0).sample(odd, 150) if quick else odd
    rows = [
        good | ({"status": "failed"} if number % 5 == 0 else {}) | {field: value}
        for number, (field, value) in enumerate(changes)
    ]
    path, sound = folder / "records.jsonl", json.dumps(other)
    for content in (*(f"{sound}\n{json.dumps(row)}\n".encode() for row in rows), *(line + b"\n" for line in LINES)):
        path.write_bytes(content)
        yield f"{content[-300:]!r}", partial(read_clearly, path), len(content)


def read_clearly(path: Path) -> None:
    """Read records, or be told in one clear error why not. Texts are made printable where they are shown."""
    try:
        read_records(path)
    except UserError as error:
        clear = error.code == errors.DATA and re.search(r"line \d+ is not a record", error.what)
        if not clear or len(str(error)) > 2000 or not str(error).replace("\n", "").isprintable():
            raise AssertionError(f"not clear: {error}") from error
        raise
