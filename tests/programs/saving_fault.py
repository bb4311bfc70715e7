"""A user's own file that changes nothing about the run. When it is imported, the process that $FAULT names gets a fault
in saving: its kind, the rank, and the number of the checkpoint, from 1."""

import ctypes
import os
import resource
import signal
import time
from dataclasses import replace

import safetensors.torch

from hectogpt.training import sharded_checkpoint

KIND, RANK, NUMBER = os.environ.get("FAULT", "none 0 0").split()
HERE = os.environ.get("RANK") == RANK
calls = 0


def at_its_turn(act):
    """A function that does something when its turn has come, then what it is to do."""

    def replaced(original):
        def call(*arguments, **keywords):
            global calls
            calls += 1
            if calls == int(NUMBER):
                act()
            elif KIND == "full":
                limit_files(resource.RLIM_INFINITY)
            return original(*arguments, **keywords)

        return call

    return replaced


def limit_files(size):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing then fails with EFBIG
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def see_another_disk():
    """This process sees an empty disk at ./disk, as if it were on another machine."""
    libc = ctypes.CDLL(None, use_errno=True)
    private, here = 1 << 18 | 1 << 14, os.fsencode(os.path.abspath("disk"))
    for failed in (
        libc.unshare(0x00020000),
        libc.mount(b"none", b"/", None, private, None),
        libc.mount(b"tmpfs", here, b"tmpfs", 0, None),
    ):
        if failed:
            raise OSError(ctypes.get_errno(), "no disk of its own")


if HERE and KIND in ("killed", "hung", "full", "stopped", "ended"):
    acts = {
        "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "hung": lambda: time.sleep(1000),
        "full": lambda: limit_files(1000),
        "stopped": lambda: os.kill(os.getpid(), signal.SIGTERM),
        "ended": lambda: (os.kill(os.getpid(), signal.SIGTERM), limit_files(1000)),
    }
    safetensors.torch.save = at_its_turn(acts[KIND])(safetensors.torch.save)
if HERE and KIND == "late":  # all files are there, the manifest is not
    kill = at_its_turn(lambda: os.kill(os.getpid(), signal.SIGKILL))
    sharded_checkpoint.write_manifest_of = kill(sharded_checkpoint.write_manifest_of)
if HERE and KIND == "blind":
    see_another_disk()


def same(run):
    return replace(run)
