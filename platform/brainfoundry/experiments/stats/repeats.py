"""Differences of whole repeats, whose subjects are not known (published tables), and how many it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.tasks.intervals import LEVEL, t_interval

POWER = 0.8


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Paired differences of whole repeats, whose subjects are not known (such as published tables).

    Args:
        low: lower end of the 95 % t interval over repeats; test subjects are not covered.
        mdd: minimum detectable difference at this number of repeats and this spread.
    """

    difference: float
    low: float
    high: float
    sd: float
    median: float
    wins: int
    ties: int
    losses: int
    n: int
    mdd: float


def repeats(differences: np.ndarray) -> Repeats:
    """Mean, interval, median and wins of one difference a repeat.

    Raises:
        DataError: fewer than two.
    """
    x = np.asarray(differences, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2:
        raise DataError("fewer than two repeats have no spread", fix="repeat the comparison")
    (low, high), sd = map(float, t_interval(x)), float(x.std(ddof=1))
    return Repeats(
        difference=float(x.mean()), low=low, high=high, sd=sd, median=float(np.median(x)),
        wins=int((x > 0).sum()), ties=int((x == 0).sum()), losses=int((x < 0).sum()), n=len(x),
        mdd=detectable(len(x) - 1) * sd / math.sqrt(len(x)),
    )  # fmt: skip


def repeats_needed(difference: float, sd: float) -> int:
    """Repeats from which on a true difference is found with 80 % power at alpha 0.05, if they spread by `sd`.

    Raises:
        ConfigError: a difference of 0, which no number of repeats finds.
    """
    if not difference:
        raise ConfigError("no number of repeats detects a difference of 0", fix="name one that matters")
    n = 2
    while detectable(n - 1) * sd / math.sqrt(n) > abs(difference):
        n += 1
    return n


def detectable(df: float) -> float:
    """The true difference, in standard errors, that a t test finds with 80 % power at alpha 0.05."""
    return float(stats.t.ppf((1 + LEVEL) / 2, df) + stats.t.ppf(POWER, df))
