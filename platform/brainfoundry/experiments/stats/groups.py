"""A metric by site, scanner, sex or age band, with counts that give nobody away."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from brainfoundry.cohorts.strata import UNKNOWN
from brainfoundry.reports.suppress import Sum, protect, show_all
from brainfoundry.tasks.intervals import Interval, mean_interval

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """One line of a table by group.

    Args:
        group: its name; `ALL` on the first line.
        count: subjects with a value, as it may be shown: "1,240", "<5" or "≥5".
        interval: their mean; None where the count is hidden, since the mean of few gives them away.
    """

    group: str
    count: str
    interval: Interval | None


def by_group(
    scores: Mapping[str, float],
    groups: Mapping[str, str],
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    show_small_counts: bool = False,
) -> list[GroupRow]:
    """The mean of a metric in every group, and of all, with intervals.

    A user's own question, not a test: with many groups some interval lies apart by chance.

    Args:
        scores: subject -> value; NaN is undefined and not counted.
        groups: subject -> group, such as `strata_of(people, ["age"]).of`; whoever is not in it is "unknown".
        bounds: what the metric can be (`bounds_of`).
        show_small_counts: hide nothing; for data that are public anyway.
    """
    members: dict[str, list[float]] = defaultdict(list)
    for subject, value in scores.items():
        if not math.isnan(value):
            members[groups.get(subject, UNKNOWN)].append(value)
    names = sorted(members, key=lambda name: (name == UNKNOWN, name))
    counts: dict[str | None, int] = {name: len(members[name]) for name in names}
    counts[None] = sum(counts.values())  # of the whole test set, a size that the study chose
    shown = show_all(counts)
    if not show_small_counts:
        shown = protect(counts, [Sum(None, (*names,))], always_shown=[None])
    rows = [GroupRow(group=ALL, count=shown.text(None), interval=mean_interval(scores, bounds=bounds))]
    for name in names:
        interval = None if name in shown.hidden else mean_interval(members[name], bounds=bounds)
        rows.append(GroupRow(group=name, count=shown.text(name), interval=interval))
    return rows
