"""Rank stability: shares, Kendall's tau against scipy, and what is left out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from brainfoundry.core.errors import DataError
from brainfoundry.experiments.stats import rank_stability
from brainfoundry.experiments.stats.ranks import _kendall_tau


def arms(**means: float) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(0)
    return {
        arm: {f"s{i:03}": value for i, value in enumerate(rng.normal(mean, 0.1, 60))}
        for arm, mean in means.items()
    }


def test_arms_far_apart_keep_their_ranks() -> None:
    found = rank_stability(arms(bad=0.2, best=0.9, fair=0.5))
    assert found.arms == ("best", "fair", "bad")
    np.testing.assert_array_equal(found.share, np.eye(3))
    assert (found.kendall_tau == 1).all() and found.subjects == 60
    assert rank_stability(arms(bad=0.2, best=0.9, fair=0.5), higher_is_better=False).arms == (
        "bad",
        "fair",
        "best",
    )


def test_arms_alike_share_their_ranks() -> None:
    found = rank_stability(arms(a=0.50, b=0.505, c=0.9))
    assert found.arms[0] == "c" and found.share[0, 0] == 1
    assert (found.share[1:, 1:] > 0.05).all()
    assert found.share.sum(axis=1) == pytest.approx(1) and found.share.sum(axis=0) == pytest.approx(1)
    assert set(np.round(found.kendall_tau, 6)) == {1.0, round(1 / 3, 6)}
    assert found.means == tuple(sorted(found.means, reverse=True))


def test_share_is_that_of_a_pair_of_normal_means() -> None:
    # Two arms: the share of rank 0 is about the chance that a normal mean difference is above 0.
    scores = arms(a=0.53, b=0.5)
    off = np.subtract(list(scores["a"].values()), list(scores["b"].values()))
    expected = stats.norm.cdf(abs(off.mean()) / (off.std() / math.sqrt(60)))
    assert rank_stability(scores).share[0, 0] == pytest.approx(expected, abs=0.03)


def test_tau_is_scipys() -> None:
    rng = np.random.default_rng(1)
    full, means = rng.random(6), rng.random((6, 20))
    theirs = [stats.kendalltau(full, column).statistic for column in means.T]
    assert _kendall_tau(means, full) == pytest.approx(theirs)


def test_equal_arms_share_the_better_rank() -> None:
    same = {"s1": 0.5, "s2": 0.6}
    found = rank_stability({"a": same, "b": dict(same)}, samples=50)
    np.testing.assert_array_equal(found.share, [[1, 0], [1, 0]])
    assert (found.kendall_tau == 0).all()


def test_same_seed_same_ranks_in_any_order() -> None:
    scores = arms(a=0.50, b=0.51)
    turned = {arm: dict(reversed(of.items())) for arm, of in reversed(scores.items())}
    one, other = rank_stability(scores), rank_stability(turned)
    assert one.arms == other.arms
    np.testing.assert_array_equal(one.share, other.share)
    assert (rank_stability(scores, seed=1).share != one.share).any()


def test_only_subjects_of_all_arms_count() -> None:
    found = rank_stability({"a": {"s1": 1.0, "s2": 0.0, "s3": math.nan}, "b": {"s1": 0.5, "s3": 0.1}})
    assert (found.subjects, found.left_out) == (1, 2)
    with pytest.raises(DataError, match="no subject has a value in every arm"):
        rank_stability({"a": {"s1": 1.0}, "b": {"s2": 1.0}})
    with pytest.raises(DataError, match="nothing to rank"):
        rank_stability({"a": {"s1": 1.0}})
