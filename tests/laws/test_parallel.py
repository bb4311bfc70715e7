"""A run that several processes share: the same bits for any number of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import forks
import pytest
import torch
from helpers import ROOT, shrunk
from hypothesis import given
from hypothesis import strategies as st

from hectogpt.data import Corpus
from hectogpt.lab.ideas import find_run
from hectogpt.model.inputs import NgramHash
from hectogpt.model.weights import hash_state
from hectogpt.training import setup
from hectogpt.training.checkpoint import Checkpoints
from hectogpt.training.parallel import ALONE, Launch, SharedWorld, World, add_in_tree, choose_leaves, process_counts
from hectogpt.training.run import Data, Run
from hectogpt.training.session import Session

# Child processes that share a run are forked from this one.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def idea(name: str) -> str:
    """FILE.py:FUNCTION of an idea of the literature."""
    return f"{next((ROOT / 'docs' / 'literature').glob(f'*/{name}.py'))}:{name}"


def small(name: str, steps: int) -> Run:
    """A recipe with all its parts, and tokens masked at random, at a small size: chance has to be the same as well."""
    run = shrunk(find_run(f"{idea('masked')}@{name}"), steps, rows=8)
    inputs = tuple(replace(p, rows=200) if isinstance(p, NgramHash) else p for p in run.model.inputs)
    model = replace(run.model, inputs=inputs, d_model=16)  # a width of the kernels
    return replace(run, model=model, data=replace(run.data, leaves=4))


def take_steps(run: Run, corpus: Corpus, world: World, folder: Path, stop: int, saved: int) -> dict[str, Any]:
    """Train from the checkpoint of step `saved` (0: from the start) to step `stop`, and save one there."""
    checkpoints = Checkpoints(folder)
    session = Session.open(run, corpus, checkpoints.load(saved) if saved and world.is_first else None, world)
    next(step for step in session.steps() if step.number == stop)
    assert not any(getattr(module, "sparse", False) for module in session.model.modules())  # others may train it
    if world.is_first and stop < run.steps:
        checkpoints.save(session.checkpoint())
    numbers = [[step.loss.hex(), step.grad_norm.hex()] for step in session.done]
    return {"numbers": numbers, "weights": hash_state(session.model.state_dict())}


def shared(count: int, run: Run, corpus: Corpus, folder: Path, stop: int = 0, saved: int = 0) -> list[Any]:
    """The run to step `stop` in so many processes; 0 stands for one without a world. An answer for each process."""
    port, stop = forks.free_port(), stop or run.steps

    def work(rank: int) -> Any:
        if count == 0:
            return take_steps(run, corpus, ALONE, folder, stop, saved)
        with SharedWorld(Launch(rank, count, rank, count, "127.0.0.1", port, 0, False), 60.0) as world:
            return take_steps(run, corpus, world, folder, stop, saved)

    return forks.values_of([lambda rank=rank: work(rank) for rank in range(count or 1)])


@pytest.mark.parametrize(
    ("name", "steps"), [("top", 4), *(pytest.param(name, 100, marks=pytest.mark.slow) for name in ("baseline", "top"))]
)
def test_one_two_and_four_processes_give_the_same_bits(
    name: str, steps: int, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, norms and weights, by chance too; a run that moves from four to one, to two, to none; dense gradients."""
    monkeypatch.setattr(setup, "NATIVE_FROM", 1)
    run, at = small(name, steps), 0
    found: dict[int | str, Any] = {count: shared(count, run, corpus, tmp_path / str(count)) for count in (0, 2, 4)}
    for count, stop in ((4, steps // 4), (1, steps // 2), (2, steps - 1)):
        shared(count, run, corpus, tmp_path / "moved", stop, at)
        at = stop
    found["moved"] = shared(0, run, corpus, tmp_path / "moved", 0, at)
    monkeypatch.setattr(torch.nn.Embedding, "sparse", property(lambda _: False, lambda *_: None), raising=False)
    found["dense"] = shared(0, run, corpus, tmp_path / "dense")
    (alone,) = found[0]
    assert len({loss for loss, _ in alone["numbers"]}) == steps
    assert [how for how, answers in found.items() if answers != [alone] * len(answers)] == []


DEFAULT = ("small_first", "sam")
SEAMS = [*DEFAULT, *["averaged", "short_first", "multi_token", "orthogonal", "parallel", "swiglu", "multi_query"]]


@pytest.mark.parametrize("name", [n if n in DEFAULT else pytest.param(n, marks=pytest.mark.thorough) for n in SEAMS])
def test_a_users_own_seams_give_the_same_bits_in_two_processes(name: str, corpus: Corpus, tmp_path: Path) -> None:
    run = small(idea(name), 4)
    (alone,) = shared(0, run, corpus, tmp_path / "0")
    assert len({loss for loss, _ in alone["numbers"]}) == 4
    assert shared(2, run, corpus, tmp_path / "2") == [alone] * 2


def test_processes_at_two_points_of_a_run_are_told_both() -> None:
    port = forks.free_port()

    def work(rank: int) -> None:
        with SharedWorld(Launch(rank, 2, rank, 2, "127.0.0.1", port, 0, False), 60.0) as world:
            world.meet(("scored", "saved")[rank], 6)
            world.wait_for_all("the end")

    ended = [child.wait() for child in [forks.Child(lambda rank=rank: work(rank)) for rank in (0, 1)]]
    assert "rank 1 is at 'saved, step 6', rank 0 at 'scored, step 6'" in ended[1].said


# --- the tree ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 64), st.integers(0, 1000))
def test_processes_build_the_tree_of_all_leaves(leaves: int, seed: int) -> None:
    """Whatever numbers are added: floats show the order of additions."""
    numbers = torch.randn(leaves, 3, generator=torch.Generator().manual_seed(seed)) * 1e3 ** torch.rand(leaves, 1)
    whole = add_in_tree(list(numbers.clone()))
    for count in process_counts(leaves):
        own = leaves // count
        parts = [add_in_tree(list(numbers[r * own : (r + 1) * own].clone())) for r in range(count)]
        assert torch.equal(add_in_tree(parts), whole), count


def test_the_tree_is_the_one_that_the_documents_tell() -> None:
    a, b, c, d, e = torch.randn(5, 4).unbind()
    assert torch.equal(add_in_tree([t.clone() for t in (a, b, c, d)]), (a + b) + (c + d))
    assert torch.equal(add_in_tree([t.clone() for t in (a, b, c, d, e)]), ((a + b) + (c + d)) + e)


@pytest.mark.parametrize(
    ("batch", "processes", "leaves"),
    [(16, 1, 8), (16, 2, 8), (16, 16, 16), (4, 1, 4), (12, 3, 6), (12, 1, 4), (7, 1, 1)],
)
def test_a_batch_chooses_its_leaves(batch: int, processes: int, leaves: int) -> None:
    assert choose_leaves(Data(batch_size=batch, seq_len=8), processes).leaves == leaves
