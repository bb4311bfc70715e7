"""Compute any step of a run again, for the model after it or for a branch that starts there.

    history = History(Path("runs/minute"))
    model, tokenizer = history.model_after(37)

The state after a step is a pure function of the run, so no file needs to keep it. It is computed
from the nearest earlier state: a checkpoint on disk, the trunk of a branch, or the initial
weights. Each computed step must reproduce the loss and the gradient norm in its row of
metrics.jsonl, and the last one must also reproduce the recorded hash of the weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from hectogpt import errors
from hectogpt.data import Tokenizer, open_corpus
from hectogpt.display import Note
from hectogpt.errors import CheckpointError, UserError
from hectogpt.idea_file import read_idea
from hectogpt.interop.open import find_folder, import_ideas, open_model
from hectogpt.model import Transformer
from hectogpt.model.weights import hash_weights, model_of, saved_tensors
from hectogpt.run_records import (
    CHECKPOINTS,
    HASH,
    METRICS,
    RUN,
    object_of,
    read_object,
    read_rows,
    read_summary,
    text_of,
)
from hectogpt.serialization import dump
from hectogpt.training import precision, setup
from hectogpt.training.checkpoint import Checkpoint, Checkpoints
from hectogpt.training.events import Ended, Stream, events, session_of
from hectogpt.training.run import Run
from hectogpt.training.run_folder import Branch, read_branch, read_run, read_steps
from hectogpt.training.session import Session, check_fits


def open_at(
    source: str | Path,
    step: int | None,
    ideas: Sequence[Path | str] = (),
    note: Note = warnings.warn,
) -> tuple[Transformer, Tokenizer]:
    """Open a model as `open_model` does, or the model after any step of a run.

    Args:
        source: a folder, or a name on the hub.
        step: the step of a run; None opens its newest weights.
        ideas: as for `open_model`.
        note: called with a sentence about where the weights come from.

    Raises UserError as `open_model` and `History.model_after` do.
    """
    folder = find_folder(source, download=True)
    if step is None or not (folder / RUN).is_file():
        return open_model(source, step=step, download=True, idea=ideas, note=note)
    return History(folder, ideas, note).model_after(step)


@dataclass
class History:
    """The states of a run after each of its steps.

    Attributes:
        folder: the run's folder.
        ideas: the user's own files that may be imported, as for `open_model`.
        note: called with a message before steps are computed again, and after their check.
    """

    folder: Path
    ideas: Sequence[Path | str] = ()
    note: Note = warnings.warn
    _session: Session | None = field(default=None, init=False)  # after the last step computed
    _stream: Stream | None = field(default=None, init=False)
    _machine: Mapping[str, Any] = field(default_factory=dict, init=False)  # as recorded

    def __post_init__(self) -> None:
        self.record = read_object(self.folder / RUN)
        self.branch = read_branch(self.folder)
        self.steps = read_steps(self.folder)
        self.hashes = {0: text_of(self.record.get(HASH))}
        self.hashes |= {
            row["step"]: text_of(row.get(HASH)) for row in read_rows(self.folder / METRICS)
        }
        self.checkpoints = Checkpoints(self.folder / CHECKPOINTS)

    @cached_property
    def run(self) -> Run:
        """The run. Raises UserError (CHECKPOINT), also if it needs a file that `ideas` lacks."""
        import_ideas(self.folder, [read_idea(path) for path in self.ideas])
        return read_run(self.folder)

    def model_after(self, step: int) -> tuple[Transformer, Tokenizer]:
        """The model after a step, on the CPU and in evaluation mode, and its tokenizer.

        Reads a checkpoint, or the weights at the run's end; any other step is computed again.

        Raises UserError: USAGE for a step that the run has not taken, EXACTNESS if this machine
        does not reproduce the recorded numbers, DATA if the run's corpus is missing.
        """
        if self.keeps(step):
            return open_model(self.folder, step=step, idea=self.ideas, note=self.note)
        session = self.session_after(step)
        weights = saved_tensors(session.model)
        model = model_of(session.run.model, weights, self.folder / RUN)
        return model, session.corpus.tokenizer

    def keeps(self, step: int) -> bool:
        """True if a file in the folder holds the weights after this step."""
        if step in self.checkpoints.steps() and not self.checkpoints.problem(step):
            return True
        is_last = step == read_summary(self.folder).get("steps")
        return is_last and (self.folder / "config.json").is_file()

    def check(self, step: int) -> None:
        """Raise UserError for a step that is not recorded."""
        if not 0 <= step <= len(self.steps):
            why = f"its {METRICS} has steps 1 to {len(self.steps)}"
            raise UserError(f"no step {step} in {self.folder}", why=why)

    def session_after(self, step: int) -> Session:
        """The run after a step, with its optimizer, computed from the nearest earlier state.

        Calls with ascending steps continue one computation. Raises like `model_after`.
        """
        if self.branch is not None and step <= self.branch.step:
            return trunk_of(self.branch, self.ideas, self.note).session_after(step)
        earlier = [at for at in self.checkpoints.steps() if at <= step]
        if step not in earlier:
            self.check(step)
        if self._session is None or not max([0, *earlier]) <= self._session.step <= step:
            self._begin(step)
        return self._go_on_to(step)

    def again(self, step: int) -> Session:
        """Compute a step again, even if it has a checkpoint. Raises like `model_after`."""
        self.check(step)
        if self.branch is not None and step <= self.branch.step:
            return trunk_of(self.branch, self.ideas, self.note).again(step)
        self._begin(step - 1)
        return self._go_on_to(step)

    def state_after(self, step: int) -> Checkpoint:
        """The state after a step, as a checkpoint of the run. Raises like `model_after`."""
        if self.branch is not None and step == self.branch.step:
            return branch_state(self.branch, self.run, self.ideas, self.note)
        at = self.session_after(step).checkpoint()
        return replace(at, facts=at.facts | {"run": dump(self.run)})

    def _go_on_to(self, step: int) -> Session:
        """Continue the computation up to a step, and compare it with the recorded rows."""
        session = self._session
        assert session is not None
        assert self._stream is not None
        if n := step - session.step:
            seconds = sum(one.seconds for one in self.steps[session.step : step])
            where = f"{self.folder} again, from step {session.step}"
            self.note(f"computing {n} step(s) of {where}; training took {seconds:.1f} s")
        for before in self.steps[session.step : step]:
            event = next(self._stream)
            if isinstance(event, Ended):
                assert event.error is not None
                raise event.error
            now = session.done[-1]
            if (now.loss, now.grad_norm) != (before.loss, before.grad_norm):
                what = f"loss {now.loss!r}, gradient norm {now.grad_norm!r}; recorded: "
                what += f"{before.loss!r}, {before.grad_norm!r}"
                raise self._differs(now.number, what)
        found = hash_weights(session.model)
        recorded = self.hashes.get(step)
        if recorded not in (None, found):
            raise self._differs(step, f"hash of the weights {found}; recorded: {recorded}")
        proof = f"the hash of the weights is the recorded one, {found}"
        if recorded is None:
            proof = "no hash is recorded; the losses are the recorded ones"
        self.note(f"step {step} of {self.folder}: {proof}")
        return session

    def _begin(self, most: int) -> None:
        """Open the run at its newest intact state up to the step `most`."""
        at = self.checkpoints.newest(self.note, most)
        run = self.run
        if at is None and self.branch is not None:
            at = self.state_after(self.branch.step)
        then = self.record if at is None else at.facts
        self._machine = object_of(then.get("machine"))
        if at is None:
            run = _pinned(run, self._machine)
        self._stream = events(run, open_corpus(run.corpus), at)
        self._session = session_of(self._stream)
        check_fits(self._session.step, self.run, then, self._session.facts())

    def _differs(self, step: int, what: str) -> UserError:
        assert self._session is not None
        found = self._session.differences({"machine": self._machine})
        why = ", ".join(text for text in found if " None -> " not in text)
        fix = "run it again: if the result changes, suspect memory or CPU"
        return UserError(
            f"step {step} of {self.folder} differs from its record: {what}",
            why=why or f"the machine is the same: {METRICS} may be damaged",
            fix="" if why else fix,
            code=errors.EXACTNESS,
        )


def _pinned(run: Run, machine: Mapping[str, Any]) -> Run:
    """The run with the device, dtypes and threads of its start, as far as they exist here."""
    chosen: dict[str, Any] = precision.choose(run, machine).describe()
    names = {name: chosen[name] for name in ("dtype", "head_dtype", "threads")}
    return replace(run, device=chosen["kind"], **names)


# --- branches


def trunk_of(branch: Branch, ideas: Sequence[Path | str], note: Note) -> History:
    """The history of a branch's trunk.

    Raises UserError (CHECKPOINT) if the trunk's folder is missing or holds a different run.
    """
    folder = Path(branch.run)
    trunk = History(folder, ideas, note) if (folder / RUN).is_file() else None
    if trunk is None or branch.weights_hash not in ("", trunk.hashes.get(branch.step)):
        why = "the branch starts from it, and "
        why += "it does not exist" if trunk is None else "now the folder holds a different run"
        raise CheckpointError(f"the trunk {folder}", why=why, fix="put it back")
    return trunk


def branch_state(
    branch: Branch,
    run: Run,
    ideas: Sequence[Path | str] = (),
    note: Note = warnings.warn,
) -> Checkpoint:
    """The state of the trunk after the branch's step, with the settings of the branch.

    The optimizer keeps the trunk's state. Where settings of its groups, such as learning rates,
    differ between the trunk and `run`, those of `run` are used.

    Raises UserError as `History.session_after` does, and if the optimizers do not match.
    """
    session = trunk_of(branch, ideas, note).session_after(branch.step)
    optimizers = [
        session.optimizer.optimizers,
        *(setup.build_optimizer(each, session.model).optimizers for each in (session.run, run)),
    ]
    try:
        for own, before, after in zip(*optimizers, strict=True):
            groups = (one.param_groups for one in (own, before, after))
            for group, old, new in zip(*groups, strict=True):
                plain = {name: v for name, v in new.items() if not isinstance(v, Tensor | list)}
                group |= {name: v for name, v in plain.items() if v != old.get(name)}
    except ValueError:
        raise UserError(
            "the branch has a different kind of optimizer or schedule",
            why="it continues with the state of its trunk's optimizer",
            fix="change only its numbers, such as optim.lr",
        ) from None
    at = session.checkpoint()
    return replace(at, facts=at.facts | {"run": dump(run)})
