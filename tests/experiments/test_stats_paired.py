"""Paired differences: coverage by simulation, Wilcoxon and effect sizes against hand-made cases, Holm."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from brainfoundry.core.errors import DataError
from brainfoundry.experiments.stats import Comparison, holm, paired_difference
from brainfoundry.experiments.stats.paired import ENOUGH
from brainfoundry.tasks.intervals import hall_interval, t_interval
from tests.experiments.scores import Difference, coverage

REPETITIONS = 6000
NOISE = 0.25
"""Standard error of a coverage, in per cent, at so many repetitions."""
NAMES = [f"s{i}" for i in range(400)]


def arms(off: list[float] | np.ndarray) -> tuple[dict[str, float], dict[str, float]]:
    a = dict(zip(NAMES, off, strict=False))
    return a, dict.fromkeys(a, 0.0)


@pytest.mark.parametrize("n", [50, 100, 250])
@pytest.mark.parametrize("failed", [0.0, 0.01, 0.03, 0.10])
def test_coverage_is_95_per_cent(failed: float, n: int) -> None:
    off = Difference(failed)
    x = off.draw(np.random.default_rng((n, int(100 * failed))), (REPETITIONS, n))
    assert coverage(*t_interval(x), off.mean) == pytest.approx(95, abs=1 + NOISE)


def test_coverage_of_few_falls_short_and_is_warned_of() -> None:
    off = Difference(0.10)
    x = off.draw(np.random.default_rng(0), (REPETITIONS, 16))
    assert coverage(*t_interval(x), off.mean) == pytest.approx(90, abs=1)
    few = paired_difference(*arms(x[0]))
    assert "n = 16" in few.warning and "90 to 96 %" in few.warning
    assert paired_difference(*arms(np.linspace(-1, 2, ENOUGH))).warning == ""


def test_removing_the_skewness_would_do_harm() -> None:
    # Why a difference has another interval than a mean.
    off = Difference(0.03)
    x = off.draw(np.random.default_rng(1), (REPETITIONS, 64))
    assert coverage(*hall_interval(x), off.mean) < 90


def test_known_case() -> None:
    off = [0.1, -0.2, 0.3, 0.4, 0.5, 0.0]
    a, b = arms(off)
    found = paired_difference(a, b)
    assert (found.n, found.wins, found.ties, found.losses, found.left_out) == (6, 4, 1, 1, 0)
    assert found.difference == pytest.approx(1.1 / 6)
    sd = float(np.std(off, ddof=1))
    assert found.cohen_dz == pytest.approx(1.1 / 6 / sd)
    # Ranks without the tie: 1, 2 (against), 3, 4, 5.
    assert found.rank_biserial == pytest.approx((13 - 2) / 15)
    # 3 of the 32 assignments of signs have ranks against that sum to 2 or less: {}, {1}, {2}; two-sided.
    assert found.p_wilcoxon == pytest.approx(2 * 3 / 32)
    reach = stats.t.ppf(0.975, 5) * sd / math.sqrt(6)
    assert (found.low, found.high) == pytest.approx((1.1 / 6 - reach, 1.1 / 6 + reach))
    assert found.p_holm is None and not found.significant


def test_other_way_round() -> None:
    a, b = arms(np.random.default_rng(2).normal(0.02, 0.1, 60))
    one, other = paired_difference(a, b), paired_difference(b, a)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert (one.wins, one.losses) == (other.losses, other.wins)
    assert one.rank_biserial == pytest.approx(-other.rank_biserial)
    assert one.p_wilcoxon == pytest.approx(other.p_wilcoxon)
    distance = paired_difference(a, b, higher_is_better=False)
    assert (distance.wins, distance.difference) == (one.losses, one.difference)


def test_only_subjects_of_both_arms_count() -> None:
    a = {"s1": 0.9, "s2": 0.8, "s3": math.nan, "s4": 0.7}
    b = {"s4": 0.5, "s1": 0.6, "s3": 0.1, "s5": 0.2, "s2": math.nan}
    found = paired_difference(a, b)
    assert found.n == 2 and found.left_out == 3 and found.difference == pytest.approx(0.25)
    with pytest.raises(DataError, match=r"share no subject.*Fix: score both on one test set"):
        paired_difference(a, {"s9": 1.0, "s3": 0.0})


def test_equal_arms_and_a_single_subject() -> None:
    same = paired_difference(*arms([0.0] * 80))
    assert (same.p_wilcoxon, same.rank_biserial, same.ties) == (1.0, 0.0, 80)
    assert math.isnan(same.cohen_dz) and not same.significant
    one = paired_difference(*arms([0.3]))
    assert one.n == 1 and math.isnan(one.low) and not one.significant


def comparison(p: float) -> Comparison:
    return Comparison(
        difference=1.0, low=0.5, high=1.5, n=9, p_wilcoxon=p, cohen_dz=0.0, rank_biserial=0.0,
        wins=0, ties=0, losses=0,
    )  # fmt: skip


def test_holm_by_hand() -> None:
    found = holm([comparison(p) for p in (0.04, 0.01, 0.03, 0.005)])
    # Sorted 0.005 x 4, 0.01 x 3, 0.03 x 2, then 0.04 x 1, which may not fall below the one before.
    assert [one.p_holm for one in found] == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert [one.significant for one in found] == [False, True, False, True]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_between_the_plain_p_and_bonferroni(ps: list[float]) -> None:
    found = [one.p_holm for one in holm([comparison(p) for p in ps])]
    for p, corrected in zip(ps, found, strict=True):
        assert corrected is not None and p <= corrected <= min(1.0, len(ps) * p) + 1e-12
    order = np.argsort(ps, kind="stable")
    assert (np.diff([found[i] for i in order]) >= 0).all()


def test_nothing_is_bold_whose_interval_holds_0() -> None:
    one = comparison(1e-9)
    assert one.significant
    assert not replace(one, low=-0.001).significant
    assert not replace(one, low=0.0).significant
    assert replace(one, low=-2.0, high=-1.0).significant
    assert not replace(one, low=math.nan, high=math.nan).significant
