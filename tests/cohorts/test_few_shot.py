"""Few-shot subsets: nested, balanced, of training subjects only, and as many draws as asked for."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfoundry.cohorts.few_shot import few_shot, few_shot_recipe, few_shot_subsets, write_few_shot
from brainfoundry.cohorts.splits import SplitSpec, placed, split_subjects
from brainfoundry.cohorts.strata import people_of, strata_of
from brainfoundry.core.errors import ConfigError, DataError

from .people import SEEDS, cohorts, in_manifest, many, specs


@settings(max_examples=100, deadline=None)
@given(rows=cohorts(), seed=SEEDS, data=st.data())
def test_few_shot_subsets_are_nested_balanced_and_never_held_out(rows, seed, data) -> None:
    spec = data.draw(specs(len({row.subject for row in rows if row.included})))
    parts = split_subjects(rows, spec).parts
    rows = [placed(row, parts) for row in rows]
    train = {subject for subject, (split, _) in parts.items() if split == "train"}
    recipe = few_shot_recipe(
        seed=seed, shares=(5, 10, 20, 40, 100), draws=3, stratify=spec.stratify, min_stratum=spec.min_stratum
    )
    subsets = few_shot_subsets(data.draw(st.permutations(rows)), recipe)
    for draw in range(3):
        chosen = [set(subsets[share, draw]) for share in recipe["shares"]]
        assert all(small <= large for small, large in itertools.pairwise(chosen))
        assert chosen[-1] == train
        for share, who in zip(recipe["shares"], chosen, strict=True):
            assert len(who) == max(1, int(len(train) * share / 100 + 0.5))
            assert tuple(sorted(who)) == few_shot(rows, recipe, share, draw)
    people = {s: p for s, p in people_of(rows).items() if s in train}
    strata = strata_of(people, spec.stratify, smallest=spec.min_stratum).of
    sizes = Counter(strata.values())
    half = subsets[40, 0]
    for name, n in sizes.items():
        got = sum(strata[subject] == name for subject in half)
        assert abs(got - n * len(half) / len(train)) <= 1 + len(sizes) * n / len(train)


def test_draws_differ_and_a_fold_can_be_left_out() -> None:
    rows = many(200)
    parts = split_subjects(rows, SplitSpec(test=20, folds=5)).parts
    rows = [placed(row, parts) for row in rows]
    recipe = few_shot_recipe(draws=4)
    draws = {few_shot(rows, recipe, 10, draw) for draw in range(4)}
    assert len(draws) == 4 and {len(who) for who in draws} == {18}
    without = few_shot(rows, recipe, 100, 0, without_fold=2)
    assert set(without) == {s for s, part in parts.items() if part[0] == "train" and part[1] != 2}


def test_few_shot_reads_a_shard_sets_index_too(tmp_path) -> None:
    rows = many(30)
    parts = split_subjects(rows, SplitSpec(test=5)).parts
    manifest = in_manifest(tmp_path, [placed(row, parts) for row in rows])
    recipe = few_shot_recipe()
    index = manifest.table.select(["subject", "session", "split", "fold"])
    assert few_shot(index, recipe, 20, 0) == few_shot(manifest, recipe, 20, 0)
    write_few_shot(str(tmp_path / "few.csv"), few_shot_subsets(manifest, recipe))
    lines = (tmp_path / "few.csv").read_text().splitlines()
    assert lines[0] == "share,draw,subject_id" and len(lines) == 1 + 5 * (1 + 3 + 5 + 10 + 25)


@pytest.mark.parametrize(
    ("share", "draw", "words"),
    [(7, 0, "no few-shot subset of 7 %"), (5, 5, "draws 0 to 4"), (5, -1, "draw -1")],
)
def test_subsets_the_recipe_does_not_have(share, draw, words) -> None:
    rows = [replace(row, split="train") for row in many(20)]
    with pytest.raises(ConfigError, match=words):
        few_shot(rows, few_shot_recipe(), share, draw)


def test_nobody_to_train_on_is_told() -> None:
    with pytest.raises(DataError, match=r"no training subject.*Fix: split the cohort first"):
        few_shot(many(5), few_shot_recipe(), 5, 0)
    with pytest.raises(DataError, match="recipe of version 9"):
        few_shot(many(5), few_shot_recipe() | {"version": 9}, 5, 0)


@pytest.mark.parametrize(
    "wrong", [{"shares": (0, 5)}, {"shares": (5, 101)}, {"shares": (5, 5)}, {"draws": 0}]
)
def test_recipes_that_make_no_sense(wrong) -> None:
    with pytest.raises(ConfigError, match="few-shot"):
        few_shot_recipe(**wrong)
