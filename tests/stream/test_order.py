"""The order of visits: a pure function that must never change, whatever else does."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainfoundry.core.rng import hash64_int, key_of
from brainfoundry.stream.order import Visits, keys_of, order, visit

NAMES = [f"{9_900_000 + i}" for i in range(8)]
names = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=40, unique=True)
seeds = st.integers(0, 2**63)

GOLDEN_ORDER = [[0, 3, 6, 1, 4, 2, 5, 7], [0, 1, 5, 3, 4, 2, 7, 6], [3, 0, 1, 4, 6, 5, 2, 7]]
GOLDEN_OTHER_SEED = [6, 4, 0, 3, 5, 7, 1, 2]
GOLDEN_BIG = "02370401e364cca5dfd3ba14d6a52a3e38f137977ffd199e82264b8e786131e4"
GOLDEN_SESSIONS = [3, 0, 5, 5, 1, 4, 5, 0, 3, 5, 1, 2]


def test_golden_order() -> None:
    # Frozen when written: a run resumed years later must see the same subjects in the same order.
    keys = keys_of(NAMES)
    assert [order(2024, epoch, keys).tolist() for epoch in range(3)] == GOLDEN_ORDER
    assert order(2025, 0, keys).tolist() == GOLDEN_OTHER_SEED
    many = order(7, 123_456, keys_of([str(i) for i in range(39_504)]))
    assert hashlib.sha256(many.astype("<i8").tobytes()).hexdigest() == GOLDEN_BIG


def test_golden_sessions() -> None:
    visits = Visits(2024, ["a", "a", "b", "b", "b", "c"], ["2", "3", "2", "3", "4", "2"])
    assert visits.rows(np.arange(12)).tolist() == GOLDEN_SESSIONS


@given(names, seeds, st.integers(0, 10**9))
def test_order_is_the_sort_of_the_hash(subjects: list[str], seed: int, epoch: int) -> None:
    expected = sorted(range(len(subjects)), key=lambda i: hash64_int(seed, epoch, key_of(subjects[i])))
    assert order(seed, epoch, keys_of(subjects)).tolist() == expected


@given(names, seeds, st.data())
def test_withdrawal_leaves_the_others_in_order(subjects: list[str], seed: int, data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(subjects))
    left = [s for s in subjects if s != gone]
    before = [subjects[i] for i in order(seed, 3, keys_of(subjects)) if subjects[i] != gone]
    assert [left[i] for i in order(seed, 3, keys_of(left))] == before


@given(st.integers(1, 50), st.integers(0, 200))
def test_visit_counts_through_the_epochs(n: int, position: int) -> None:
    epoch, place = visit(position, n)
    assert epoch * n + place == position
    assert 0 <= place < n


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), seeds, st.integers(0, 10**6))
def test_each_epoch_visits_each_subject_once_with_one_session(
    counts: list[int], seed: int, epoch: int
) -> None:
    subjects = [f"s{i:02d}" for i, c in enumerate(counts) for _ in range(c)]
    sessions = [str(j) for c in counts for j in range(c)]
    visits = Visits(seed, subjects, sessions)
    n = visits.n_subjects
    rows = visits.rows(np.arange(epoch * n, (epoch + 1) * n))
    assert sorted(subjects[r] for r in rows) == sorted(set(subjects))


@given(names, seeds, st.lists(st.integers(0, 10**6), min_size=1, max_size=30))
def test_any_position_is_found_alone(subjects: list[str], seed: int, positions: list[int]) -> None:
    subjects = sorted(subjects)
    sessions = ["2"] * len(subjects)
    together = Visits(seed, subjects, sessions).rows(np.array(positions))
    one = Visits(seed, subjects, sessions)
    assert [int(one.rows(np.array([p]))[0]) for p in positions] == together.tolist()


def test_every_session_of_a_subject_is_seen_in_time() -> None:
    rows = Visits(1, ["a"] * 3, ["2", "3", "4"]).rows(np.arange(300))
    assert np.bincount(rows, minlength=3).min() > 70


def test_unsorted_subjects_are_refused() -> None:
    with pytest.raises(ValueError, match="next to each other"):
        Visits(1, ["a", "b", "a"], ["2", "2", "3"])
