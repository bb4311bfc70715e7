"""`hectogpt doctor`: facts about this machine and installation, and missing packages."""

from __future__ import annotations

import importlib
import platform
import re
import sys
from importlib.metadata import distributions
from pathlib import Path

import hectogpt
from hectogpt import errors, files, hardware, process, torch_private
from hectogpt.cli.console import show
from hectogpt.cli.options import DoctorOptions
from hectogpt.display import facts_text
from hectogpt.errors import UserError
from hectogpt.kernels.build import describe

EXTRAS = ("hf", "vocab", "gguf", "ray", "tensorboard")  # optional dependencies for users
REQUIREMENT = re.compile(r'(?P<name>[\w.-]+)[^;]*(;.*extra == "(?P<extra>\w+)")?')


def main(options: DoctorOptions) -> None:
    """Print the facts. Raises UserError (code 1) at the end if `hectogpt train` cannot run."""
    missing = find_missing()
    facts = find_facts()
    unusable = facts["torch"] if "torch" not in sys.modules else ""
    needed = missing.pop("")
    ready = not (needed or unusable)
    lines = facts_text("This machine", facts).splitlines()
    for extra, packages in missing.items():
        lines.append(
            f"not installed: {', '.join(packages)}; python -m pip install 'hectogpt[{extra}]'"
        )
    lines += ["Nothing that `hectogpt train` needs is missing."] if ready else []
    show(
        options.json,
        {"ready": ready, "facts": facts, "missing": needed, "extras_missing": missing},
        lines,
    )
    if not ready:
        why = f"not installed: {', '.join(needed)}" if needed else f"torch {unusable}"
        fix = f"python -m pip install --upgrade {' '.join(needed or ['torch'])}"
        raise UserError("`hectogpt train` cannot run here", why=why, fix=fix, code=errors.BUG)


def find_missing() -> dict[str, list[str]]:
    """Find missing packages. Returns extra -> names; "" is for those that training needs."""
    missing: dict[str, list[str]] = {"": []}
    lines = sorted(
        {line for package in distributions(name="hectogpt") for line in package.requires or ()}
    )
    for found in filter(None, map(REQUIREMENT.match, lines)):
        name = found["name"]
        extra = found["extra"] or ""
        if extra in ("", *EXTRAS) and not list(distributions(name=name)):
            missing.setdefault(extra, []).append(name)
    return missing


def find_facts() -> dict[str, str]:
    """The name and value of each line, in the order of the output."""
    folder = Path(hectogpt.__file__).parent
    revision = process.revision(folder)
    commit = (
        f", commit {revision.commit[:12]}{' with changes' if revision.dirty else ''}"
        if revision.commit
        else ""
    )
    features = (
        ", ".join(hardware.cpu_features()) or f"{platform.machine()}, no known vector instructions"
    )
    usable = hardware.usable_cores()
    physical = hardware.physical_cores()
    version, gpu = torch_texts()
    return {
        "hectogpt": f"{hectogpt.__version__}{commit}, in {folder}",
        "Python": f"{platform.python_version()}, {sys.executable}",
        "torch": version,
        "processor": f"{hardware.cpu_name()} ({features})",
        "cores": f"{physical} physical, {usable} logical; training uses {physical}, one thread on "
        "each (--threads)",
        "kernels": describe(),  # compiles them if there are none yet
        "memory": f"{hardware.free_memory() / 1e9:.1f} GB free",
        "GPU": gpu,
        "cache": f"{files.cache_dir().absolute()}, "
        f"{files.free_bytes(files.cache_dir()) / 1e9:.1f} GB free",
    }


def torch_texts() -> tuple[str, str]:
    """The version of torch, or why it cannot be used, and the GPUs that it finds."""
    try:
        torch = importlib.import_module("torch")
    except (
        Exception
    ) as error:  # OSError where a shared library is missing, and whatever a broken package raises
        return f"cannot be imported: {errors.first_line(error)}", "not known without torch"
    odd = torch_private.untested()
    gpu = "none that this torch can use: training uses the CPU"
    if torch.cuda.is_available():
        named = [
            hardware.device_name(f"cuda:{number}") for number in range(torch.cuda.device_count())
        ]
        gpu = f"{', '.join(named)}; training uses the first one (--device)"
    return f"{torch.__version__}{f'; {odd}' if odd else ''}", gpu
