"""Metrics by group: counts, intervals, and small groups that stay hidden."""

from __future__ import annotations

import math

import numpy as np
import pytest

from brainfoundry.cohorts.strata import Person, strata_of
from brainfoundry.experiments.stats import by_group, mean_interval

RNG = np.random.default_rng(0)


def people(**sizes: int) -> tuple[dict[str, float], dict[str, str]]:
    groups = {f"{name}{i}": name for name, n in sizes.items() for i in range(n)}
    return {subject: float(RNG.beta(9, 1)) for subject in groups}, groups


def test_rows_are_all_and_each_group() -> None:
    scores, groups = people(B=30, A=20)
    rows = by_group(scores, groups, bounds=(0, 1))
    assert [(row.group, row.count) for row in rows] == [("all", "50"), ("A", "20"), ("B", "30")]
    assert rows[0].interval == mean_interval(scores, bounds=(0, 1))
    only_a = {subject: value for subject, value in scores.items() if groups[subject] == "A"}
    assert rows[1].interval == mean_interval(only_a, bounds=(0, 1))


def test_small_groups_are_hidden_and_cannot_be_computed() -> None:
    scores, groups = people(A=40, B=3, C=12)
    rows = {row.group: row for row in by_group(scores, groups)}
    assert rows["B"].count == "<5" and rows["B"].interval is None
    # With the total and the rest shown, B would be known: so one more is hidden, mean and all.
    hidden = [name for name, row in rows.items() if row.interval is None]
    assert len(hidden) == 2 and rows["all"].count == "55"
    assert {rows[name].count for name in hidden} == {"<5", "≥5"}
    shown = by_group(scores, groups, show_small_counts=True)
    assert [row.count for row in shown] == ["55", "40", "3", "12"]
    assert all(row.interval for row in shown)


def test_undefined_and_unknown() -> None:
    scores, groups = people(A=10, B=10)
    scores |= {"A0": math.nan, **{f"x{i}": 0.5 for i in range(6)}}
    rows = by_group(scores, groups)
    assert [(row.group, row.count) for row in rows] == [
        ("all", "25"), ("A", "9"), ("B", "10"), ("unknown", "6"),
    ]  # fmt: skip
    (everybody,) = by_group({}, {})
    assert everybody.count == "0" and everybody.interval and math.isnan(everybody.interval.mean)


@pytest.mark.parametrize(("by", "names"), [("age", ["45-49", ">=65"]), ("site", ["11025", "unknown"])])
def test_groups_of_a_manifests_people(by: str, names: list[str]) -> None:
    found = {
        f"s{i}": Person(
            subject=f"s{i}",
            parts=frozenset({("test", None)}),
            values={"age": 47.0, "site": "11025"} if i % 2 else {"age": 70.0},
        )
        for i in range(20)
    }
    rows = by_group(dict.fromkeys(found, 0.5), strata_of(found, [by]).of)
    assert [row.group for row in rows] == ["all", *names]
