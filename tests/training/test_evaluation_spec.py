"""What an evaluation scores: checkpoints held against each other and against the shard set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from brainfoundry.core.errors import BrainFoundryError, CheckpointError, ConfigError, DataError
from brainfoundry.inference.windows import WindowSpec
from brainfoundry.models import EncoderSpec, build_segmenter
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.folds import HELD_OUT
from brainfoundry.training import checkpoint
from brainfoundry.training.card import Card
from brainfoundry.training.ensemble import find_models, window_of
from brainfoundry.training.evaluation_spec import volumes_of
from brainfoundry.training.seen import encode_seen, own_scans, seen_table
from brainfoundry.training.volumes import VolumeSpec

CROP = (64, 32, 32)


def save(folder: Path, shards: str, *, fold: int | None = None, **changes: Any) -> str:
    """A checkpoint fine-tuned on the shard set, one fold held out where it is named; its card changed."""
    opened = ShardSet.open(shards)
    meta = opened.meta
    channels = changes.get("modalities", tuple(meta.modalities))
    encoder = EncoderSpec(size="nano", in_channels=len(channels))
    card = Card(
        stage="finetune", size="nano", modalities=channels, merging="current", encoder=encoder.to_dict(),
        objective="segmentation", objective_config={}, intensity="zscore_nonzero", crop=CROP, patch=2,
        frame="box", spacing_mm=meta.spacing_mm, orientation="RAS", space=meta.space,
        skull_stripped=meta.skull_stripped, manifest_hash="m", plan_hash="p", plan={"fold": fold}, step=10,
        steps=10, run=folder.name, chosen_on="val" if fold is None else HELD_OUT,
        task={"name": "brats", "scheme": meta.labels, "regions": ["tc", "wt", "et"]},
    )  # fmt: skip
    torch.manual_seed(len(folder.name))
    own = own_scans(opened, meta.modalities, run=folder.name, stage="finetune", held_out_fold=fold)
    return checkpoint.save(
        str(folder / "checkpoints"), replace(card, **changes),
        build_segmenter(encoder, 3).state_dict(), {}, encode_seen(seen_table(own)),
    )  # fmt: skip


def spec_of(shards: str, *uris: str, split: str = "test", **options: Any) -> tuple[VolumeSpec, list[str]]:
    """As `jobs/evaluate.py` asks."""
    models = find_models(uris)
    given: dict[str, Any] = {"fold": None, "limit": None, "allow_leak": False} | options
    return volumes_of(
        models, shards, split=split, window=WindowSpec(window=window_of(models, None)), **given
    )[:2]


def test_the_test_split_of_its_own_set(labelled_shards: str, tmp_path: Path) -> None:
    spec, notes = spec_of(labelled_shards, save(tmp_path / "a", labelled_shards))
    assert notes == [] and [s.subject[-1] for s in spec.sessions] == ["9"]
    assert spec.window.window == CROP and spec.channels == (0, 1) and spec.label is not None
    assert (spec.task, spec.scheme, spec.intensity) == ("brats", "brats2021", "zscore_nonzero")


def test_channels_go_by_name(labelled_shards: str, tmp_path: Path) -> None:
    there = ShardSet.open(labelled_shards).meta.modalities
    turned = save(tmp_path / "a", labelled_shards, modalities=tuple(there[::-1]))
    assert spec_of(labelled_shards, turned)[0].channels == (1, 0)
    fed = save(tmp_path / "b", labelled_shards, modalities=("T1w", "T2w"), feeds={"T2w": "FLAIR"})
    assert spec_of(labelled_shards, fed)[0].channels == (there.index("T1w"), there.index("FLAIR"))


def test_an_ensemble(labelled_shards: str, tmp_path: Path) -> None:
    uris = [save(tmp_path / name, labelled_shards) for name in ("a", "bb")]
    assert spec_of(labelled_shards, *uris)[0].sessions
    with pytest.raises(ConfigError, match="named twice"):
        spec_of(labelled_shards, uris[0], str(tmp_path / "a"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": "SRI24x"}, "cannot be averaged: space is"),
        ({"skull_stripped": False}, "cannot be averaged: skull_stripped is"),
        ({"intensity": "ct_window"}, "cannot be averaged: intensity is"),
        ({"task": {}, "stage": "pretrain-2"}, "stage pretrain-2, which has learnt no masks"),
    ],
)
def test_networks_that_cannot_be_averaged(
    labelled_shards: str, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    uris = [save(tmp_path / "a", labelled_shards), save(tmp_path / "bb", labelled_shards, **changes)]
    with pytest.raises(CheckpointError, match=words):
        spec_of(labelled_shards, *uris)


def test_crops_that_differ_need_a_window(labelled_shards: str, tmp_path: Path) -> None:
    uris = [save(tmp_path / "a", labelled_shards), save(tmp_path / "bb", labelled_shards, crop=(64, 64, 64))]
    with pytest.raises(ConfigError, match=r"crops of 64x32x32 and 64x64x64.*--window"):
        window_of(find_models(uris), None)
    assert window_of(find_models(uris), (96, 96, 96)) == (96, 96, 96)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modalities": ("FLAIR", "T2w")}, "modality 'T2w' is not in the shard set, which has"),
        (
            {"task": {"name": "atlas", "scheme": "binary", "regions": ["lesion"]}},
            "marks labels of binary, the masks are of brats2021",
        ),
        ({"spacing_mm": 2.0}, "trained at voxels of 2 mm, the shard set has the scans' own size"),
    ],
)
def test_a_shard_set_of_another_kind(
    labelled_shards: str, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        spec_of(labelled_shards, save(tmp_path / "a", labelled_shards, **changes))
    assert "--data" not in error.value.line(), "evaluate has no such option"


def test_other_space_and_skulls_are_noted(labelled_shards: str, tmp_path: Path) -> None:
    stripped = ShardSet.open(labelled_shards).meta.skull_stripped
    other = save(tmp_path / "a", labelled_shards, space="MNI152", skull_stripped=not stripped)
    _, (space, skull) = spec_of(labelled_shards, other)
    assert "trained in MNI152 space, the shard set is in" in space
    assert "skull-stripped" in skull and "whole heads" in skull


def test_a_leak_is_refused_or_said(labelled_shards: str, tmp_path: Path) -> None:
    uri = save(tmp_path / "a", labelled_shards)
    with pytest.raises(DataError, match="--allow-leak"):
        spec_of(labelled_shards, uri, split="train")
    _, (note,) = spec_of(labelled_shards, uri, split="train", allow_leak=True)
    assert note.startswith("LEAK: 7 of 7 subjects")


def test_scores_on_what_the_checkpoint_was_chosen_on_are_optimistic(
    labelled_shards: str, tmp_path: Path
) -> None:
    uri = save(tmp_path / "a", labelled_shards, fold=1)
    spec, (note,) = spec_of(labelled_shards, uri, fold=1)
    assert "chosen on" in note and "optimistic" in note and len(spec.sessions) > 0
    assert spec_of(labelled_shards, uri)[1] == []  # the test split was not looked at
    with pytest.raises(BrainFoundryError, match="--allow-leak"):
        spec_of(labelled_shards, uri, fold=2)
