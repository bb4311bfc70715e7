"""Files from strangers: pickles that would run code, crafted and damaged headers, configs, corpora.

Every file is given to every way in which a user can name a model or a corpus. It may be refused by a UserError, or read
for what it is; it may not run code, raise anything else, or cost more time and memory than its size explains.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import struct
import tarfile
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forks import Line
from safetensors.torch import save_file

from hectogpt.data import open_corpus
from hectogpt.errors import UserError
from hectogpt.interop import open_model
from hectogpt.interop.hf_model import to_huggingface
from hectogpt.model import ModelConfig, Transformer
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.model.weights import save_model
from hectogpt.run_records import read_record
from hectogpt.serialization import dump

SECONDS = 0.3  # of processor time for one refusal, and one more per 100 MB of the file
FLOOR = 16 << 20  # bytes that a refusal may cost whatever the file's size: parsed headers, torch's modules
HANG = 20.0  # seconds after which a try counts as one without end
SIZES = ModelConfig(16, 2, 1, 16, 257)
LIVE = "canary"  # the folder that a pickle makes when it is unpickled


@dataclass
class Tally:
    """Tries of one promise: what went wrong, and the most that one of them cost."""

    tries: int = 0
    seconds: float = 0.0
    memory: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.perf_counter)

    def attempt(
        self, name: str, action: Callable[[], object], size: int = 0, must_refuse: bool = False, timed: bool = True
    ) -> object:
        """One try, and one more to measure Python's memory where it must be refused. size: of the file in bytes.
        Returns what the action returned, None if it was refused."""
        self.tries += 1
        begun, value, refused = time.process_time(), None, False
        try:
            with _no_longer_than(HANG):
                value = action()
        except UserError:
            refused = True
        except BaseException as error:  # whatever it is, a user would see a traceback
            self.failures.append(f"{name}: {type(error).__name__}: {str(error)[:100]}")
            return None
        spent = time.process_time() - begun
        self.refused += refused
        if must_refuse and not refused:
            self.failures.append(f"{name}: accepted")
        if refused and timed:
            self.seconds = max(self.seconds, spent)
            if spent > SECONDS * (1 + size / 1e8):
                self.failures.append(f"{name}: {1000 * spent:.0f} ms")
        if refused and must_refuse:
            peak = _memory_of(action)
            self.memory = max(self.memory, peak)
            if peak > 2 * size + FLOOR:
                self.failures.append(f"{name}: {peak / 2**20:.0f} MiB for a file of {size / 2**20:.1f}")
        return value

    def line(self, promise: str) -> Line:
        detail = f"{self.refused} refused, the slowest in {1000 * self.seconds:.0f} ms of processor time"
        detail += f", at most {self.memory / 2**20:.1f} MiB of Python's memory" if self.memory else ""
        detail += "".join(f"; {failure}" for failure in self.failures[:5])
        return Line(promise, self.tries, len(self.failures), time.perf_counter() - self.begun, detail)


def _memory_of(action: Callable[[], object]) -> int:
    """The bytes that Python takes at its peak for something that is refused."""
    tracemalloc.start()
    try:
        with contextlib.suppress(UserError):
            action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@contextlib.contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- folders to spoil -------------------------------------------------------------------------------------------------


def write_run(folder: Path) -> Path:
    """A model's folder as a run leaves it, with a vocabulary of bytes alone."""
    folder.mkdir(parents=True)
    save_model(Transformer(SIZES), folder)
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return folder


def write_gpt2(folder: Path) -> Path:
    """The same sizes as a folder in Hugging Face's layout."""
    folder.mkdir(parents=True)
    model = Transformer(ModelConfig(16, 2, 1, 16, 257, lm_head=LMHeadConfig(tied=True)))
    save_file(to_huggingface(model.state_dict(), 1, tied=True), folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 16, "vocab_size": 257}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return folder


