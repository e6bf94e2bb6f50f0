"""nnU-Net's masks back in our labels, by our metrics."""

import math
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest

from brainfoundry.core.errors import DataError
from brainfoundry.experiments.nnunet.cases import Selection
from brainfoundry.experiments.nnunet.export import Export, export_dataset, labels_of, plan_export
from brainfoundry.experiments.nnunet.score import score_predictions
from brainfoundry.store.reader import ShardSet
from brainfoundry.tasks import load_task
from brainfoundry.tasks.scores import ScoreTable
from brainfoundry.training.volumes import sessions_of


def predict(export: Export, *, perfect: bool = True) -> None:
    """What nnU-Net would leave behind: the truth in its numbers, or the same one voxel off."""
    shards = ShardSet.open(export.shards)
    export.predictions.mkdir()
    for case in export.of("test"):
        numbers = export.numbering.encode(labels_of(shards, case))
        if not perfect:
            numbers = np.roll(numbers, 1, axis=0)
        affine = nibabel.load(export.images_test / f"{case.name}_0000.nii.gz").affine
        nibabel.save(nibabel.Nifti1Image(numbers, affine), export.prediction(case))


@pytest.fixture
def tested(shards: str, tmp_path: Path) -> Export:
    """Fold 0 tested (cases 3 and 6)."""
    return export_dataset(plan_export(Selection(shards=shards, fold=0, test="fold"), str(tmp_path / "out")))


def test_a_perfect_prediction_scores_perfectly_in_every_region(tested: Export) -> None:
    predict(tested)
    table = score_predictions(tested)
    assert [subject for subject, _ in table.keys] == ["BraTS2021_00003", "BraTS2021_00006"]
    for region in ("tc", "wt", "et", "mean"):
        assert table.column(f"dice_{region}").tolist() == [1.0, 1.0]
        assert table.column(f"hd95_{region}").tolist() == [0.0, 0.0]


def test_a_region_that_is_not_there_counts_by_the_policy(shards: str, tmp_path: Path) -> None:
    export = export_dataset(plan_export(Selection(shards=shards), str(tmp_path / "out")))  # case 9: no ET
    predict(export)
    table = score_predictions(export)
    assert math.isnan(table.column("dice_et")[0])
    assert table.column("dice_et_challenge").tolist() == [1.0]


def test_scores_are_those_of_our_own_predictions(tested: Export) -> None:
    predict(tested, perfect=False)
    table, shards, task = score_predictions(tested), ShardSet.open(tested.shards), load_task("brats")
    for session, row in zip(sessions_of(shards, split="held_out", fold=0), table.values, strict=True):
        case = next(c for c in tested.cases if c.subject == session.subject)
        truth = labels_of(shards, case)
        expected = task.score(truth, np.roll(truth, 1, axis=0), session.spacing, "brats2021")
        assert dict(zip(table.metrics, row, strict=True)) == pytest.approx(expected, nan_ok=True)
        assert 0 < expected["dice_wt"] < 1


def test_what_is_left_behind_is_what_evaluate_leaves(tested: Export) -> None:
    predict(tested)
    table = score_predictions(tested)
    found = ScoreTable.from_parquet(str(Path(tested.folder, "scores.parquet")))
    assert found.keys == table.keys and np.array_equal(found.values, table.values, equal_nan=True)
    assert found.policies == load_task("brats").policies()
    assert Path(tested.folder, "scores.csv").read_text().startswith("subject,session,dice_tc,")
    assert pq.read_table(Path(tested.folder, "scores.parquet")).num_rows == 2
    assert "lesion_dice_wt" in score_predictions(tested, lesionwise=True).metrics


def test_a_subject_without_a_prediction_is_named(tested: Export) -> None:
    predict(tested)
    tested.prediction(tested.of("test")[1]).unlink()
    with pytest.raises(DataError, match=r"no prediction of 1 of 2 subjects \[subject BraTS2021_00006"):
        score_predictions(tested)


def test_predictions_of_something_else_are_refused(tested: Export) -> None:
    predict(tested)
    path = tested.prediction(tested.of("test")[0])
    image = nibabel.load(path)
    data, affine = np.asanyarray(image.dataobj), image.affine

    def put(changed: np.ndarray, at: np.ndarray = affine) -> None:
        nibabel.save(nibabel.Nifti1Image(changed, at), path)

    put(data[1:])
    with pytest.raises(DataError, match=r"another grid: \(39, 44, 38\), the scan has \(40, 44, 38\)"):
        score_predictions(tested)
    put(data, affine @ np.diag([-1.0, 1, 1, 1]))
    with pytest.raises(DataError, match=r"and another affine.*subject BraTS2021_00003"):
        score_predictions(tested)
    put(np.where(data == 3, 4, data).astype(np.uint8))
    with pytest.raises(DataError, match="prediction holds 4"):
        score_predictions(tested)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"prediction cannot be read.*subject BraTS2021_00003"):
        score_predictions(tested)


def test_a_shard_set_that_changed_is_refused(tested: Export) -> None:
    predict(tested)
    with pytest.raises(DataError, match="has changed since it was exported"):
        score_predictions(replace(tested, manifest_hash="0" * 64))
