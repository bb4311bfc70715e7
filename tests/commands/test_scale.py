"""docs/scale.md: its tables are the script's, the formulas agree with the models and with each other, and the simulated
schedules send what real processes send, to the byte."""

from __future__ import annotations

import re

import pytest

from hectogpt.model import SIZES
from tools import scale
from tools.scale_measure import run_gloo
from tools.scale_model import FLOPS, MEASURED, MEMORY, NETWORK, SENDS, SHAPES, best_plan, fits, plan, process_memory
from tools.schedules import GLOO, Network, direct, fsdp_step, gloo_bytes, ring, ring_all_reduce, simulate, tree_sum

FREE = Network(1e12)


def test_the_page_is_the_scripts() -> None:
    page = scale.PAGE.read_text(encoding="utf-8")
    marks = [found[1] for found in re.finditer(r"<!-- scale: (\w+) -->", page)]
    assert sorted(marks) == sorted(scale.TABLES), "each table once"
    assert scale.fill(page) == page, "python -m tools.scale --write"
    assert page.count("<!-- end -->") == len(marks)


def test_the_models_have_the_parameters_of_their_names() -> None:
    small, xl, large = SHAPES
    assert (small.parameters, xl.parameters) == (124_439_808, 1_557_611_200)  # GPT-2's, with tied embeddings
    assert [(s.d, s.layers, s.context) for s in (small, xl)] == [
        (c.d_model, c.n_layers, c.context_length) for c in (SIZES["gpt2"], SIZES["gpt2-xl"])
    ]
    assert large.parameters == pytest.approx(70e9, rel=0.005)


def test_plans() -> None:
    """A step takes at least its computing, more GPUs do not hold less, and hidden sending costs nothing."""
    for shape in SHAPES:
        assert all(fits(shape, 2 * n) for n in (1, 2, 4, 64, 1024) if fits(shape, n))
        for gpus in scale.GPUS:
            found = best_plan(shape, gpus, shape.batch)
            if found is not None:
                assert found.step >= found.compute == pytest.approx(shape.batch * shape.flops / gpus / FLOPS)
                assert 0 < found.busy <= 1
    small, _, large = SHAPES
    assert fits(small, 1)
    assert not fits(large, 8), f"{large.states / 8} bytes on {MEMORY}"
    enough = SENDS["FSDP2"] * FLOPS / (6 * NETWORK)  # tokens a GPU, as the table has it
    for factor, busy in ((1.2, True), (0.8, False)):
        tokens = int(factor * enough * 64) // 4096 * 4096
        found = plan(large, 64, 1, tokens)
        assert found is not None
        assert (found.send <= found.compute * large.parameters * 6 / large.flops) == busy


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_what_schedules_send(ranks: int) -> None:
    size = 840 * 1024
    share = size // ranks
    assert simulate(ring(ranks, size), ranks, FREE).sent == ((ranks - 1) * share,) * ranks
    assert simulate(direct(ranks, size), ranks, FREE).sent == ((ranks - 1) * share,) * ranks
    by_ring, by_tree = (simulate(s(ranks, size), ranks, FREE) for s in (ring_all_reduce, tree_sum))
    assert by_ring.sent == by_tree.sent == (2 * (ranks - 1) * share,) * ranks
    assert by_ring.messages == by_tree.messages
    assert (by_ring.rounds, by_tree.rounds) == (2 * (ranks - 1), 2 * (ranks > 1))
    blocks = simulate(fsdp_step(ranks, 3, size, 2 * size), ranks, FREE)
    assert blocks.sent == (3 * 4 * (ranks - 1) * share,) * ranks
    slow = Network(bandwidth=1e6, latency=0.5, overhead=0.25)
    expected = 2 * (ranks - 1) * (0.5 + 0.25 + share / 1e6)
    assert simulate(ring_all_reduce(ranks, size), ranks, slow).seconds == pytest.approx(expected)
    per_round = 0.5 + (ranks - 1) * (0.25 + share / 1e6)
    assert simulate(tree_sum(ranks, size), ranks, slow).seconds == pytest.approx(2 * per_round * (ranks > 1))


def test_what_was_measured_is_what_is_computed() -> None:
    """The recorded bytes; the next test measures again."""
    for run in scale.measured()["gloo"]:
        check(run)


@pytest.mark.thorough
@pytest.mark.parametrize("processes", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_real_processes_send_these_bytes(processes: int) -> None:
    check(run_gloo(processes))


def check(run: dict[str, object]) -> None:
    ranks, rows = run["processes"], run["rows"]
    assert isinstance(ranks, int)
    assert isinstance(rows, list)
    assert {row["call"] for row in rows} == set(GLOO)
    for row in rows:
        cost = simulate(GLOO[row["call"]](ranks, row["size"]), ranks, FREE)
        assert row["bytes"] == gloo_bytes(cost), row


def test_processes_take_the_memory_that_is_computed() -> None:
    """The recorded figures; under fsdp more processes each take less, and those beside rank 0 less than it."""
    trained = {}
    for run in scale.measured()["memory"]:
        computed = sum(process_memory(run["how"], run["processes"])) / 2**20
        peaks = [rank["trained"] for rank in run["ranks"]]
        trained[run["how"], run["processes"]] = peaks
        assert len(peaks) == run["processes"]
        for rank, peak in enumerate(peaks):
            whole = 4 * MEASURED.parameters / 2**20 if run["how"] == "fsdp" and rank == 0 else 0
            assert 0.7 * peak < computed + whole < peak, run
    for processes in (2, 4):
        first, *others = trained["fsdp", processes]
        assert max(others) < first < min(trained["ddp", processes])
    assert max(trained["fsdp", 4]) < max(trained["fsdp", 2]) < max(trained["fsdp", 1])


def test_a_corpus_of_any_size_is_prepared_in_the_same_memory() -> None:
    """The recorded figures keep what the page says."""
    found = scale.measured()["data"]
    small, large = (found["sizes"][size] for size in sorted(found["sizes"], key=int))
    assert large["peak_mib"] < small["peak_mib"] + 30
    assert found["after_kill"]["cpu"] < 0.7 * large["cpu"]
    assert found["folder"]["again"] < 1.0
    assert found["together"] == [0, 0, 0]
