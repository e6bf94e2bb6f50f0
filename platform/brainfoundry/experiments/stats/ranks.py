"""How stable a ranking of arms is: the ranks they take on other subjects of the same kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from brainfoundry.core.errors import DataError
from brainfoundry.core.rng import hash64, key_of

SEED, SAMPLES = 0, 2000
"""Of the bootstrap."""
_STREAM = key_of("ranks")


@dataclass(frozen=True, kw_only=True, eq=False)
class RankStability:
    """Ranks of arms over bootstrap samples of the test subjects: the data of a plot.

    Args:
        arms: best first, by the mean over all subjects; the order of all that follows.
        means: over all subjects.
        share: [arm, rank]: fraction of the samples in which the arm has the rank; rank 0 is the best, and
            arms of equal means share the better one.
        kendall_tau: [sample]: agreement of each sample's ranking with the full one (1 the same, -1 reversed).
        subjects: those with a value in every arm.
        left_out: the others.
    """

    arms: tuple[str, ...]
    means: tuple[float, ...]
    share: np.ndarray
    kendall_tau: np.ndarray
    subjects: int
    left_out: int


def rank_stability(
    scores: Mapping[str, Mapping[str, float]],
    *,
    higher_is_better: bool = True,
    seed: int = SEED,
    samples: int = SAMPLES,
) -> RankStability:
    """Rank the arms on bootstrap samples of the subjects.

    Args:
        scores: arm -> subject -> value; a subject that is undefined (NaN) in any arm is left out of all.

    Raises:
        DataError: fewer than two arms, or no subject with a value in all.
    """
    if len(scores) < 2:
        raise DataError("there is nothing to rank", fix="name at least two arms")
    everybody = sorted(set().union(*scores.values()))
    x_AS = np.array([[arm.get(subject, math.nan) for subject in everybody] for arm in scores.values()])
    whole = ~np.isnan(x_AS).any(axis=0)
    if not whole.any():
        raise DataError("no subject has a value in every arm", fix="score all arms on one test set")
    x_AS = (x_AS if higher_is_better else -x_AS)[:, whole]
    order = np.argsort(-x_AS.mean(axis=1), kind="stable")
    x_AS = x_AS[order]
    n = x_AS.shape[1]
    drawn = hash64(seed, _STREAM, np.arange(samples)[:, None], np.arange(n)) % np.uint64(n)
    means_AB = np.stack([arm[drawn.astype(np.int64)].mean(axis=1) for arm in x_AS])
    rank_AB = stats.rankdata(-means_AB, method="min", axis=0).astype(np.int64) - 1
    full = x_AS.mean(axis=1)
    return RankStability(
        arms=tuple(np.array(list(scores))[order].tolist()),
        means=tuple((full if higher_is_better else -full).tolist()),
        share=np.stack([np.bincount(ranks, minlength=len(scores)) for ranks in rank_AB]) / samples,
        kendall_tau=_kendall_tau(means_AB, full),
        subjects=n,
        left_out=int((~whole).sum()),
    )


def _kendall_tau(means_AB: np.ndarray, full_A: np.ndarray) -> np.ndarray:
    """Kendall's tau of every column with `full_A`: share of pairs in the same order minus in the other."""
    first, second = np.triu_indices(len(full_A), 1)
    same = np.sign(means_AB[first] - means_AB[second]) * np.sign(full_A[first] - full_A[second])[:, None]
    tau: np.ndarray = same.mean(axis=0)
    return tau
