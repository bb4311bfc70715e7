"""The questions of attention and position: laws of the functions, and answers that say what the code computes."""

import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import ks_2samp

from hectogpt.errors import USAGE, UserError
from hectogpt.explore import answers, attention, figures, numbers, positions
from hectogpt.model.parts import Sinusoidal

SMALL = settings(max_examples=30, deadline=None)
TEXTS = [answers.FOLDER / name for name in ("attention.md", "positions.md")]


@pytest.fixture(scope="module")
def computed() -> dict[str, float]:
    return numbers.numbers()


# Answers


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_every_quoted_number_is_what_the_code_computes(path: Path, computed: dict[str, float]) -> None:
    found = list(answers.quotes(path.read_text()))
    assert len(found) > 30
    wrong = [(q.shown, computed.get(q.name)) for q in found if not q.agrees(computed)]
    assert not wrong
    assert all(math.isfinite(value) for value in computed.values())


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_no_number_stands_in_the_text_without_a_name(path: Path) -> None:
    assert answers.unnamed(path.read_text()) == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_every_figure_exists_and_is_described(path: Path) -> None:
    images = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", path.read_text())
    assert images
    for description, target in images:
        assert len(description) > 40
        assert (path.parent / target).is_file()


def test_a_wrong_digit_is_noticed() -> None:
    assert _agrees("0.123<!-- n:x -->", 0.1234)
    assert not _agrees("0.124<!-- n:x -->", 0.1234)
    assert _agrees("7.9 %<!-- n:x -->", 0.0786)
    assert not _agrees("7.8 %<!-- n:x -->", 0.0786)
    assert _agrees("2.82 × 10⁻⁶<!-- n:x -->", 2.824e-6)
    assert not _agrees("2.82 × 10⁻⁶<!-- n:x -->", 2.824e-5)
    assert _agrees("312,689<!-- n:x -->", 312689)
    assert _agrees("-0.01<!-- n:x -->", -0.013)
    assert _agrees("10⁻¹²<!-- n<x -->", 3e-15)
    assert not _agrees("10⁻¹²<!-- n<x -->", 3e-11)
    assert not _agrees("0.123<!-- n:y -->", 0.123)
    two = list(answers.quotes("10⁻¹²<!-- n<x --><!-- n<y -->"))
    assert [q.name for q in two] == ["x", "y"]


def _agrees(text: str, value: float) -> bool:
    (quote,) = answers.quotes(text)
    return quote.agrees({"x": float(value)})


def test_unnamed_numbers_are_found() -> None:
    text = "<!-- given: 0.99 --> 0.99 and 0.5 and 3 % and 10⁻⁶ and 2 keys, `0.7`, 0.1<!-- n:x -->"
    assert answers.unnamed(text) == ["0.5", "3 %", "10⁻⁶"]


def test_a_text_that_disagrees_builds_no_pdf(tmp_path: Path) -> None:
    text = tmp_path / "attention.md"
    text.write_text("It is 0.2<!-- n:x -->.")
    with pytest.raises(UserError, match="disagree"):
        answers.check([text], {"x": 0.1})
    answers.check([text], {"x": 0.2})


def test_figures_are_stable_bytes(tmp_path: Path) -> None:
    with mpl.rc_context(figures.STYLE):
        for i in range(2):
            figures.FIGURES["average"]().savefig(tmp_path / f"{i}.svg", metadata={"Date": None, "Creator": None})
    first, second = ((tmp_path / f"{i}.svg").read_bytes() for i in range(2))
    assert first == second
    assert b"<dc:date>" not in first
    assert {f"{name}.svg" for name in figures.FIGURES} == {p.name for p in (answers.FOLDER / "figures").iterdir()}


