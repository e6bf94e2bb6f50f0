"""Arms of a study pooled and compared: over folds, draws of the labels and seeds, subject by subject.

Folds that are tested on themselves are put together: every subject has one score. Draws, seeds and folds that
share one test set are repetitions: every subject has one score in each. Repetitions within repetitions (seeds
of a draw, draws of a fold) are no further independent ones: they are averaged, and the outermost are counted.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from brainfoundry.experiments.report.cells import Estimate
from brainfoundry.experiments.report.results import Repeat, Trial
from brainfoundry.experiments.stats import (
    Comparison,
    Repeated,
    TwoLevel,
    bounds_of,
    holm,
    mean_interval,
    paired_difference,
    paired_draws,
    two_level,
)  # fmt: skip
from brainfoundry.experiments.stats.paired import ALPHA
from brainfoundry.tasks.scores import higher_is_better

Scores = dict[str, float]
"""Subject -> value."""
Keyed = dict[Any, Scores]
"""Draw, or (pretraining seed, draw) of an arm that was pretrained -> subject -> value."""


@dataclass(frozen=True)
class Arm:
    """Trials that are alike on some axes: a row of a table.

    Args:
        planned: whether the study has such trials at all; a row of the paper may have none.
    """

    name: str
    where: Mapping[str, Any]
    planned: bool = True


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Arm minus comparator.

    Args:
        estimate: with the interval: over subjects, and over draws where there are several.
        test: Wilcoxon's test and effect sizes, on the mean over the draws of every subject.
        draws: what the two-level analysis says; None with one draw.
        better: the interval leaves out 0 on the better side; with `corrected`, Holm's p is small too.
        flattered: the interval leaves out 0, and not with missed regions counted.
    """

    estimate: Estimate
    test: Comparison
    draws: TwoLevel | None
    better: bool
    flattered: bool = False

    @property
    def clear(self) -> bool:
        """Whether there is a difference: the interval leaves out 0, also with missed regions counted."""
        return (self.estimate.low > 0 or self.estimate.high < 0) and not self.flattered

    @property
    def detectable(self) -> float | None:
        """The smallest difference that a study of this size would have found with 80 % power."""
        return None if self.draws is None else self.draws.mdd

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the interval may not cover 95 %."""
        said = self.test.warning if self.draws is None else self.draws.warning
        return (said,) if said else ()


def keyed(trials: Sequence[Trial], metric: str) -> Keyed:
    """The scores of an arm by repetition."""
    found: dict[Any, Scores] = defaultdict(dict)
    pretrained = any(trial.pretrained for trial in trials)
    for trial in trials:
        repeat = trial.repeat
        found[(trial.point["pretrain_seed"], repeat) if pretrained else repeat].update(trial.values(metric))
    return _complete(dict(found))


def _complete(found: Keyed) -> Keyed:
    """Only the draws that all pretraining seeds have: what is crossed must be whole."""
    if not found or not isinstance(next(iter(found)), tuple):
        return found
    draws: dict[Any, set[Any]] = defaultdict(set)
    for seed, draw in found:
        draws[seed].add(draw)
    shared = set.intersection(*draws.values())
    if shared:
        return {key: scores for key, scores in found.items() if key[1] in shared}
    fullest = max(draws, key=lambda seed: (len(draws[seed]), -seed))
    return {key: scores for key, scores in found.items() if key[0] == fullest}


def outermost(found: Keyed) -> tuple[Keyed, Repeated]:
    """The mean within each of the outermost repetitions that differ: folds, else draws, else seeds; and which
    of them it is."""
    repeats = {key: _repeat(key) for key in found}
    levels: tuple[Repeated, ...] = ("fold", "draw", "seed")
    level: Repeated = "draw"
    for name in levels:
        if len({getattr(repeat, name) for repeat in repeats.values()}) > 1:
            level = name
            break
    inner: dict[Any, list[Scores]] = defaultdict(list)
    for key, scores in found.items():
        outer = getattr(repeats[key], level)
        inner[(key[0], outer) if isinstance(key, tuple) else outer].append(scores)
    return {key: mean_over(same) for key, same in inner.items()}, level


def mean_over(same: Sequence[Scores]) -> Scores:
    """Of every subject; NaN where one lacks it."""
    if len(same) == 1:
        return same[0]
    subjects = sorted(set().union(*same))
    return {s: float(np.mean([of.get(s, math.nan) for of in same])) for s in subjects}


def in_same_repetitions(arms: Mapping[str, Keyed]) -> dict[str, Keyed]:
    """Arms by the same repetitions, or an arm would stand out by its draws: as many trials as that allows.

    An arm that lacks one of these repetitions is left out.
    """
    repeats = {arm: frozenset(map(_repeat, found)) for arm, found in arms.items()}
    choices = {one & other for one in repeats.values() for other in repeats.values()}
    kept = {shared: [arm for arm in arms if repeats[arm] >= shared] for shared in choices if shared}
    if len(arms) > 1:  # nothing can be seen of an arm alone
        kept = {shared: names for shared, names in kept.items() if len(names) > 1}
    if not kept:
        return {}
    best = max(kept, key=lambda shared: (len(kept[shared]) * len(shared), sorted(shared)))
    return {arm: {key: of for key, of in arms[arm].items() if _repeat(key) in best} for arm in kept[best]}


def _repeat(key: Any) -> Repeat:
    return key[1] if isinstance(key, tuple) else key


def repetitions(trials: Sequence[Trial], metric: str) -> list[float]:
    """The mean over the test subjects, one a repetition, in their order."""
    found, _ = outermost(keyed(trials, metric))
    return [float(np.nanmean(list(found[key].values()))) for key in sorted(found)]


def estimate(trials: Sequence[Trial], metric: str) -> tuple[Estimate, tuple[str, ...]] | None:
    """The mean of an arm with its interval, and warnings about it; None where no subject has a value."""
    found, repeated = outermost(keyed(trials, metric))
    bounds = bounds_of(metric)
    if len(found) == 1:
        one = mean_interval(next(iter(found.values())), bounds=bounds)
        if not one.n:
            return None
        told = Estimate(value=one.mean, low=one.low, high=one.high, n=one.n)
        return told, (one.warning,) if one.warning else ()
    if not found or not _anybody(found):
        return None
    many = two_level(found, repeated=repeated)
    low, high = np.clip((many.low, many.high), *bounds)
    told = Estimate(
        value=many.difference, low=float(low), high=float(high), n=many.subjects, draws=len(found),
        sd=many.sd_between_draws,
    )  # fmt: skip
    left = (f"{many.left_out} subjects without a value in every draw are left out",) if many.left_out else ()
    return told, (*left, *((many.warning,) if many.warning else ()))


def difference(arm: Sequence[Trial], comparator: Sequence[Trial], metric: str) -> Difference | None:
    """Arm minus comparator on the subjects and draws of both; None where they share none."""
    a, b = keyed(arm, metric), keyed(comparator, metric)
    if not a or not b:
        return None
    pairs, repeated = outermost(_pairs(a, b))
    higher = higher_is_better(metric)
    if not pairs or not _anybody(pairs):
        return None
    whole = _mean(pairs)
    # Subject by subject, averaged over the draws, which is 0 for the other side by construction.
    test = paired_difference(whole, dict.fromkeys(whole, 0.0), higher_is_better=higher)
    if len(pairs) == 1:
        said, low, high, draws = None, test.low, test.high, 1
        value, n, sd = test.difference, test.n, float("nan")
    else:
        said = two_level(pairs, repeated=repeated)
        value, low, high, n, draws = said.difference, said.low, said.high, said.subjects, len(pairs)
        sd = said.sd_between_draws
    least, most = bounds_of(metric)  # no difference is greater than the metric's range
    low, high = (float(end) for end in np.clip((low, high), least - most, most - least))
    better = low > 0 if higher else high < 0
    flattered = (low > 0 or high < 0) and _flattered(arm, comparator, metric, above=low > 0)
    better = better and not flattered
    told = Estimate(value=value, low=low, high=high, n=n, draws=draws, sd=sd, better=better, signed=True)
    return Difference(estimate=told, test=test, draws=said, better=better, flattered=flattered)


def _flattered(arm: Sequence[Trial], comparator: Sequence[Trial], metric: str, *, above: bool) -> bool:
    """Whether there is no such difference of distances once a missed region counts as far away.

    A distance is only known for what both arms found: by that alone, finding less would be better.
    """
    counted = f"{metric}_challenge"
    if higher_is_better(metric) or not all(
        trial.scores is not None and counted in trial.scores.metrics for trial in (*arm, *comparator)
    ):
        return False
    found = difference(arm, comparator, counted)
    return found is None or not (found.estimate.low > 0 if above else found.estimate.high < 0)


def corrected(family: Sequence[Difference]) -> list[Difference]:
    """The comparisons of a table, with Holm's p: better is only what is so after the correction too."""
    tests = holm([one.test for one in family])
    found = []
    for one, test in zip(family, tests, strict=True):
        better = one.better and (test.p_holm or 0.0) < ALPHA
        told = replace(one.estimate, better=better)
        found.append(replace(one, test=test, better=better, estimate=told))
    return found


def _pairs(a: Keyed, b: Keyed) -> Keyed:
    """Differences by repetition, of those that both arms have; empty where there is none."""
    seeded = [isinstance(next(iter(side)), tuple) for side in (a, b)]
    if seeded == [False, True]:  # a pretrained comparator: turned round, so that its seeds count
        return {key: {s: -x for s, x in of.items()} for key, of in _pairs(b, a).items()}
    draws = {key[1] for key in b} if seeded[1] else set(b)
    if seeded[0] and seeded[1]:
        common = a.keys() & b.keys()
    else:
        common = {key for key in a if (key[1] if seeded[0] else key) in draws}
    if not common:
        return {}
    return _complete(paired_draws({key: a[key] for key in common}, b))


def _mean(pairs: Keyed) -> Scores:
    """Over the repetitions, of the subjects that are defined in all of them."""
    return {s: mean for s, mean in mean_over(list(pairs.values())).items() if not math.isnan(mean)}


def _anybody(found: Keyed) -> bool:
    """Whether some subject has a value in every repetition."""
    return bool(_mean(found))
