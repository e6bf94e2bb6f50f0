"""Cohorts of made-up people, for the tests of splits, strata and few-shot subsets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from brainfoundry.cohorts.manifest import Manifest, Row, read_manifest, write_manifest
from brainfoundry.cohorts.splits import SplitSpec

from .builders import meta

SEEDS = st.integers(0, 2**63)


@st.composite
def cohorts(draw: st.DrawFn, least: int = 3) -> list[Row]:
    """Subjects of one to three sessions, some excluded, with sex, site and age now and then."""
    made = []
    for number in draw(st.lists(st.integers(0, 9999), min_size=least, max_size=60, unique=True)):
        person = {
            "sex": draw(st.sampled_from(["F", "M", None])),
            "site": draw(st.sampled_from(["a", "b", "c"])),
            "age": draw(st.none() | st.floats(18, 90)),
        }
        sessions = draw(st.integers(1, 3))
        for session in range(sessions):
            row = Row(subject=f"s{number:04d}", session=str(session), cohort="test", **person)
            out = session > 0 and draw(st.booleans())
            made.append(row.excluded("duplicate", "twice") if out else row)
    return made


@st.composite
def specs(draw: st.DrawFn, n: int) -> SplitSpec:
    """A split that n subjects can give."""
    test, val = draw(st.integers(0, n - 1)), 0
    val = draw(st.integers(0, n - 1 - test))
    folds = draw(st.sampled_from([0, 2, 3, 5]))
    return SplitSpec(
        seed=draw(SEEDS),
        test=test,
        val=val,
        folds=folds if folds <= n - test - val else 0,
        stratify=tuple(draw(st.permutations(["sex", "site", "age"]))[: draw(st.integers(0, 3))]),
        min_stratum=draw(st.integers(1, 12)),
    )


def in_manifest(folder: Path, rows: list[Row], record: Any = None) -> Manifest:
    uri = str(folder / "m.parquet")
    write_manifest(uri, sorted(rows, key=lambda row: row.key), meta(splits=record or {}))
    return read_manifest(uri)


def many(n: int) -> list[Row]:
    """n subjects, two sexes and three sites in unequal numbers, ages 40 to 79."""
    return [
        Row(
            subject=f"{9_900_001 + i}", session="2", cohort="test", age=40.0 + i % 40, sex="FFM"[i % 3],
            site="aaaabbc"[i % 7],
        )
        for i in range(n)
    ]  # fmt: skip
