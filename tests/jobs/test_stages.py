"""Stages 2 and 3, scores and masks through `ray job submit`, one after the other, as a user would."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from brainfoundry.training.checkpoint import checkpoint_uri, read_card
from tests.cluster.job_cluster import JobCluster
from tests.training.test_resolve import parent

pytestmark = pytest.mark.slow


def test_from_a_parent_to_masks(job_cluster: JobCluster, labelled_shards: str, tmp_path: Path) -> None:
    storage = ["--storage", str(tmp_path), "--data.shards", labelled_shards]
    first = parent(tmp_path, labelled_shards, fold=1)

    def submit(*args: str) -> str:
        done = job_cluster.submit(["--", "python", *args])
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        return done.stdout

    out = submit(
        "jobs/pretrain_brats.py", *storage, "--name", "two", "--fold", "1", "--optim.steps", "2",
        "--init.checkpoint", first,
    )  # fmt: skip
    assert "channel 0 FLAIR <- source 1 FLAIR" in out and "48 to 72 hours on 2 GPUs" in out
    second = checkpoint_uri(str(tmp_path / "two" / "checkpoints"), 2)
    assert read_card(second).stage == "pretrain-2" and read_card(second).parents == (first,)

    out = submit(
        "jobs/finetune_brats.py", *storage, "--name", "three", "--fold", "1", "--data.crop", "64", "32", "32",
        "--optim.steps", "2", "--keep.validate-every", "0", "--init.checkpoint", str(tmp_path / "two"),
    )  # fmt: skip
    assert "done: 2 steps" in out and "dice_wt" in out and "empty_policy" in out
    run = tmp_path / "three"
    summary = json.loads((run / "summary.json").read_text())
    card = read_card(summary["checkpoint"])
    assert card.parents == (second,) and card.task["regions"] == ["tc", "wt", "et"]

    from mlflow.tracking import MlflowClient

    client = MlflowClient(job_cluster.mlflow_uri)
    tracked = client.get_run(summary["run_id"])
    assert {"val/dice_wt", "dice_wt", "train/dice_loss"} <= set(tracked.data.metrics)
    assert tracked.data.tags["parent"] == second and tracked.data.tags["fold"] == "1"
    folders = {a.path for a in client.list_artifacts(summary["run_id"])}
    assert {"transfer", "evaluation", "checkpoint"} <= folders
    names = {a.path for a in client.list_artifacts(summary["run_id"], "evaluation/pictures")}
    assert any(name.endswith(".png") for name in names)

    out = submit(
        "jobs/evaluate.py", "--checkpoints", str(run), "--shards", labelled_shards, "--fold", "1",
        "--out", str(tmp_path / "scores"), "--lesionwise",
    )  # fmt: skip
    assert "3 subjects of fold 1" in out and "lesion_dice_wt" in out
    page = (tmp_path / "scores" / "evaluation.html").read_text()
    assert "BraTS2021_00001" in page and "lesion_dice_wt" in page
    leaky = job_cluster.submit(
        [
            "--", "python", "jobs/evaluate.py", "--checkpoints", str(run), "--shards", labelled_shards,
            "--split", "train",
        ]
    )  # fmt: skip
    assert leaky.returncode != 0 and "were seen in training" in leaky.stdout

    out = submit(
        "jobs/predict.py", "--checkpoint", str(run), "--input", labelled_shards, "--split", "test",
        "--out", str(tmp_path / "masks"), "--allow", "space,skull",
    )  # fmt: skip
    (experiment,) = (e for e in client.search_experiments() if e.name == "brainfoundry-predict")
    (predicted,) = client.search_runs([experiment.experiment_id])
    assert predicted.data.metrics["cases_predicted"] == 1 and predicted.data.params["task"] == "brats"
    (mask,) = (tmp_path / "masks").rglob("*_dseg.nii.gz")
    source = Path(labelled_shards).parent / "brats" / "BraTS2021_00009" / "BraTS2021_00009_flair.nii.gz"
    got, want = nibabel.load(mask), nibabel.load(source)  # type: ignore[attr-defined]
    assert got.shape == want.shape and np.array_equal(got.affine, want.affine)
    assert got.get_data_dtype() == np.uint8 and set(np.unique(got.dataobj)) <= {0, 1, 2, 4}
    for field in ("qform_code", "sform_code", "pixdim", "srow_x", "quatern_b"):
        assert np.array_equal(got.header[field], want.header[field])
