"""Checkpoints: found by run or folder, held against each other before they are averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from brainfoundry.core.errors import CheckpointError, ConfigError
from brainfoundry.prediction.models import find_models, load_check, space_of, window_of
from brainfoundry.training import checkpoint
from tests.prediction.builders import ATLAS_TASK, BRATS, card, save_checkpoint


def test_a_run_and_its_step_are_the_same_checkpoint(tmp_path: Path) -> None:
    uri = save_checkpoint(tmp_path / "run")
    (by_run,) = find_models((str(tmp_path / "run"),))
    (by_step,) = find_models((uri,))
    assert by_run == by_step and by_run.uri == uri
    assert by_run.about()["run"] == "small" and len(by_run.sha256) == 64


def test_a_verdict_that_comes_later_leaves_the_checkpoint_the_same(tmp_path: Path) -> None:
    uri = save_checkpoint(tmp_path / "run")
    before = find_models((uri,))
    writer = checkpoint.CheckpointWriter(
        str(tmp_path / "run" / "checkpoints"), keep_last=1, best_by="dice_mean"
    )
    writer.judge(10, {"val/dice_mean": 0.5})
    (after,) = find_models((uri,))
    assert after.card.metrics and after.sha256 == before[0].sha256


def test_other_weights_are_another_checkpoint(tmp_path: Path) -> None:
    uris = tuple(save_checkpoint(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    one, two = find_models(uris)
    assert one.sha256 != two.sha256


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"task": ATLAS_TASK}, "task"),
        ({"modalities": BRATS[::-1]}, "modalities"),
        ({"feeds": {"FLAIR": "T1w"}}, "feeds"),
        ({"intensity": "ct_window"}, "intensity"),
        ({"spacing_mm": 2.0}, "spacing_mm"),
        ({"space": "MNI152"}, "space"),
        ({"skull_stripped": True}, "skull_stripped"),
    ],
)
def test_an_ensemble_of_unlike_networks_names_the_field(
    tmp_path: Path, changes: dict[str, Any], name: str
) -> None:
    uris = (save_checkpoint(tmp_path / "a"), save_checkpoint(tmp_path / "b", **changes))
    with pytest.raises(CheckpointError, match=f"cannot be averaged: {name} is"):
        find_models(uris)


def test_what_cannot_predict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint was named"):
        find_models(())
    with pytest.raises(CheckpointError, match="no whole checkpoint here"):
        find_models((str(tmp_path),))
    pretrained = card(stage="pretrain-1", task={})
    uri = checkpoint.save(str(tmp_path / "p"), pretrained, {}, {})
    with pytest.raises(CheckpointError, match="stage pretrain-1, which has learnt no masks"):
        find_models((uri,))
    fine = save_checkpoint(tmp_path / "run")
    with pytest.raises(ConfigError, match="named twice"):
        find_models((fine, str(tmp_path / "run")))


def test_a_damaged_network_is_told_before_workers_start(tmp_path: Path) -> None:
    uri = save_checkpoint(tmp_path / "run")
    models = find_models((uri,))
    load_check(models)
    weights = Path(uri) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        load_check(models)


def test_the_window_is_the_crop_of_training(tmp_path: Path) -> None:
    small = save_checkpoint(tmp_path / "a")
    large = save_checkpoint(tmp_path / "b", crop=(64, 64, 64))
    assert window_of(find_models((small,)), None) == (64, 32, 32)
    models = find_models((small, large))
    with pytest.raises(ConfigError, match=r"crops of 64x32x32 and 64x64x64.*--window"):
        window_of(models, None)
    assert window_of(models, (32, 64, 32)) == (32, 64, 32)


def test_a_crops_own_statistics_are_a_volumes_own() -> None:
    assert space_of(card(intensity="zscore_crop")).intensity == "zscore_nonzero"
    space = space_of(card(feeds={"FLAIR": "T1w"}, space="MNI152"))
    assert space.sources == ("T1w", "T1ce", "T1w", "T2w") and space.template == "MNI152"
