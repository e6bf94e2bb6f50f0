"""Whole runs through Ray Train: with a probe, on masked autoencoding, killed, and on to segmentation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from brainfoundry.core import files
from brainfoundry.store.reader import ShardSet
from brainfoundry.training.checkpoint import checkpoint_uri, read_card
from brainfoundry.training.config import ClusterConfig, InitConfig, PretrainConfig, ProbeConfig
from brainfoundry.training.launch import train
from brainfoundry.training.presets import DEMO
from brainfoundry.training.resolve import resolve_task
from brainfoundry.training.runs import find_place
from brainfoundry.training.seen import load_seen
from brainfoundry.training.task import TrainTask
from brainfoundry.training.tracking.spool import read_history
from tests.training.labelled import configuration
from tests.training.test_resume import train_workers, when_saved

pytestmark = pytest.mark.slow

STEPS, EVERY = 6, 2
OBJECTIVE = "masked_autoencoder"


def resolve(config: Any) -> TrainTask:
    shards = ShardSet.open(str(config.data.shards))
    return resolve_task(config, shards, find_place(config, str(config.storage), shards.meta.manifest_hash))


def pretraining(
    storage: Path, shards: str, name: str, probe: ProbeConfig | None = None, workers: int = 1
) -> PretrainConfig:
    """Masked autoencoding in groups of one crop, on T1w and FLAIR."""
    return replace(
        DEMO,
        name=name,
        storage=str(storage),
        data=replace(DEMO.data, shards=shards, groups_per_step=4, subjects_per_group=1, crops_per_subject=1),
        model=replace(DEMO.model, objective=OBJECTIVE),
        optim=replace(DEMO.optim, steps=STEPS, warmup=1),
        cluster=ClusterConfig(
            workers=workers, cpus_per_worker=0.5, fetch_cpus=0.25, threads=1, max_failures=1
        ),
        keep=replace(DEMO.keep, checkpoint_every=EVERY, validate_every=3, log_every=1, keep_last=99),
        probe=probe or ProbeConfig(),
        tracking=replace(DEMO.tracking, uri=f"sqlite:///{storage}/mlflow.db"),
    )


def weights(task: TrainTask, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(Path(checkpoint_uri(task.checkpoints, step)) / "model.safetensors")


def curve(task: TrainTask, name: str) -> dict[int, float]:
    return {int(row["step"]): row[name] for row in read_history(task.run_dir) if name in row}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probed")


@pytest.fixture(scope="module")
def probe(labelled_shards: str) -> ProbeConfig:
    return ProbeConfig(shards=labelled_shards, every=EVERY, subjects=2, test_subjects=2)


@pytest.fixture(scope="module")
def plain(storage: Path, small_shards: str, ray_local: int) -> TrainTask:
    """A run without a probe."""
    task = resolve(pretraining(storage, small_shards, "plain"))
    train(task)
    return task


@pytest.fixture(scope="module")
def probed(
    storage: Path, small_shards: str, probe: ProbeConfig, ray_local: int
) -> tuple[TrainTask, dict[str, Any]]:
    """The same run with one, and its summary."""
    task = resolve(pretraining(storage, small_shards, "probed", probe))
    return task, train(task)


def test_a_probed_run_learns_the_same_to_the_bit(
    plain: TrainTask, probed: tuple[TrainTask, dict[str, Any]]
) -> None:
    task, summary = probed
    assert curve(task, "train/total") == curve(plain, "train/total")
    assert curve(task, "val/total") == curve(plain, "val/total") != {}
    assert all(torch.equal(value, weights(task)[name]) for name, value in weights(plain).items())

    looks = curve(task, "probe/dice_wt")
    assert list(looks) == [0, 2, 4, 6] and all(0 <= value <= 1 for value in looks.values())
    assert curve(task, "probe/dice_mean").keys() == looks.keys() == curve(task, "probe/seconds").keys()
    assert curve(plain, "probe/dice_wt") == {}
    card = read_card(checkpoint_uri(task.checkpoints, 4))
    assert card.metrics["probe/dice_wt"] == looks[4] and "val/total" not in card.metrics
    assert card.probe["cohort"] == "brats" and card.probe["fitted"] == 2
    last = read_card(summary["checkpoint"])
    assert {"val/total", "probe/dice_mean"} <= last.metrics.keys()
    assert set(load_seen(summary["checkpoint"])["cohort"].to_pylist()) == {"ukb"}  # the probed are not seen
    assert summary["last"]["probe/dice_mean"] == curve(task, "probe/dice_mean")[6]


def test_killed_and_resumed_with_a_probe_equals_undisturbed_without(
    storage: Path, small_shards: str, plain: TrainTask, probe: ProbeConfig, ray_local: int
) -> None:
    task = resolve(pretraining(storage, small_shards, "killed", probe))
    struck: list[int] = []

    def kill() -> None:
        victim = train_workers(psutil.Process())[-1]
        struck.append(victim.pid)
        victim.kill()

    thread = when_saved(storage, "killed", kill, step=EVERY)
    summary = train(task)
    thread.join()
    assert struck and EVERY <= summary["first_step"] < STEPS
    assert all(torch.equal(value, weights(task)[name]) for name, value in weights(plain).items())
    assert list(curve(task, "probe/dice_wt")) == [0, 2, 4, 6]


def test_two_workers_share_the_subjects(
    storage: Path, small_shards: str, probed: tuple[TrainTask, dict[str, Any]], probe: ProbeConfig
) -> None:
    task = resolve(pretraining(storage, small_shards, "two-workers", probe, workers=2))
    train(task)
    one, two = (curve(of, "probe/dice_wt") for of in (probed[0], task))
    assert one.keys() == two.keys()
    assert one[0] == pytest.approx(two[0], abs=1e-4)  # the same weights, the same people
    losses = [curve(of, "train/total") for of in (probed[0], task)]
    assert losses[0][1] == pytest.approx(losses[1][1], rel=1e-5)


def test_stage_3_goes_on_from_masked_autoencoding(
    storage: Path, labelled_shards: str, plain: TrainTask, ray_local: int
) -> None:
    config = configuration(
        storage, labelled_shards, name="finetuned", init=InitConfig(checkpoint=plain.run_dir)
    )
    config = replace(config, optim=replace(config.optim, steps=2))
    task = resolve(config)
    assert task.parent is not None and task.parent.startswith(plain.checkpoints)
    summary = train(task)
    table = files.read_bytes(files.join(task.run_dir, "transfer.txt")).decode()
    assert "channel 0 FLAIR <- source 1 FLAIR" in table and "channel 1 T1w <- source 0 T1w" in table
    card = read_card(summary["checkpoint"])
    assert card.parents == (task.parent,) and card.stage == "finetune"
    assert read_card(task.parent).objective == OBJECTIVE
    assert read_card(task.parent).objective_config == {"share": 0.75, "patch": 16, "loss": "l2"}
