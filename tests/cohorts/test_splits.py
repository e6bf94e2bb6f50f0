"""Splits by subject: exact, balanced, a function of who is there, with a record it can be held against."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfoundry.cohorts.manifest import Row, assign_split
from brainfoundry.cohorts.splits import (
    SplitSpec,
    few_shot,
    few_shot_recipe,
    hold_out,
    parse_size,
    placed,
    split_subjects,
    verify_split,
)
from brainfoundry.cohorts.strata import people_of
from brainfoundry.core.errors import ConfigError, DataError

from .people import SEEDS, cohorts, in_manifest, many, specs


@settings(max_examples=150, deadline=None)
@given(rows=cohorts(), data=st.data())
def test_every_subject_once_in_sizes_as_asked_whatever_the_order(rows, data) -> None:
    subjects = {row.subject for row in rows if row.included}
    spec = data.draw(specs(len(subjects)))
    split = split_subjects(rows, spec)
    assert set(split.parts) == subjects
    sizes = Counter(part for part, _ in split.parts.values())
    assert (sizes["test"], sizes["val"]) == (spec.test, spec.val)
    assert sizes["train"] == len(subjects) - spec.test - spec.val
    folds = Counter(fold for part, fold in split.parts.values() if part == "train" and spec.folds)
    assert set(folds) == set(range(spec.folds)) and max(folds.values(), default=0) - min(
        folds.values(), default=0
    ) in (0, 1)
    assert all(fold is None for part, fold in split.parts.values() if part != "train" or not spec.folds)
    # All sessions of a subject are in one place, so no scan of anybody is in two.
    people = people_of([placed(row, split.parts) for row in rows])
    assert {subject: person.part for subject, person in people.items()} == dict(split.parts)
    assert split_subjects(data.draw(st.permutations(rows)), spec) == split


@settings(max_examples=150, deadline=None)
@given(rows=cohorts(), data=st.data())
def test_strata_get_their_share(rows, data) -> None:
    spec = data.draw(specs(len({row.subject for row in rows if row.included})))
    split = split_subjects(rows, spec)
    n = len(split.parts)
    by_stratum: dict[str, Counter] = {}
    for subject, part in split.parts.items():
        by_stratum.setdefault(split.strata[subject], Counter())[part] += 1
    for counts in by_stratum.values():
        size = sum(counts.values())
        assert abs(counts["test", None] - size * spec.test / n) < 1
        assert abs(counts["val", None] - size * spec.val / n) < 2
        if spec.folds:
            folds = [counts["train", fold] for fold in range(spec.folds)]
            assert max(folds) - min(folds) <= 1


@settings(max_examples=150, deadline=None)
@given(rows=cohorts(least=4), data=st.data())
def test_one_subject_more_moves_few_others(rows, data) -> None:
    subjects = sorted({row.subject for row in rows if row.included})
    gone = data.draw(st.sampled_from(subjects))
    spec = data.draw(specs(len(subjects) - 1))
    after = split_subjects(rows, spec)
    before = split_subjects([row for row in rows if row.subject != gone], spec)
    moved = sum(after.parts[subject] != part for subject, part in before.parts.items())
    boundaries = 1 + (spec.folds or 1)
    if not spec.stratify:
        assert moved <= boundaries
    if set(after.strata.values()) == set(before.strata.values()):
        assert moved <= 3 * boundaries * len(set(after.strata.values()))


def test_in_a_large_cohort_one_subject_more_moves_no_share_of_it() -> None:
    rows = many(3000)
    spec = SplitSpec(test=0.1, val=0.1, folds=5, stratify=("sex", "site", "age"))
    before, after = split_subjects(rows[1:], spec).parts, split_subjects(rows, spec).parts
    assert sum(after[subject] != part for subject, part in before.items()) < 20


def test_every_stratum_has_its_chance_to_be_rounded_up() -> None:
    """Twelve strata of one subject and four of two, a quarter to test: everybody a quarter of the time."""
    rows = [
        Row(subject=f"s{i:02d}", session="", cohort="c", site=f"one{i}" if i < 12 else f"two{i // 2}")
        for i in range(20)
    ]
    counted: Counter[str] = Counter()
    for seed in range(400):
        split = split_subjects(rows, SplitSpec(seed=seed, test=5, stratify=("site",), min_stratum=1))
        counted.update(subject for subject, part in split.parts.items() if part[0] == "test")
    assert len(counted) == 20 and all(65 <= n <= 135 for n in counted.values())  # 100, 4 sd of 8.7


@settings(max_examples=100, deadline=None)
@given(rows=cohorts(), data=st.data())
def test_the_test_set_is_fixed_under_val_folds_and_few_shot(rows, data) -> None:
    spec = data.draw(specs(len({row.subject for row in rows if row.included})))
    alone = split_subjects(rows, replace(spec, val=0, folds=0))
    assert {s for s, p in split_subjects(rows, spec).parts.items() if p[0] == "test"} == {
        s for s, p in alone.parts.items() if p[0] == "test"
    }


@given(n=st.integers(1, 40), seed=SEEDS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_without_strata_it_is_the_split_that_conversion_makes(n, seed, data) -> None:
    n_val = data.draw(st.integers(0, n - 1))
    parts = split_subjects(many(n), SplitSpec(seed=seed, val=n_val)).parts
    assert {s: part for s, (part, _) in parts.items()} == assign_split(parts, n_val, seed)


def test_the_split_is_the_same_for_ever() -> None:
    # Found once with this code and pinned: a change would move subjects between test and training.
    split = split_subjects(many(40), SplitSpec(seed=3, test=5, val=0.1, folds=3, stratify=("sex",)))
    assert split.record["parts_sha256"] == GOLDEN_PARTS
    rows = [placed(row, split.parts) for row in many(40)]
    assert few_shot(rows, few_shot_recipe(seed=3, stratify=("site",)), 10, 1) == GOLDEN_FEW


GOLDEN_PARTS = "7fdf84101106b837ea491b47bced3b853928d7ba12e7cba78945b8b5add0cb87"
GOLDEN_FEW = ("9900011", "9900013", "9900025")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stratify": ("scanner",)}, r"cannot stratify by 'scanner'.*Fix: choose of sex, site, age"),
        ({"stratify": ("age",), "age_bands": (60, 50)}, "do not ascend"),
        ({"stratify": ("sex", "sex")}, "named twice"),
        ({"test": 12}, r"12 subjects cannot give 12 to test and 0 to val"),
        ({"test": 0.5, "val": 0.5}, "cannot give 6 to test and 6 to val"),
        ({"test": 4, "folds": 9}, "9 folds of the rest"),
        ({"folds": 1}, "1 folds"),
        ({"test": -1}, "neither a count nor a share"),
        ({"val": 1.5}, "neither a count nor a share"),
        ({"val": float("nan")}, "neither a count nor a share"),
    ],
)
def test_splits_that_cannot_be(changes, words) -> None:
    with pytest.raises(ConfigError, match=words):
        split_subjects(many(12), SplitSpec(**changes))


@pytest.mark.parametrize(("text", "size"), [("100", 100), ("0.2", 0.2), ("20%", 0.2), ("0", 0), (" 5 ", 5)])
def test_sizes_as_written(text, size) -> None:
    assert parse_size(text) == size and type(parse_size(text)) is type(size)


def test_a_size_that_is_no_number() -> None:
    with pytest.raises(ConfigError, match=r"'many' is no number.*Fix: such as 100, 0.2 or 20%"):
        parse_size("many")


# ---------------------------------------------------------------------------------------------------------
# Held against the record


@settings(max_examples=40, deadline=None)
@given(rows=cohorts(), data=st.data())
def test_a_record_is_enough_to_make_the_split_again(tmp_path_factory, rows, data) -> None:
    spec = data.draw(specs(len({row.subject for row in rows if row.included})))
    split = split_subjects(rows, spec)
    folder = tmp_path_factory.mktemp("m")
    manifest = in_manifest(folder, [placed(row, split.parts) for row in rows], split.record)
    assert verify_split(manifest) == []
    # Somebody moved by hand is seen.
    one = data.draw(st.sampled_from(sorted(split.parts)))
    other = {**split.parts, one: ("val" if split.parts[one][0] != "val" else "train", None)}
    moved = in_manifest(folder, [placed(row, other) for row in rows], split.record)
    assert verify_split(moved) == ["subjects are in other splits or folds than the record says"]
    claimed = split.record | {"seed": spec.seed + 1, "test": len(split.parts) - 1, "val": 0, "folds": 0}
    if spec.test != len(split.parts) - 1:
        wrong = in_manifest(folder, [placed(row, split.parts) for row in rows], claimed)
        assert verify_split(wrong) == ["the recorded settings give another split"]


def test_sessions_of_one_subject_in_two_folds_are_seen(tmp_path) -> None:
    rows = [
        Row(subject="s", session="1", cohort="c", split="train", fold=0),
        Row(subject="s", session="2", cohort="c", split="train", fold=1),
    ]
    (problem,) = verify_split(in_manifest(tmp_path, rows))
    assert "several splits or folds: train, fold 0 and train, fold 1" in problem and "subject s" in problem
    with pytest.raises(DataError, match="subject s"):
        few_shot(rows, few_shot_recipe(), 5, 0)


def test_after_exclusions_the_rest_still_holds(tmp_path) -> None:
    rows = many(30)
    split = split_subjects(rows, SplitSpec(test=6, stratify=("sex",)))
    rows = [placed(row, split.parts) for row in rows]
    rows[3] = replace(rows[3].excluded("withdrawn", ""), age=None, sex=None, site=None)
    assert verify_split(in_manifest(tmp_path, rows, split.record)) == []
    newcomer = Row(subject="new", session="2", cohort="test", split="test")
    (problem,) = verify_split(in_manifest(tmp_path, [*rows, newcomer], split.record))
    assert "test has 7 subjects, more than the 6" in problem
    (problem,) = verify_split(in_manifest(tmp_path, rows[:20], split.record))
    assert "11 subjects of the split are missing, and fewer are excluded" in problem


def test_a_fold_is_held_out(tmp_path) -> None:
    rows = many(30)
    spec = SplitSpec(folds=5, val_fold=1, test_fold=4)
    split = split_subjects(rows, spec)
    plain = split_subjects(rows, SplitSpec(folds=5)).parts
    names = {1: "val", 4: "test"}
    assert dict(split.parts) == {s: (names.get(fold, "train"), fold) for s, (_, fold) in plain.items()}
    manifest = in_manifest(tmp_path, [placed(row, split.parts) for row in rows], split.record)
    assert verify_split(manifest) == []
    for wrong, words in (((5, None), "no subject is in fold 5"), ((1, 1), "both val and test")):
        with pytest.raises(ConfigError, match=words):
            hold_out(plain, *wrong)
