"""`hectogpt grade --container`: the processes of a submission in a container; and the image that this takes.

The command line is data, `Container.program`; hectogpt/worker.py runs it. What is asked and answered goes through the
container's standard streams, as with a child on this machine.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hectogpt import errors, files
from hectogpt.cli.grade_package import package_files, requirements
from hectogpt.errors import UserError
from hectogpt.worker import Program

IMAGE = "hectogpt-grade"
WORK = "/work"  # the only folder in the container that can be written to, in memory
TORCH = 1 << 30  # bytes for Python and torch, beside what the submission may take
CONTAINERFILE = """\
# The image that `hectogpt grade --container ENGINE` runs submissions in. Build it once, with the network:
#     podman build -t {image} .        or: docker build -t {image} .
FROM docker.io/library/python:3.12-slim
COPY requirements.txt /opt/hectogpt/
RUN pip install --no-cache-dir -r /opt/hectogpt/requirements.txt
ENV MPLCONFIGDIR=/opt/matplotlib
RUN python -c "import matplotlib.font_manager"
COPY hectogpt /opt/hectogpt/hectogpt
ENV PYTHONPATH=/opt/hectogpt
RUN python -m compileall -q /opt/hectogpt
"""


@dataclass(frozen=True)
class Container:
    """engine: podman or docker. memory: bytes, in all. seconds: after which a container ends by itself, even if nobody
    is left to end it."""

    engine: str
    image: str
    memory: int
    seconds: float

    def program(self, folder: Path) -> Program:
        """How a child is started that sees `folder`, read-only, as its submission.

        No network, no other programs' files, no rights, not root. Two file systems: the image, read-only, and one of 64
        MB in memory. The image is never fetched: a name that is mistyped is an error.
        """
        from hectogpt.grade.runner import SUBMISSION, own_variables

        name = f"hectogpt-grade-{os.getpid()}-{secrets.token_hex(6)}"
        options = [
            *("--rm", "--interactive", "--name", name, "--pull", "never", "--log-driver", "none"),
            *("--network", "none", "--read-only", "--tmpfs", f"{WORK}:rw,noexec,nosuid,nodev,size=64m,mode=1777"),
            *("--volume", f"{folder}:{SUBMISSION}:ro,Z", "--workdir", WORK),
            *("--user", "65534:65534", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
            *("--memory", str(self.memory), "--memory-swap", str(self.memory), "--cpus", "1", "--pids-limit", "64"),
        ]
        for variable, value in own_variables(WORK).items():
            options += ["--env", f"{variable}={value}"]
        child = [
            "timeout",
            "-s",
            "KILL",
            f"{self.seconds:.0f}",
            "python",
            "-m",
            "hectogpt.worker",
            "hectogpt.grade.child",
        ]
        return Program(
            (self.engine, "run", *options, self.image, *child),
            (self.engine, "rm", "--force", name),
        )


def elsewhere(engine: str, image: str, memory: int, total_seconds: float) -> Callable[[Path], Program]:
    """What `Limits.elsewhere` takes, tried out. Raises UserError if no child comes up in a container."""
    from hectogpt.grade.runner import Limits, try_out
    from hectogpt.grade.settings import version

    container = Container(engine, image, memory + TORCH, total_seconds + 60)
    build = f"hectogpt grade --make-container DIR, then {engine} build -t {image} DIR"
    if shutil.which(engine) is None:
        raise UserError(
            f"there is no program {engine}",
            why="submissions are to run in its containers",
            fix=f"install {engine}; or leave --container out: what a child process keeps out is in docs/grading.md",
        )
    found, ending = try_out(Limits(memory=memory, elsewhere=container.program))
    if not found:
        said = " ".join(ending.last_words.splitlines()[-1:]) or f"the child {ending.how}"
        raise UserError(f"no grader starts in a container of the image {image}", why=said, fix=build)
    if found != version():
        raise UserError(
            f"the image {image} holds another version of the grader", why=f"{found}, here {version()}", fix=build
        )
    return container.program


def make_container(folder: Path) -> None:
    """Write a folder to build the image from: a Containerfile, what it installs, and this package. Raises UserError for
    a folder that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something already", fix="give a new folder", kept="what is in it")
    recipe = CONTAINERFILE.format(image=IMAGE).encode()
    content = {"Containerfile": recipe, "Dockerfile": recipe}  # the second is docker's name for it
    content |= {"requirements.txt": requirements().encode(), **package_files()}
    new = files.temporary_folder(folder.absolute())
    try:
        for name, data in content.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(data)
        files.replace_folder(new, folder.absolute())
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise UserError(f"cannot write {folder}", why=error.strerror or str(error), code=errors.STORAGE) from None
