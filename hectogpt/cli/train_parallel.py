"""`hectogpt train` under torchrun. Every process comes here: rank 0 does what one alone does, the others follow it.

Rank 0 prints. It names the failure of another process with its cause, which is in status.json too; if it cannot, rank 1
does. A process that has not found the others says so itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hectogpt import errors
from hectogpt.cli.train import DEFAULT, TrainOptions
from hectogpt.cli.train_run import finish, settle
from hectogpt.cli.train_run import train as train_alone
from hectogpt.errors import UserError
from hectogpt.progress import Progress
from hectogpt.run_records import RUN
from hectogpt.serialization import dump
from hectogpt.training.checkpoint import file_hashes
from hectogpt.training.describing import is_modified
from hectogpt.training.full_run import follow
from hectogpt.training.launch import Launch, NotJoinedError, PeerError, write_status
from hectogpt.training.leaves import choose_leaves
from hectogpt.training.parallel import World, recorded
from hectogpt.training.run import Run, load_run
from hectogpt.training.run_folder import read_run
from hectogpt.training.task import Resume, find_corpus

FOLDER = "folder"  # under which the run's folder is kept for attempts after a failure


def train(launch: Launch, run: Run, name: str | None, recipe: Run, argv: list[str], options: TrainOptions) -> None:
    """Train as one of several processes. Raises UserError at rank 0, SystemExit with the same code at the others."""
    try:
        recorded(lambda: _train(launch, run, name, recipe, argv, options))()
    except Exception as error:
        failure = error.failure if isinstance(error, PeerError) else {}
        silent = failure.get("rank") == 0 and "wordless" in failure  # rank 0 cannot print it
        if launch.rank == 0 or isinstance(error, NotJoinedError) or (launch.rank == 1 and silent):
            raise
        if "--debug" in sys.argv:
            raise
        raise SystemExit(error.code if isinstance(error, UserError) else errors.BUG) from None


def _train(launch: Launch, run: Run, name: str | None, recipe: Run, argv: list[str], options: TrainOptions) -> None:
    if options.parallel == "fsdp":
        raise UserError(
            "--parallel fsdp is gone: hectogpt shards no weights",
            why="a model that does not fit into one GPU is beyond a hundred steps on a laptop",
            fix="--parallel ddp; docs/scale.md says what serves beyond",
        )
    world = World(launch, options.dist_timeout, options.reduction == "fast")
    with world, _status_written(world):
        config = dump(run)
        facts = {"code": file_hashes() | {"torch": torch.__version__}, "idea file": config.pop("ideas")}
        world.agree(facts | {"configuration": config, "options": [options.reduction, options.dist_timeout]})
        progress = Progress(options.quiet or not world.is_first)
        where: Resume | None = None

        def decide() -> dict[str, Any] | None:
            nonlocal where
            found = _again(world) or _settle(run, name, recipe, argv, options, progress)
            if found is None:
                return None
            where, chosen = found
            data: dict[str, Any] = dump(replace(chosen, data=choose_leaves(chosen.data, world.size)))
            return data

        decided = world.share(decide)
        if decided is None:
            world.meet("the end")  # rank 0 may keep the store
            return
        shared = load_run(decided)
        corpus = find_corpus(shared, progress, options.encoding, options.force, launch.local_rank == 0)
        world.agree({"data": corpus.sha256, "tokenizer": corpus.tokenizer.sha256})
        if not world.is_first:
            follow(shared, corpus, world)
            return
        modified = where is None and is_modified(recipe, run)
        finish(shared, corpus, progress, name or DEFAULT, modified, options, where, world)


def _again(world: World) -> tuple[Resume, Run] | None:
    """The run that an earlier attempt of this launch has begun, if there was one."""
    folder = world.kept(FOLDER) if world.launch.attempt else None
    if folder is None or not (Path(folder) / RUN).exists():
        return None
    return Resume(Path(folder)), read_run(Path(folder))


def _settle(
    run: Run, name: str | None, recipe: Run, argv: list[str], options: TrainOptions, progress: Progress
) -> tuple[Resume | None, Run] | None:
    """What the command line means; None if nothing is to be trained."""
    if options.resume is not None:
        return settle(run, name, recipe, argv, options, progress)
    if options.extend is not None:
        raise UserError("--extend without --resume", why="it adds steps to a run that is there", fix="--resume RUN")
    if options.dry_run:
        train_alone(run, name or DEFAULT, is_modified(recipe, run), options)
        return None
    return None, run


@contextmanager
def _status_written(world: World) -> Iterator[None]:
    """When a process fails, write the first cause into the run's folder: at rank 0, or at rank 1 if rank 0 is gone."""
    try:
        yield
    except BaseException as error:
        failure = world.publish(error)
        if failure is not None:
            gone = isinstance(error, PeerError) and failure["rank"] == 0
            if world.rank == int(gone) and (folder := world.kept(FOLDER)) is not None:
                write_status(Path(folder), failure, world.size, world.launch.attempt)
        raise
