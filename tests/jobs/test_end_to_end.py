"""Through `ray job submit`, as a user would: cohort, shards, pretraining, MLflow, a checkpoint that loads."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from brainfoundry.models.sizes import EncoderSpec
from brainfoundry.models.ssl import SSLNetwork
from brainfoundry.training import checkpoint
from tests.cluster.job_cluster import JobCluster
from tests.cohorts.builders import put_zip

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SCANS = ROOT.parent / "shared" / "scans" / "lesion" / "ms-patient19"
JOB = "jobs/pretrain_ukb.py"


def only_run(home: Path, prefix: str) -> Path:
    found = [p for p in (home / "pretrain").iterdir() if p.name.startswith(prefix)]
    assert len(found) == 1, found
    return found[0]


def test_the_literal_command(job_cluster: JobCluster, small_shards: str) -> None:
    """`ray job submit jobs/pretrain_ukb.py`, nothing else: the demo preset on the demo's shard set."""
    shutil.copytree(small_shards, job_cluster.home / "demo" / "shards", dirs_exist_ok=True)
    done = job_cluster.submit([JOB])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    for words in ("done: 80 steps", "checkpoint:", "loss figure:", "tracking:"):
        assert words in done.stdout

    run = only_run(job_cluster.home, "pretrain-ukb-demo-nano-")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["tracking_delivered"] and Path(summary["figure"]).stat().st_size > 10_000

    found = checkpoint.load(summary["checkpoint"])
    network = SSLNetwork(EncoderSpec.from_dict(found.card.encoder))
    network.load_state_dict(found.model)
    assert found.card.step == 80 and found.card.modalities == ("T1w", "FLAIR")
    with torch.no_grad():
        _, _, rebuilt = network(torch.zeros(1, 2, *found.card.crop))
    assert rebuilt.shape == (1, 2, 64, 32, 32) and torch.isfinite(rebuilt).all()

    from mlflow.tracking import MlflowClient

    client = MlflowClient(job_cluster.mlflow_uri)
    tracked = client.get_run(summary["run_id"])
    assert tracked.info.status == "FINISHED"
    losses = client.get_metric_history(summary["run_id"], "train/total")
    assert [m.step for m in losses] == list(range(1, 81))
    values = [m.value for m in losses]
    assert np.mean(values[-10:]) < np.mean(values[:10])
    for key in ("train/rotation", "train/contrast", "train/reconstruction", "train/lr", "val/total"):
        assert key in tracked.data.metrics
    for key in ("speed/crops_per_s", "speed/data_wait_share", "speed/step_s", "system/worker_memory_gb"):
        assert key in tracked.data.metrics
    assert tracked.data.tags["manifest_hash"] == found.card.manifest_hash
    assert tracked.data.tags["stage"] == "pretrain-1" and tracked.data.tags["size"] == "nano"
    assert tracked.data.tags["ray_job_id"]
    artifacts = {
        a.path: [f.path for f in client.list_artifacts(summary["run_id"], a.path)]
        for a in client.list_artifacts(summary["run_id"])
    }
    assert any(name.endswith(".png") for name in artifacts["reconstructions"])
    assert {"config", "cohort", "checkpoint", "figures"} <= set(artifacts)

    again = job_cluster.submit([JOB])
    assert again.returncode == 0 and "was finished before" in again.stdout


def test_with_a_working_directory_and_options(
    job_cluster: JobCluster, small_shards: str, tmp_path: Path
) -> None:
    done = job_cluster.submit(
        [
            "--working-dir", ".", "--", "python", JOB, "--preset", "demo", "--data.shards", small_shards,
            "--storage", str(tmp_path), "--name", "w", "--optim.steps", "3", "--data.modalities", "FLAIR",
        ]
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    card = checkpoint.read_card(checkpoint.checkpoint_uri(str(tmp_path / "w" / "checkpoints"), 3))
    assert card.modalities == ("FLAIR",) and card.encoder["in_channels"] == 1


def test_more_workers_than_the_cluster_has_is_one_line(
    job_cluster: JobCluster, small_shards: str, tmp_path: Path
) -> None:
    done = job_cluster.run(
        [
            sys.executable, JOB, "--data.shards", small_shards, "--storage", str(tmp_path), "--name", "many",
            "--data.groups-per-step", "500", "--cluster.workers", "500",
        ]
    )  # fmt: skip
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: 500 workers need") and "Fix: use --cluster.workers" in line


@pytest.mark.skipif(not SCANS.exists(), reason="the real scans are not beside this checkout")
@pytest.mark.parametrize("float_mode", ["quantize", "lossless"])
def test_real_scans_go_through_prepare_and_pretrain(
    job_cluster: JobCluster, tmp_path: Path, float_mode: str
) -> None:
    """A real T1w and FLAIR (float32, LAS, negative values) in UKB-named zips beside demo subjects."""
    import nibabel

    ukb, shards = tmp_path / "ukb", tmp_path / "shards"
    made = job_cluster.run(
        [
            sys.executable, "jobs/make_demo.py", "--root", str(ukb), "--n-healthy", "3", "--n-repeat", "0",
            "--n-no-flair", "0", "--n-truncated-grid", "0", "--n-few-slices", "0", "--n-cut-zip", "0",
        ]
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    for modality in ("T1w", "FLAIR"):
        put_zip(ukb, 9_990_001, modality, (SCANS / f"ms-patient19_{modality}.nii.gz").read_bytes())
    prepared = job_cluster.run(
        [
            sys.executable, "jobs/prepare_ukb.py", "--source", str(ukb), "--out", str(shards),
            "--float-mode", float_mode, "--n-val", "2", "--rows-per-shard", "2",
        ]
    )  # fmt: skip
    assert prepared.returncode == 0, prepared.stdout[-2000:] + prepared.stderr[-2000:]
    assert "damaged" in prepared.stdout  # one demo participant's FLAIR is broken inside, and cost one row

    from brainfoundry.store.reader import ShardSet

    stored = ShardSet.open(str(shards))
    row = next(r for r in stored.index.to_pylist() if r["subject"] == "9990001")
    for modality in ("T1w", "FLAIR"):
        source = nibabel.nifti1.Nifti1Image.from_bytes(
            gzip.decompress((SCANS / f"ms-patient19_{modality}.nii.gz").read_bytes())
        )
        back = stored.to_nifti(row["shard"], row["row"], modality)
        want, got = np.asarray(source.dataobj), np.asarray(back.dataobj)
        assert back.header.binaryblock == source.header.binaryblock and got.dtype == want.dtype == np.float32
        if float_mode == "lossless":
            assert np.array_equal(got, want)
        else:
            bound = (float(want.max()) - float(want.min())) / 131_070
            assert np.abs(got.astype(np.float64) - want).max() <= bound * (1 + 1e-6)

    trained = job_cluster.submit(
        [
            "--", "python", JOB, "--data.shards", str(shards), "--storage", str(tmp_path), "--name", "real",
            "--optim.steps", "3",
        ]
    )  # fmt: skip
    assert trained.returncode == 0, trained.stdout[-4000:]
    assert "done: 3 steps" in trained.stdout
