"""Few-shot differences: coverage by simulation, variance against a real bootstrap, the paper's repeats."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.experiments.published import published
from brainfoundry.experiments.stats import paired_draws, repeats, repeats_needed, two_level
from brainfoundry.experiments.stats.draws import _bootstrap_means, _standard_error, crossed_interval
from tests.experiments.scores import coverage

DRAW, SUBJECT, REST = 0.02, 0.1, 0.05
"""SD of draws, of subjects by arm, and of what is left: the sizes of Table 9 and of Dice."""


def studies(
    rng: np.random.Generator, n: int, draws: int, subjects: int, *, draw: float = DRAW, rest: float = REST
) -> np.ndarray:
    by_draw, by_subject = rng.normal(0, draw, (n, draws, 1)), rng.normal(0, SUBJECT, (n, 1, subjects))
    return by_draw + by_subject + rng.normal(0, rest, (n, draws, subjects))


def covered(draws: int, subjects: int, n: int = 4000, **sd: float) -> float:
    rng, found = np.random.default_rng((draws, subjects)), []
    for part in range(n // 250):
        x = studies(rng, 250, draws, subjects, **sd)
        found.append(coverage(*crossed_interval(x, levels=2, seed=part, samples=400)[:2], 0.0))
    return float(np.mean(found))


@pytest.mark.parametrize(("draws", "subjects"), [(5, 50), (5, 100), (5, 250), (7, 100), (10, 100)])
def test_coverage_is_95_per_cent(draws: int, subjects: int) -> None:
    assert 94 <= covered(draws, subjects) <= 96


def test_plain_bootstrap_covers_badly_where_the_draws_decide() -> None:
    x = studies(np.random.default_rng(8), 1000, 5, 100, draw=0.05)
    means = _bootstrap_means(x, (-2, -1), 0, 400)
    assert coverage(*np.quantile(means, (0.025, 0.975), axis=-1), 0.0) < 90
    assert coverage(*crossed_interval(x, levels=2, samples=400)[:2], 0.0) > 93


def test_coverage_with_hardly_any_difference_between_draws() -> None:
    assert 94 <= covered(5, 100, draw=0.0) <= 96


def test_coverage_of_two_draws_falls_short_and_is_warned_of() -> None:
    assert covered(2, 200, 2000) == pytest.approx(89, abs=1.5)
    assert "2 draws" in two_level(studies(np.random.default_rng(0), 1, 2, 30)[0]).warning


def test_coverage_with_pretraining_seeds() -> None:
    rng, found, without = np.random.default_rng(3), [], []
    for part in range(12):
        x = rng.normal(0, 0.01, (250, 2, 1, 1)) + studies(rng, 250, 5, 100)[:, None]
        x = x + rng.normal(0, REST, (250, 2, 5, 100))
        found.append(coverage(*crossed_interval(x, levels=3, seed=part, samples=400)[:2], 0.0))
        without.append(coverage(*crossed_interval(x.mean(axis=1), levels=2, seed=part, samples=400)[:2], 0.0))
    assert 93.5 <= np.mean(found) <= 96.5
    assert np.mean(without) < 93.5  # an average over two seeds does not cover their spread


def test_standard_error_is_that_of_the_bootstrap_without_its_biases() -> None:
    x = studies(np.random.default_rng(1), 1, 6, 40)[0]
    d, s = x.shape
    mean, rows, columns = x.mean(), x.mean(axis=1), x.mean(axis=0)
    square_d = s * ((rows - mean) ** 2).sum() / (d - 1)
    square_s = d * ((columns - mean) ** 2).sum() / (s - 1)
    square_e = ((x - rows[:, None] - columns + mean) ** 2).sum() / ((d - 1) * (s - 1))
    se, df = _standard_error(x, (-2, -1))
    assert float(se) ** 2 == pytest.approx((square_d + square_s - square_e) / (d * s))
    assert d - 1 <= float(df) <= (d - 1) + (s - 1)
    # Of the bootstrap the variance is known: each level divided by n instead of n - 1, interaction added.
    shrunk_d, shrunk_s = (d - 1) / d, (s - 1) / s
    expected = (shrunk_d * square_d + shrunk_s * square_s + shrunk_d * shrunk_s * square_e) / (d * s)
    drawn = _bootstrap_means(x, (-2, -1), seed=0, samples=40_000)
    assert drawn.var() == pytest.approx(expected, rel=0.03)
    assert drawn.mean() == pytest.approx(mean, abs=4 * math.sqrt(expected / 40_000))


def test_without_spread_between_draws_it_is_the_interval_over_subjects() -> None:
    x = np.tile(np.random.default_rng(2).normal(0.01, 0.1, 80), (5, 1))
    found = two_level(x)
    assert found.sd_between_draws == pytest.approx(0, abs=1e-12)
    assert found.sd_within == pytest.approx(x[0].std(ddof=1))
    assert found.df == pytest.approx(79)
    half = 1.990450 * x[0].std(ddof=1) / math.sqrt(80)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=1e-5)


def test_answer_in_numbers() -> None:
    x = np.array([[0.02, 0.00, 0.04, 0.02], [0.03, 0.01, 0.05, 0.03], [0.01, -0.01, 0.03, 0.01]])
    found = two_level(x)
    assert found.difference == pytest.approx(0.02)
    assert found.sd_between_draws == pytest.approx(0.01)
    assert found.sd_within == pytest.approx(math.sqrt(0.0008 / 3))
    assert (found.draws, found.subjects, found.seeds, found.left_out) == (3, 4, 1, 0)
    # Additive: MS_draw = 0.0004, MS_subject = 0.0008, no rest.
    se = math.sqrt(0.0012 / 12)
    df = 0.0012**2 / (0.0004**2 / 2 + 0.0008**2 / 3)
    assert found.df == pytest.approx(df)
    assert found.high - found.low == pytest.approx(2 * stats.t.ppf(0.975, df) * se)
    assert found.mdd == pytest.approx((stats.t.ppf(0.975, df) + stats.t.ppf(0.8, df)) * se)
    assert found.significant == (found.low > 0)
    assert "pretraining seeds differ is not covered" in found.covers


def test_same_seed_same_interval() -> None:
    x = studies(np.random.default_rng(4), 1, 5, 60)[0]
    assert two_level(x) == two_level(x.copy())
    assert two_level(x).low != two_level(x, seed=1).low
    # The bootstrap says on which side; the length in all is that of t.
    lengths = [two_level(x, seed=seed).high - two_level(x, seed=seed).low for seed in (0, 1)]
    assert lengths[0] == pytest.approx(lengths[1])


def test_by_draw_and_subject() -> None:
    a = {0: {"s1": 0.9, "s2": 0.8, "s3": 0.7, "s4": 0.9}, 1: {"s1": 0.8, "s2": 0.9, "s3": math.nan}, 2: {}}
    b = {0: {"s1": 0.5, "s2": 0.5, "s3": 0.5}, 1: {"s1": 0.5, "s2": 0.5, "s3": 0.5}}
    off = paired_draws(a, b)
    assert set(off) == {0, 1} and set(off[0]) == {"s1", "s2", "s3", "s4"} and math.isnan(off[0]["s4"])
    found = two_level(off)
    assert (found.draws, found.subjects, found.left_out) == (2, 2, 2)
    assert found.difference == pytest.approx((0.4 + 0.3 + 0.3 + 0.4) / 4)
    with pytest.raises(DataError, match="no draw in common"):
        paired_draws(a, {7: {"s1": 0.1}})
    with pytest.raises(DataError, match="no subject has a difference in every draw"):
        two_level({0: {"s1": 0.1}, 1: {"s2": 0.1}})


def test_pretraining_seeds_share_an_arm_without_pretraining() -> None:
    a = {(k, d): {"s1": 0.6 + 0.1 * k, "s2": 0.7 + 0.01 * d} for k in (0, 1) for d in range(3)}
    scratch = {d: {"s1": 0.5, "s2": 0.5} for d in range(3)}
    found = two_level(paired_draws(a, scratch))
    assert (found.seeds, found.draws, found.subjects) == (2, 3, 2)
    assert found.by_seed == pytest.approx((0.155, 0.205))
    assert "2 pretraining seeds" in found.covers
    del a[1, 2]
    with pytest.raises(DataError, match=r"pretraining seed 1 lacks draw 2.*Fix: run every seed"):
        two_level(paired_draws(a, scratch))


def test_too_little_for_an_interval() -> None:
    found = two_level(np.array([[0.1, 0.3]]))
    assert found.difference == pytest.approx(0.2) and math.isnan(found.low) and math.isnan(found.mdd)
    assert not found.significant and "two draws" in found.warning
    with pytest.raises(ConfigError, match="differences with 1 axes"):
        two_level(np.zeros(3))
    with pytest.raises(DataError, match="no draw"):
        two_level({})


def test_equal_differences_have_no_width() -> None:
    found = two_level(np.full((5, 20), 0.25))
    assert (found.low, found.high) == (0.25, 0.25)


PAPER = {
    5: (0.0053, -0.020, 0.030, 0.0013, 3, 0),
    10: (0.0088, -0.011, 0.028, 0.0177, 3, 0),
    20: (0.0034, -0.001, 0.008, 0.0035, 4, 0),
    40: (0.0009, -0.009, 0.011, 0.0000, 2, 1),
}
"""What the paper's Table 9 supports, BSF minus SwinUNETR: mean, interval, median, wins, ties."""