# --- pickles ----------------------------------------------------------------------------------------------------------


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def pickles(canary: Path) -> dict[str, tuple[bytes, Callable[[io.BytesIO], object]]]:
    """File name -> content of six containers, each with a live canary; and how one should never be loaded, which is the
    control that its canary is alive."""

    def saved(**options: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save({"weight": Canary(canary)}, buffer, **options)
        return buffer.getvalue()

    def unpack(file: io.BytesIO) -> object:
        with tarfile.open(fileobj=file) as archive:
            return pickle.loads(archive.extractfile("pickle").read())  # type: ignore[union-attr]

    plain = pickle.dumps({"weight": Canary(canary)})
    tar, array = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            member = tarfile.TarInfo(name)
            member.size = len(plain)
            archive.addfile(member, io.BytesIO(plain))
    np.save(array, np.array([Canary(canary)], dtype=object), allow_pickle=True)
    load = partial(torch.load, weights_only=False)
    return {
        "model.pt": (saved(), load),
        "legacy.pt": (saved(_use_new_zipfile_serialization=False), load),
        "model.tar": (tar.getvalue(), unpack),
        "pytorch_model.bin": (saved(), load),
        "renamed.safetensors": (plain, pickle.load),
        "array.npy": (array.getvalue(), partial(np.load, allow_pickle=True)),
    }


def check_pickles(folder: Path) -> Line:
    """No container of a pickle runs code, whatever it is called and wherever it lies."""
    tally, canary = Tally(), folder / LIVE
    folder.mkdir(parents=True)
    for name, (content, load) in pickles(canary).items():
        load(io.BytesIO(content))
        canary.rmdir()  # it was alive
        for label, action in _ways(folder / name.strip("."), name, content):
            tally.attempt(f"{name} as {label}", action, len(content), timed=False)
            if canary.exists():
                tally.failures.append(f"{name} as {label}: its code ran")
                canary.rmdir()
    return tally.line("pickles in 6 containers never run")


def _ways(folder: Path, name: str, content: bytes) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every way in which a user can name this content as a model or as a corpus."""
    cache = folder / "cache"

    def place(*parts: str) -> Path:
        path = folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    for kind, write in (("run", write_run), ("gpt2", write_gpt2)):
        sound = write(folder / kind)
        beside = shutil.copytree(sound, folder / f"{kind} beside")
        (beside / "model.safetensors").unlink()
        (beside / name).write_bytes(content)
        yield f"only weights of a {kind}", partial(open_model, beside)
        for spoilt in ("model.safetensors", *(f"{part}.json" for part in ("config", "vocab", "tokenizer", "run"))):
            path = shutil.copytree(sound, folder / f"{kind} {spoilt}")
            (path / spoilt).write_bytes(content)
            yield f"{spoilt} of a {kind}", partial(open_model, path)
        yield f"run.json of a {kind}, to be listed", partial(read_record, path)
    yield "a model by itself", partial(open_model, place("model", name))
    yield "a corpus", _corpus(place("corpus", name), cache)
    for ending in (".txt", ".jsonl", ".bin", ".json"):
        yield f"a corpus {ending}", _corpus(place("corpora", f"x{ending}"), cache)
    yield "a folder of texts", _corpus(folder / "corpora", cache)
    for split in ("train", "dev", "test"):
        place("tokens", f"{split}.bin")
    yield "token files", _corpus(folder / "tokens", cache)
    place("tokens", "index.json")
    yield "token files with an index", _corpus(folder / "tokens", cache)


def _corpus(path: Path | str, cache: Path) -> Callable[[], object]:
    return lambda: open_corpus(str(path), cache=cache, progress=False)


# --- headers of safetensors files -------------------------------------------------------------------------------------


def headers(whole: bytes) -> dict[str, bytes]:
    """16 crafted files, made from one that is sound."""
    length = int.from_bytes(whole[:8], "little")
    entries: dict[str, Any] = json.loads(whole[8 : 8 + length])
    data = whole[8 + length :]
    names = [name for name in entries if name != "__metadata__"]
    first, second = sorted(names, key=lambda name: entries[name]["data_offsets"])[:2]

    def changed(name: str, **fields: Any) -> bytes:
        return seal(json.dumps(entries | {name: entries[name] | fields}).encode(), data)

    begin, end = entries[first]["data_offsets"]
    text = json.dumps(entries)
    nothing = ",".join(f'"t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(200_000))
    values = bytearray(data)
    values[begin : begin + 4] = struct.pack("<f", float("nan"))
    return {
        "empty": b"",
        "length 2^63": struct.pack("<Q", 2**63) + whole[8:],
        "longer than the file": struct.pack("<Q", len(whole)) + whole[8:],
        "no JSON": seal(b"not json" * 20, data),
        "no UTF-8": seal(
            text.encode().replace(b"backbone", b"back\xff\xfene", 1).replace(b"wte", b"\xff\xfee", 1), data
        ),
        "overlap": changed(second, data_offsets=[begin, end], shape=entries[first]["shape"]),
        "hole": seal(json.dumps({n: e for n, e in entries.items() if n != first}).encode(), data),
        "shape overflow": changed(first, shape=[2**62, 2**62]),
        "negative": changed(first, shape=[-1, -(end - begin) // 4]),
        "shape and bytes": changed(first, shape=[*entries[first]["shape"], 2]),
        "dtype": changed(first, dtype="F31"),
        "trailing bytes": whole + b"\0",
        "metadata": seal(json.dumps(entries | {"__metadata__": {"format": 1}}).encode(), data),
        "nesting": seal(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", data),
        "200,000 tensors": seal(f"{{{nothing}}}".encode(), b""),
        "not a number": whole[: 8 + length] + bytes(values),
    }


def seal(header: bytes, data: bytes) -> bytes:
    """A safetensors file of a header and data."""
    return struct.pack("<Q", len(header)) + header + data


LIKELY = b'0123456789{}[]":, abcFIU_.'  # bytes of a header: most others are no JSON at once


def check_headers(folder: Path, count: int) -> list[Line]:
    """Crafted headers are refused in little time and memory. A header with a changed byte is refused, or names the same
    tensors; so many are tried."""
    crafted, mutated, chance = Tally(), Tally(), random.Random(0)
    for path in (write_run(folder / "run"), write_gpt2(folder / "gpt2")):
        expected = open_model(path)[0].state_dict()  # and nothing is imported while time is measured
        weights = path / "model.safetensors"
        whole = weights.read_bytes()
        for name, content in headers(whole).items():
            weights.write_bytes(content)
            crafted.attempt(f"{path.name}, {name}", partial(open_model, path), len(content), must_refuse=True)
        for _ in range(count // 2):
            at = chance.randrange(8 + int.from_bytes(whole[:8], "little"))
            changed = bytearray(whole)
            changed[at] = chance.choice(LIKELY) if chance.random() < 0.5 else chance.randrange(256)
            weights.write_bytes(changed)
            opened = mutated.attempt(f"{path.name}, byte {at}", partial(open_model, path), len(whole))
            found = expected if opened is None else opened[0].state_dict()  # type: ignore[index]
            same = found.keys() == expected.keys() and all(torch.equal(found[name], t) for name, t in expected.items())
            mutated.failures += [] if same else [f"{path.name}, byte {at}: other weights"]
    return [
        crafted.line("16 crafted safetensors headers are refused"),
        mutated.line("safetensors headers with a changed byte"),
    ]


# --- configs ----------------------------------------------------------------------------------------------------------


def configs() -> list[tuple[str, str, bytes]]:
    """Configs that are no model's: (label, kind of folder, content of config.json)."""
    own: dict[str, Any] = {"model_type": "hectogpt", **dump(SIZES)}
    theirs: dict[str, Any] = {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 16}
    theirs["vocab_size"] = 257
    ours: list[dict[str, Any]] = [
        {"d_model": 10**9, "n_heads": 1}, {"vocab_size": 10**12}, {"context_length": 2**62}, {"d_model": 10**30},
        {"n_layers": 10**5}, {"n_layers": -1}, {"inputs": [{"type": "EmbeddingNorm"}] * 10**4}, {"norm": None},
        {"norm": {"type": ["LayerNorm"]}}, {"norm": {"type": "Module"}}, {"d_model": True}, {"d_model": "16"},
        {"d_model": 16.0}, {"n_heads": 3}, {"vocab_size": None}, {"more": 1}, {"attention_scale": 10**400},
        {"inputs": [{"type": "NgramHash", "order": 10**9}]}, {"lm_head": []}, {"lm_head": {"soft_cap": -1.0}},
        {"attention_parts": [{"type": "Rotary", "fraction": 1e9}]}, {"pointer": {"type": "Canary"}}, {"x" * 10**5: 0},
        {"positions": {"type": "SinusoidalPositions"}, "context_length": 10**6, "d_model": 10**5, "n_heads": 1},
    ]  # fmt: skip
    others: list[dict[str, Any]] = [
        {"n_layer": 10**9}, {"n_embd": {"a": 1}, "n_inner": 4}, {"vocab_size": 1e2}, {"n_positions": 0}, {"n_head": 3},
        {"n_inner": "64"}, {"activation_function": "relu"}, {"scale_attn_by_inverse_layer_idx": True},
        {"layer_norm_epsilon": 1}, {"model_type": ["gpt2"]}, {"tie_word_embeddings": "yes"},
        {"auto_map": {"AutoModel": "x.Y"}, "n_layer": 2},
    ]  # fmt: skip
    text = json.dumps(own)
    raw = [
        ("nothing", b""), ("a list", b"[]"), ("half", text.encode()[:-20]), ("no UTF-8", b"\xff\xfe" + text.encode()),
        ("nesting", b"[" * 100_000), ("nested objects", b'{"a":' * 100_000), ("2 MB", text.encode() + b" " * (2 << 20)),
        ("NaN", text.replace("16", "NaN", 1).encode()), ("1e999", text.replace("16", "1e999", 1).encode()),
        ("digits", b'{"a": ' + b"9" * 5000 + b"}"),
    ]  # fmt: skip
    found = [(f"run {str(change)[:60]}", "run", json.dumps(own | change).encode()) for change in ours]
    found += [(f"gpt2 {str(change)[:60]}", "gpt2", json.dumps(theirs | change).encode()) for change in others]
    return found + [(f"run, {label}", "run", content) for label, content in raw]


def check_configs(folder: Path) -> Line:
    """Configs that are no model's are refused, in little time and memory."""
    tally = Tally()
    paths = {"run": write_run(folder / "run"), "gpt2": write_gpt2(folder / "gpt2")}
    for path in paths.values():
        open_model(path)
    for label, kind, content in configs():
        config = paths[kind] / "config.json"
        config.write_bytes(content)
        tally.attempt(label, partial(open_model, paths[kind]), len(content), must_refuse=True)
    sound = write_run(folder / "sound")
    for label, spoil in ODD_FILES.items():
        for name in ("config.json", "model.safetensors", "merges.txt", "tokenizer.json"):
            path = shutil.copytree(sound, folder / f"{label} as {name}")
            (path / name).unlink(missing_ok=True)
            spoil(path / name)
            tally.attempt(f"{label} as {name}", partial(open_model, path), must_refuse=True)
    return tally.line("configs that are no model's, and files that are none")


ODD_FILES: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path),
}


