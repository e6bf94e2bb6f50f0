"""What a run over folds keeps of whom it sees: its receipt and its table of seen scans."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from brainfoundry.core.errors import ConfigError
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.plan import Plan, PlanSpec
from brainfoundry.stream.sessions import INDEX_COLUMNS
from brainfoundry.training.receipt_log import write_plan
from brainfoundry.training.receipt_read import read_receipt
from brainfoundry.training.seen import own_scans
from tests.stream.builders import CROP, make_index
from tests.training.leak_builders import image, make_set
from tests.training.receipts import about

SPEC = PlanSpec(seed=3, crop=CROP, groups_per_step=1, subjects_per_group=1, frame="box")
SUBJECTS = [str(9_930_001 + i) for i in range(7)]
SPLIT = dict(zip(SUBJECTS, ("train", "train", "val", "test", "train", "val", "test"), strict=True))
FOLD = dict(zip(SUBJECTS, (0, 1, 1, 0), strict=False))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    images = {subject: image(400 + i) for i, subject in enumerate(SUBJECTS)}
    return make_set(tmp_path_factory.mktemp("folds"), "brats", images, SPLIT, FOLD)


@pytest.mark.parametrize("fold", [None, 0, 1])
def test_a_run_has_seen_whom_its_plans_may_visit(shards: ShardSet, fold: int | None) -> None:
    own = own_scans(shards, ("T1w",), run="r", stage="finetune", held_out_fold=fold)
    seen = set(own["subject"].to_pylist())
    for split in ("train", "val"):
        visited = set(
            Plan.open(shards.uri, PlanSpec(**(SPEC.to_dict() | {"fold": fold, "split": split}))).sessions[0]
        )
        assert visited == set(own.filter(pa.compute.equal(own["split"], split))["subject"].to_pylist())
    held_out = {s for s, k in FOLD.items() if fold is not None and k == fold}
    test = {s for s, split in SPLIT.items() if split == "test"}
    assert seen == set(SUBJECTS) - held_out - test


def test_a_fold_that_nobody_is_in_has_nobody_to_hold_out(shards: ShardSet) -> None:
    with pytest.raises(ConfigError, match=r"in fold 5.*choose one of the folds 0, 1"):
        own_scans(shards, ("T1w",), run="r", stage="finetune", held_out_fold=5)


def test_the_receipt_of_a_fold_holds_its_sessions_alone(tmp_path: Path) -> None:
    index = make_index(9).append_column("fold", pa.array([0, 1, 2] * 3, pa.int32()))
    index = index.append_column("has_label", pa.array([True] * 8 + [False]))
    spec = PlanSpec(**(SPEC.to_dict() | {"fold": 1, "labelled": True, "foreground": 0.5}))
    name = write_plan(str(tmp_path), index, spec, about())
    table = pq.read_table(tmp_path / "receipt" / f"plan-{name}.parquet")
    assert table.column_names == INDEX_COLUMNS
    assert table["subject"].to_pylist() == [f"990000{i}" for i in (0, 2, 3, 5, 6)]
    receipt = read_receipt(str(tmp_path))
    assert receipt.problems == [] and receipt.plans[name].spec == spec
    assert receipt.plans[name].rows(0, 9).equals(Plan.from_index(index, spec).rows(0, 9))