@pytest.mark.parametrize("share", PAPER)
def test_what_table_9_of_the_paper_supports(share: int) -> None:
    arm = {
        init: [
            float(cell.value)
            for cell in published(9)
            if cell.axes["share"] == share and cell.axes["init"] == init and "draw" in cell.axes
        ]
        for init in ("stage1+2", "scratch")
    }
    found = repeats(np.round(np.subtract(arm["stage1+2"], arm["scratch"]), 4))
    mean, low, high, median, wins, ties = PAPER[share]
    assert found.n == 5 and (found.wins, found.ties, found.losses) == (wins, ties, 5 - wins - ties)
    assert (found.difference, found.median) == pytest.approx((mean, median), abs=5e-5)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-4)
    assert found.low < 0 < found.high  # no level excludes zero
    if share == 5:
        assert found.sd == pytest.approx(0.020, abs=5e-4)
        assert repeats_needed(found.difference, found.sd) == pytest.approx(110, abs=5)


def test_repeats_needed_agree_with_the_smallest_detectable_difference() -> None:
    assert repeats_needed(0.005, 0.020) == 128  # 2.80 standard errors, and two for t instead of normal
    x = np.random.default_rng(5).normal(0.01, 0.02, 30)
    found = repeats(x)
    assert repeats_needed(found.mdd, found.sd) == 30
    assert repeats_needed(-found.mdd, found.sd) == 30


def test_power_at_the_smallest_detectable_difference_is_80_per_cent() -> None:
    rng, n = np.random.default_rng(6), 30
    mdd = (2.04523 + 0.85431) * 0.02 / math.sqrt(n)  # t(29) at 97.5 and 80 %
    x = rng.normal(mdd, 0.02, (20_000, n))
    t = x.mean(axis=1) / x.std(axis=1, ddof=1) * math.sqrt(n)
    assert (t > 2.04523).mean() == pytest.approx(0.8, abs=0.015)
    typical = 0.02 * np.sqrt(np.r_[1.0, -1.0].repeat(15) ** 2) * np.r_[1.0, -1.0].repeat(15)
    assert repeats(typical).mdd == pytest.approx(mdd * math.sqrt(30 / 29), rel=1e-4)


def test_repeats_of_little() -> None:
    with pytest.raises(DataError, match="fewer than two repeats"):
        repeats([0.1])
    with pytest.raises(ConfigError, match="difference of 0"):
        repeats_needed(0.0, 0.02)