# --- corpora ----------------------------------------------------------------------------------------------------------


def corpora(folder: Path) -> Iterator[tuple[str, Path | str]]:
    """Odd corpora: (label, its name)."""
    names = ["", "x" * 5000, "y/" * 3000, "~nosuchuser/x", "hf:", "hf:../../x", "hf:a/b/c", "hf:" + "a" * 5000, "hf:\0",
             "a\0b", "\udc80", "/dev/zero", "/dev/null", "/nope", "x.jsonl:y", "-rf", "\x1b]0;title\x07"]  # fmt: skip
    yield from (("the name " + repr(name)[:20], name) for name in names)
    text = b"The state of our union is strong, and its people are free. " * 400
    contents = {
        "empty.txt": b"", "blank.txt": b" \n\t", "short.txt": b"a few words", "png.txt": b"\x89PNG\r\n\x1a\n" + text,
        "nul.txt": text + b"\0" + text, "latin.txt": text + b"caf\xe9 " + text, "cut.txt": text + b"\xe2\x82",
        "utf16.txt": text.decode().encode("utf-16"), "utf16le.txt": text.decode().encode("utf-16-le"),
        "crlf.txt": text.replace(b". ", b".\r\n"), "bom.txt": b"\xef\xbb\xbf" + text, "x.json": b"[]",
        "surrogate.txt": text + b"\xed\xa0\x80" + text, "separator.txt": b"<|endoftext|>" * 2000,
        "deep.jsonl": b"[" * 100_000, "half.jsonl": b'{"text": "a"}\n{"text": ', "none.jsonl": b'{"a": 1}\n',
        "lone.jsonl": b'{"text": "\\ud800"}\n', "digits.jsonl": b'{"text": ' + b"9" * 5000 + b"}\n",
        "odd.bin": b"\x01\x00\x02", "range.bin": b"\xff\xff" * 9, "none.bin": b"",
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        yield name, folder / name
    for name in ("pipe", "endless", "loop"):
        ODD_FILES[name](folder / name)
        yield name, folder / name


def check_corpora(folder: Path) -> Line:
    """Odd corpora are refused, or read as they are."""
    tally, cache = Tally(), folder / "cache"
    here = folder / "texts"
    here.mkdir(parents=True)
    with contextlib.suppress(UserError):
        open_corpus("nope", cache=cache)  # once, for the vocabulary
    for label, name in corpora(here):
        size = os.path.getsize(name) if isinstance(name, Path) and name.is_file() else 0
        tally.attempt(label, _corpus(name, cache), size)
    return tally.line("odd corpora are refused or read as they are")


def check(quick: bool) -> list[Line]:
    """All of them. quick: fewer changed bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return [
            check_pickles(folder / "pickles"),
            *check_headers(folder / "headers", 500 if quick else 2000),
            check_configs(folder / "configs"),
            check_corpora(folder / "corpora"),
        ]
