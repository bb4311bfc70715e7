"""Laws and known mistakes as data: each rests on a sentence, each mistake shows, and none is named for another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade import compare, diagnose, laws, settings, train_case
from hectogpt.grade.answers import Answer
from hectogpt.grade.settings import order

IN_ORDER = [list(range(4 * n, 4 * n + 4)) for n in range(train_case.STEPS)]
PAST_THE_CONTEXT = {"returned text cropped"}  # shows in a law of its own


def test_every_part_of_the_assignment_with_points_is_graded() -> None:
    wanted = {name for name, part in BY_NAME.items() if part.points}
    assert wanted <= set(laws.GRADED)
    assert sum(part.points for part in BY_NAME.values()) == 30
    for part in laws.GRADED:
        assert any(law.counts for law in laws.laws_of(part))


def test_every_law_says_what_it_rests_on() -> None:
    assert len({(law.part, law.name) for law in laws.LAWS}) == len(laws.LAWS)
    for law in laws.LAWS:
        assert law.says.endswith(".")
        assert laws.SETTINGS[law.setting.name] is law.setting


def test_two_processes_get_the_same_weights_and_inputs_and_nothing_is_trivial() -> None:
    for setting in (laws.ATTENTION, laws.FORWARD_NARROW):
        before = settings.weights(setting)
        settings.weights.cache_clear()
        torch.rand(3)  # another state of the global generator
        for name, value in settings.weights(setting).items():
            assert torch.equal(value, before[name])
            assert value.std() > 0.1
        axes = [setting.size.d_model, setting.size.n_heads, setting.size.d_attention, setting.size.context_length]
        assert len({*axes, *setting.inputs[0]}) == len(axes) + 2  # no two axes can be taken for each other


@pytest.mark.parametrize("part", diagnose.MISTAKES)
def test_every_mistake_shows_a_hundred_times_above_the_tolerance(part: str) -> None:
    """In float64. Mistakes that raise or change the shape show in any case."""
    quiet = []
    checked = [law.setting for law in laws.laws_of(part) if law.check == "values" and law.counts]
    for number, mistake in enumerate(diagnose.MISTAKES[part]):
        worst = 0.0
        for setting in checked:
            for call in range(len(setting.inputs)):
                right, made = (diagnose.outcome(part, n, setting, call) for n in ((), (number,)))
                assert isinstance(right, Tensor)
                if isinstance(made, str) or made.is_floating_point() != right.is_floating_point():
                    worst = float("inf")
                else:
                    worst = max(worst, compare.error(made, right))
        if worst < 100 * laws.TOLERANCE["float64"]:
            quiet.append((mistake.name, worst))
    assert {name for name, _ in quiet} - PAST_THE_CONTEXT == set(), quiet


def test_names_are_unique_and_sentences_whole() -> None:
    for part, listed in diagnose.MISTAKES.items():
        assert len({mistake.name for mistake in listed}) == len(listed), part
        for mistake in listed:
            assert mistake.what.endswith((".", ".)", "?)."))
            assert mistake.part == part
    assert sum(map(len, diagnose.MISTAKES.values())) >= 200


def test_right_results_are_no_mistakes() -> None:
    """Some pairs cancel out, as queries and keys swapped in transposed scores: only failing parts are explained."""
    for part, setting in (("attention", laws.ATTENTION), ("forward", laws.FORWARD), ("loss", laws.LOSS_NARROW)):
        right = [(setting, i, Answer("tensor", tensor(part, setting, call))) for i, call in enumerate(order(setting))]
        found = [
            m.name for n, m in enumerate(diagnose.MISTAKES[part]) if diagnose.reproduces(part, (n,), right, "float64")
        ]
        assert found == []


def tensor(part: str, setting: settings.Setting, call: int) -> Tensor:
    """The right result."""
    made = diagnose.outcome(part, (), setting, call)
    assert isinstance(made, Tensor)
    return made


def test_the_curves_of_training_differ_from_each_other_where_clipping_acts() -> None:
    curves = list(train_case.curves(laws.TRAIN_CLIPPED, IN_ORDER))
    assert curves[0].name == "right"
    for other in curves[1:]:
        same = train_case.close(other.losses, curves[0].losses) and train_case.close(other.norms, curves[0].norms)
        assert not same or other.changed, other.name
    assert float(curves[0].losses[-1]) < float(curves[0].losses[0]) - 0.1
