"""A run over folds: who is held out, who is trained on, and that nobody slips through."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.folds import HELD_OUT, split_view
from brainfoundry.stream.plan import Plan, PlanSpec
from tests.stream.builders import CROP, PARTS, make_index

parts = st.tuples(
    st.sampled_from(["train", "val", "test", "", None]), st.one_of(st.none(), st.integers(0, 3))
)


def table_of(rows: list[tuple[str | None, int | None]]) -> pa.Table:
    splits, folds = zip(*rows, strict=True)
    return pa.table(
        {"split": pa.array(splits, pa.string()), "fold": pa.array(folds, pa.int32()), "n": range(len(rows))}
    )


def spec(**changes: object) -> PlanSpec:
    values = {"seed": 1, "crop": CROP, "groups_per_step": 1, "subjects_per_group": 1, "frame": "box"}
    return PlanSpec(**(values | changes))  # type: ignore[arg-type]


def subjects(shards: ShardSet, **changes: object) -> set[str]:
    return set(Plan.open(shards.uri, spec(**changes)).sessions[0])


@given(rows=st.lists(parts, min_size=1, max_size=12), fold=st.integers(0, 3))
def test_every_session_is_where_it_belongs(rows: list[tuple[str | None, int | None]], fold: int) -> None:
    table = table_of(rows)
    if not any(k == fold and split != "test" for split, k in rows):
        with pytest.raises(ConfigError, match=f"nobody outside the test set is in fold {fold}"):
            split_view(table, fold)
        return
    view = split_view(table, fold)
    assert view.schema == table.schema and view.drop_columns(["split"]) == table.drop_columns(["split"])
    for (split, k), seen in zip(rows, view["split"].to_pylist(), strict=True):
        assert (seen == "test") == (split == "test")
        assert (seen == HELD_OUT) == (split != "test" and k == fold)
        if k is None:
            assert seen == split
        elif split != "test" and k != fold:
            assert seen == "train"


def test_no_fold_is_the_table_itself() -> None:
    table = make_index(3)  # without a column of folds
    assert split_view(table, None) is table


def test_a_fold_that_nobody_is_in_is_refused(labelled: ShardSet) -> None:
    with pytest.raises(ConfigError, match=r"in fold 7 \[file .*\]\. Fix: choose one of the folds 0, 1, 2"):
        Plan.open(labelled.uri, spec(fold=7))
    with pytest.raises(ConfigError, match=r"Fix: deal folds with jobs/split\.py"):
        split_view(table_of([("train", None), ("test", 0)]), 0)
    with pytest.raises(DataError, match="index lacks the columns fold"):
        Plan.from_index(make_index(3), spec(fold=0))


@pytest.mark.parametrize("fold", [0, 1, 2])
def test_plans_over_folds(labelled: ShardSet, fold: int) -> None:
    train, held_out = subjects(labelled, fold=fold), subjects(labelled, fold=fold, split=HELD_OUT)
    test = {subject for subject, (split, _) in PARTS.items() if split == "test"}
    without = {"BraTS2021_00007"}
    assert held_out == {s for s, (_, k) in PARTS.items() if k == fold} - test
    assert train == {s for s, (_, k) in PARTS.items() if k is not None} - test - held_out | without
    assert subjects(labelled, fold=fold, split="val") == {"BraTS2021_00008"}
    assert subjects(labelled, fold=fold, split="test") == test


def test_a_plan_without_a_fold_goes_by_the_split_column(labelled: ShardSet) -> None:
    for split in ("train", "val", "test"):
        assert subjects(labelled, split=split) == {s for s, (part, _) in PARTS.items() if part == split}
    with pytest.raises(ConfigError, match=r"no eligible subject in split 'held_out'.*test, train, val"):
        subjects(labelled, split=HELD_OUT)


def test_only_sessions_with_a_mask(labelled: ShardSet) -> None:
    assert subjects(labelled) - subjects(labelled, labelled=True) == {"BraTS2021_00006"}
    assert subjects(labelled, fold=2, split=HELD_OUT) == {"BraTS2021_00006"}
    with pytest.raises(ConfigError, match=r"no session of split 'held_out' has a mask.*--labels required"):
        subjects(labelled, fold=2, split=HELD_OUT, labelled=True)
    with pytest.raises(ConfigError, match="needs 9 subjects but split 'train' has 4 with a mask"):
        subjects(labelled, labelled=True, subjects_per_group=9)
    with pytest.raises(DataError, match="index lacks the columns has_label"):
        Plan.from_index(make_index(3), spec(labelled=True))