def test_page_has_formulas_and_figures_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("latex2mathml")
    pytest.importorskip("mdit_py_plugins")
    (tmp_path / "f.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "a.md").write_text("# A\n\n$x_i \\lt \\ln n$\n\n$$y = 1$$\n\n![described](f.svg)\n")
    html = answers.page([tmp_path / "a.md"])
    for path in TEXTS:
        assert "$" not in answers.page([path])
    assert html.count("<math") == 2
    assert "data:image/svg+xml;base64," in html
    assert 'src="http' not in html


def test_without_chromium_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no Chromium found"):
        answers.print_pdf("<p>hello", tmp_path / "answers.pdf")
    assert not (tmp_path / "answers.pdf").exists()


@pytest.mark.browser
def test_equal_pages_print_equal_pdfs(tmp_path: Path) -> None:
    html = answers.page([answers.FOLDER / "positions.md"])
    for name in ("a.pdf", "b.pdf"):
        answers.print_pdf(html, tmp_path / name)
    printed = (tmp_path / "a.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    assert printed == (tmp_path / "b.pdf").read_bytes()


# Attention


@SMALL
@given(st.integers(2, 500), st.floats(0, 60), st.integers(0, 5))
def test_copying_stays_within_its_bounds(n: int, gap: float, seed: int) -> None:
    c = attention.copying(np.array([gap]), n, seed=seed)
    slack = 1 + 1e-12
    assert math.exp(-gap) / (1 + math.exp(-gap)) <= c.missing[0] * slack
    assert c.missing[0] <= c.tied[0] * slack <= c.bound[0] * slack**2
    assert c.error[0] <= c.error_bound[0] * slack


@SMALL
@given(st.integers(2, 100_000), st.floats(0.01, 0.999))
def test_gap_for_weight_suffices_when_all_others_tie(n: int, weight: float) -> None:
    gap = attention.gap_for_weight(weight, n)
    assert 1 / (1 + (n - 1) * math.exp(-gap)) == pytest.approx(weight, rel=1e-9)


def test_a_key_in_the_hull_of_the_others_cannot_be_copied() -> None:
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((4, 3))
    keys[0] = keys[1:].mean(axis=0)
    weights = attention.attend(20 * rng.standard_normal((1000, 3)), keys, np.eye(4)).weights
    assert weights[:, 0].max() <= 0.5


def test_a_copy_is_exact_in_float32_from_the_quoted_gap(computed: dict[str, float]) -> None:
    gap = computed["copy.exact_in_float32"]
    scores = np.full(1000, -gap * 1.0001, dtype=np.float32)
    scores[0] = 0
    assert attention.softmax(scores)[0] == np.float32(1)
    scores[1:] = -gap + 2
    assert attention.softmax(scores)[0] < np.float32(1)


@SMALL
@given(st.integers(3, 60), st.floats(-3, 30), st.integers(0, 3))
def test_average_of_two_is_what_real_keys_give(n: int, beta: float, seed: int) -> None:
    keys, values = attention.orthonormal(n, n + 3, seed=seed), attention.orthonormal(n, n, seed=seed + 9)
    c = attention.attend(attention.query_for_average(keys, 0, n - 1, beta), keys, values)
    closed = attention.average_of_two(beta, n)
    assert c.weights[0] == pytest.approx(closed.weight, abs=1e-12)
    assert np.linalg.norm(c.output - (values[0] + values[-1]) / 2) == pytest.approx(closed.error, abs=1e-12)


@SMALL
@given(st.integers(3, 10_000), st.floats(1e-6, 0.6))
def test_beta_for_error_inverts_the_error(n: int, error: float) -> None:
    beta = attention.beta_for_error(error, n)
    assert attention.average_of_two(beta, n).error == pytest.approx(error, rel=1e-9)


def test_the_widest_gap_of_a_given_length_is_the_stated_query() -> None:
    n, beta, rng = 7, 2.0, np.random.default_rng(1)
    keys = attention.orthonormal(n, n)
    best = attention.query_for_average(keys, 0, 1, beta) - 2 * beta / (n - 2) * keys[2:].sum(axis=0)
    gap = keys[0] @ best - (keys[2:] @ best).max()
    for _ in range(300):
        q = best + 0.3 * rng.standard_normal() * rng.standard_normal(n)
        q += (keys[1] - keys[0]) * ((keys[0] - keys[1]) @ q) / 2  # equal scores for a and b
        q *= np.linalg.norm(best) / np.linalg.norm(q)
        assert keys[0] @ q - (keys[2:] @ q).max() <= gap + 1e-9


@pytest.mark.parametrize("centred", [False, True])
def test_orthonormal_vectors_are_orthonormal(centred: bool) -> None:
    v = attention.orthonormal(9, 10, centred=centred)
    np.testing.assert_allclose(v @ v.T, np.eye(9), atol=1e-12)
    if centred:
        np.testing.assert_allclose(v.sum(axis=1), 0, atol=1e-12)


@pytest.mark.parametrize("normalise", [False, True])
def test_projections_are_distributed_as_those_of_real_keys(normalise: bool) -> None:
    n, d, alpha, spread, samples = 5, 12, 0.05, 0.5, 20_000
    means = attention.orthonormal(n, d, centred=True)
    keys = attention.sample_keys(means, alpha, spread, samples=samples, seed=3)
    if normalise:
        layer_norm = torch.nn.LayerNorm(d, eps=0, elementwise_affine=False)
        keys = layer_norm(torch.from_numpy(keys)).numpy() / math.sqrt(d)
    literal = keys @ means[:2].T
    short = attention.key_projections(samples, n, alpha, spread, d=d, normalise=normalise, seed=4)
    for i in range(n):
        for direction in ([1, 0], [0, 1], [1, 1], [1, -2]):
            assert ks_2samp(literal[:, i] @ direction, short[:, i] @ direction).pvalue > 1e-4
    one_literal = attention.total_variance(attention.softmax(8.0 * literal.sum(axis=-1)))
    one_short = attention.total_variance(attention.single_head(short, 8.0))
    assert one_literal.low < one_short.high
    assert one_short.low < one_literal.high


@SMALL
@given(st.floats(-6, 6), st.floats(0.05, 80))
def test_logistic_normal_integrates_to_its_moments(centre: float, scale: float) -> None:
    law = attention.LogisticNormal(centre, scale)
    z = np.linspace(-9, 9, 400_001)
    mass = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    w = expit(centre + scale * z)
    assert law.mean() == pytest.approx((w * mass).sum(), abs=1e-9)
    assert law.variance() == pytest.approx((w * w * mass).sum() - (w * mass).sum() ** 2, abs=1e-9)
    assert law.above(0.7) + law.below(0.7) == pytest.approx(1, abs=1e-12)
    inside = quad(lambda x: float(law.density(np.array([x]))[0]), 0.3, 0.7, epsabs=1e-9)[0]
    assert inside == pytest.approx(law.below(0.7) - law.below(0.3), abs=1e-7)


def test_one_head_has_two_humps_from_beta_two_on() -> None:
    w = expit(np.linspace(-25, 25, 10_001))
    for beta, humps in ((1.0, 1), (1.95, 1), (2.05, 2), (6.0, 2)):
        density = attention.single_head_limit(beta).density(w)  # at beta = 6 the humps lie beyond 1 - 1e-7
        inner = density[1:-1]
        assert int(((inner > density[:-2]) & (inner > density[2:])).sum()) == humps


def test_variance_of_one_head_at_both_ends() -> None:
    small, large = 0.01, 5_000.0
    assert attention.single_head_limit(small).mean() == pytest.approx(0.5, abs=1e-14)
    assert attention.single_head_limit(small).variance() == pytest.approx(small**2 / 32, rel=1e-3)
    end = 0.25 - 1 / (large * math.sqrt(math.pi))
    assert attention.single_head_limit(large).variance() == pytest.approx(end, abs=1e-9)


@pytest.mark.parametrize("beta", [1.0, 5.0, 10.0, 40.0])
@pytest.mark.parametrize("n", [2, 16, 200])
def test_closed_forms_lie_in_the_simulated_intervals(beta: float, n: int) -> None:
    seen = attention.key_projections(20_000, n, 1e-10, 0.5, seed=n)
    one, (first, second) = attention.single_head(seen, beta), attention.two_heads(seen, beta)
    wide = 2.0  # two half-widths: many intervals are looked at
    for estimate, closed in (
        (attention.total_variance(one), attention.single_head_variance(beta, n)),
        (attention.total_variance(first), attention.first_head_limit(beta, n).variance() * n / (n - 1)),
        (attention.share((one[:, :2] > 0.99).any(axis=1)), attention.takeover(beta, n)),
        (attention.share(first[:, 0] < 0.5), attention.first_head_limit(beta, n).below(0.5)),
    ):
        assert abs(estimate.value - closed) <= wide * (estimate.high - estimate.low) / 2 + 1e-9
    assert attention.total_variance(second).value < 1e-6
    half = attention.total_variance((first + second) / 2).value
    assert half == pytest.approx(attention.total_variance(first).value / 4, rel=1e-2)


def test_a_hundred_thousand_samples_take_under_two_seconds() -> None:
    start = time.process_time()
    seen = attention.key_projections(100_000, 16, 1e-6, 0.5)
    attention.single_head(seen, 10.0)
    attention.two_heads(seen, 10.0)
    assert time.process_time() - start < 2


def test_normalised_component_has_the_stated_slope() -> None:
    for rest in (0.3, 1.0, 4.0):
        around = attention.normalised_component(np.array([1 - 1e-6, 1, 1 + 1e-6]), rest)
        assert around[1] == pytest.approx(1, abs=1e-12)
        assert (around[2] - around[0]) / 2e-6 == pytest.approx(rest**2 / (1 + rest**2), rel=1e-6)


# Positions


@pytest.mark.parametrize(("causal", "added"), [(False, False), (True, False), (False, True)])
def test_only_a_block_without_mask_and_positions_is_blind_to_order(causal: bool, added: bool) -> None:
    gap = positions.equivariance_gap(10, 8, causal=causal, positions=added, seed=5)
    assert (gap < 1e-12) is not (causal or added)


def test_the_real_decoder_is_equivariant_under_a_full_mask_and_reads_order_through_depth() -> None:
    for layers in (1, 2, 4):
        assert positions.decoder_equivariance_gap(layers, 9, causal=False, seed=layers) < 1e-12
        assert positions.decoder_equivariance_gap(layers, 9, causal=True, seed=layers) > 0.1
    assert positions.last_token_gap(1, 9, seed=1) < 1e-12
    assert positions.last_token_gap(2, 9, seed=1) > 1e-2
    assert positions.position_probe(causal=True, seed=7).r2 > 0.05
    assert positions.position_probe(causal=False, seed=7).r2 < 0.02


@SMALL
@given(st.integers(0, 300), st.integers(-300, 300), st.sampled_from([2, 4, 10, 64]))
def test_shift_is_one_rotation(t: int, s: int, d: int) -> None:
    R = positions.rotation(s, d)
    here, there = positions.sinusoids_at(np.array([t, t + s]), d)
    np.testing.assert_allclose(R @ here, there, atol=1e-11)
    np.testing.assert_allclose(R @ R.T, np.eye(d), atol=1e-12)
    assert here @ there == pytest.approx(positions.similarity(np.array([s]), d)[0], abs=1e-10)
    apart = float(np.linalg.norm(here - there))
    assert apart == pytest.approx(positions.distances(np.array([abs(s)]), d)[0], abs=1e-10)


def test_sinusoids_follow_the_definition_and_the_model_has_the_same() -> None:
    phi = positions.sinusoids(20, 6)
    assert phi[7, 2] == pytest.approx(math.sin(7 / 10000 ** (2 / 6)), abs=1e-15)
    assert phi[7, 3] == pytest.approx(math.cos(7 / 10000 ** (2 / 6)), abs=1e-15)
    table = Sinusoidal().build(20, 6)(torch.arange(20)[None])[0]
    np.testing.assert_allclose(table.numpy(), phi, atol=2**-24)


def test_similarity_tends_to_its_integral() -> None:
    apart = np.array([1, 7, 100, 2000])
    wide = positions.similarity(apart, 1 << 16) / (1 << 15)
    np.testing.assert_allclose(wide, positions.similarity_limit(apart.astype(np.float64)), atol=1e-4)


@pytest.mark.parametrize("d", [2, 4, 8, 32])
@pytest.mark.parametrize("T", [2, 45, 711, 1500])
def test_nearest_pair_is_what_brute_force_finds(T: int, d: int) -> None:
    rows = positions.sinusoids(T, d).astype(np.float32).astype(np.float64)
    best = min(float(np.square(rows[i + 1 :] - rows[i]).sum(axis=1).min()) for i in range(T - 1))
    pair = positions.nearest_pair(T, d)
    assert 0 <= pair.s < pair.t < T
    assert pair.distance == pytest.approx(math.sqrt(best), rel=1e-9)
    assert pair.distance == pytest.approx(float(np.linalg.norm(rows[pair.s] - rows[pair.t])), rel=1e-9)
    assert abs(pair.distance - pair.exact) <= 2 * math.sqrt(d) * 2.0**-25


def test_coarse_positions_collide_where_the_text_says() -> None:
    assert torch.tensor(257.0).bfloat16() == torch.tensor(256.0).bfloat16()
    assert len(torch.arange(257).bfloat16().unique()) == 257
    assert np.float32(2**24 + 1) == np.float32(2**24)
    assert positions.first_repeat(20_000, 4, torch.bfloat16) is None
    pair = positions.nearest_pair(50_000, 32)
    assert pair.t - pair.s == 1


# Bad input


@pytest.mark.parametrize(
    "call",
    [
        lambda: attention.average_of_two(math.nan, 5),
        lambda: attention.average_of_two(math.inf, 5),
        lambda: attention.single_head(np.zeros((2, 3, 2)), math.inf),
        lambda: attention.query_for_average(np.eye(3), 1, 1, 2.0),
        lambda: attention.query_for_average(np.eye(3), 0, 3, 2.0),
        lambda: attention.orthonormal(5, 4),
        lambda: attention.orthonormal(4, 4, centred=True),
        lambda: attention.beta_for_error(0.9, 100),
        lambda: attention.beta_for_error(-0.1, 100),
        lambda: attention.gap_for_weight(1.0, 10),
        lambda: attention.copying(np.array([math.nan]), 4),
        lambda: attention.copying(np.array([1.0]), 1),
        lambda: attention.key_projections(10, 4, -1.0, 0.5),
        lambda: attention.key_projections(0, 4, 0.1, 0.5),
        lambda: attention.key_projections(10, 4, 0.1, 0.5, d=4, normalise=True),
        lambda: positions.sinusoids(5, 3),
        lambda: positions.sinusoids(5, 0),
        lambda: positions.sinusoids(0, 4),
        lambda: positions.nearest_pair(1, 4),
        lambda: positions.equivariance_gap(1, 4),
    ],
)
def test_bad_input_is_refused_in_one_message(call: Callable[[], object]) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert caught.value.code == USAGE
    assert caught.value.what
    assert caught.value.why
    assert caught.value.fix
