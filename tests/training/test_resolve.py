"""A run resolved against a shard set: channels and feeds, folds, masks, parents, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from brainfoundry.core import files
from brainfoundry.core.errors import CheckpointError, ConfigError, DataError
from brainfoundry.models import EncoderSpec
from brainfoundry.pretext.base import load_objective
from brainfoundry.store.reader import ShardSet
from brainfoundry.training import checkpoint
from brainfoundry.training.card import Card
from brainfoundry.training.config import InitConfig, PretrainConfig, TrainConfig
from brainfoundry.training.presets import DEMO
from brainfoundry.training.report import announce
from brainfoundry.training.resolve import channels_of, resolve_task
from brainfoundry.training.runs import find_place
from brainfoundry.training.seen import encode_seen, load_seen, own_scans, seen_table
from brainfoundry.training.task import TrainTask
from tests.training.labelled import configuration
from tests.training.test_checkpoint import MODEL, STATE, card


def resolve(config: TrainConfig) -> TrainTask:
    shards = ShardSet.open(str(config.data.shards))
    return resolve_task(config, shards, find_place(config, str(config.storage), shards.meta.manifest_hash))


def pretraining(storage: Path, shards: str, **data: Any) -> PretrainConfig:
    return replace(
        DEMO, storage=str(storage), job="pretrain-brats", data=replace(DEMO.data, shards=shards, **data),
        tracking=replace(DEMO.tracking, uri=f"sqlite:///{storage}/mlflow.db"),
    )  # fmt: skip


def parent(folder: Path, shards: str, *, fold: int | None = None, size: str = "nano", **fields: Any) -> str:
    """A checkpoint of a pretrained network, with the table of whom it saw."""
    opened = ShardSet.open(shards)
    modalities = tuple(fields.pop("modalities", ("T1w", "FLAIR")))
    spec = EncoderSpec(size=size, in_channels=len(modalities))
    torch.manual_seed(7)
    network = load_objective("inpaint_rotate_contrast")().network(spec)
    own = own_scans(opened, modalities, run="before", stage="pretrain-2", held_out_fold=fold)
    made = card(
        run="before", stage="pretrain-2", size=size, modalities=modalities, encoder=spec.to_dict(),
        manifest_hash=opened.meta.manifest_hash, merging="current", **fields,
    )  # fmt: skip
    return checkpoint.save(
        str(folder / "before" / "checkpoints"), made, network.state_dict(), {}, encode_seen(seen_table(own))
    )


def test_channels_by_name_and_fed_by_another(labelled_shards: str) -> None:
    shards = ShardSet.open(labelled_shards)
    assert channels_of((), (), shards) == (("FLAIR", "T1w"), ("FLAIR", "T1w"))
    assert channels_of(("T1w",), (), shards) == (("T1w",), ("T1w",))
    assert channels_of(("T1w", "FLAIR"), ("FLAIR=T1w",), shards) == (("T1w", "FLAIR"), ("T1w", "T1w"))
    assert channels_of(("T1w", "T2w"), ("T2w=FLAIR",), shards) == (("T1w", "T2w"), ("T1w", "FLAIR"))
    for modalities, feed, words in (
        (("T1w", "T1w"), (), "named twice"),
        (("T1w", "T2w"), (), "'T2w' is not in the shard set, which has FLAIR, T1w.*--data.feed T2w=FLAIR"),
        (("T1w",), ("FLAIR=T1w",), "names no channel"),
        (("T1w",), ("T1w",), "CHANNEL=MODALITY"),
        (("T1w",), ("T1w=PET",), "'PET' is not in the shard set"),
    ):
        with pytest.raises(ConfigError, match=words):
            channels_of(modalities, feed, shards)


def test_a_fine_tuning_run(labelled_shards: str, tmp_path: Path) -> None:
    task = resolve(configuration(tmp_path, labelled_shards))
    assert task.label == 2 and task.scheme == "brats2021" and task.channels == (0, 1)
    assert task.card["task"] == {"name": "brats", "scheme": "brats2021", "regions": ["tc", "wt", "et"]}
    assert task.card["stage"] == "finetune" and task.plan.labelled and task.plan.foreground == 0.5
    assert task.volumes is not None and [s.subject for s in task.volumes.sessions] == ["BraTS2021_00008"]
    assert task.parent is None and task.card["chosen_on"] == "val"
    assert task.validation is not None and task.validation_groups == 1  # for the receipt


def test_a_fold_is_held_out_of_the_plan_and_judged(labelled_shards: str, tmp_path: Path) -> None:
    config = configuration(tmp_path, labelled_shards)
    task = resolve(replace(config, data=replace(config.data, fold=1)))
    assert task.plan.fold == 1 and task.card["plan"]["fold"] == 1
    assert task.volumes is not None and [s.subject for s in task.volumes.sessions] == ["BraTS2021_00008"]
    # Without a val split the fold itself chooses the best checkpoint, and the run says so.
    shards = ShardSet.open(labelled_shards)
    index = shards.index.set_column(
        2, "split", [["train" if s == "val" else s for s in shards.index["split"].to_pylist()]]
    )
    place = find_place(config, str(tmp_path), shards.meta.manifest_hash)
    shards.index = index
    task = resolve_task(replace(config, data=replace(config.data, fold=1)), shards, place)
    assert task.volumes is not None
    assert [s.subject[-1] for s in task.volumes.sessions] == ["1", "4", "7"]
    assert any("chosen on fold 1 itself" in note for note in task.notes)


def test_a_parent_that_saw_the_fold_is_refused(labelled_shards: str, tmp_path: Path) -> None:
    config = configuration(tmp_path, labelled_shards)
    config = replace(config, data=replace(config.data, fold=1))
    leaky = replace(config, init=InitConfig(checkpoint=parent(tmp_path / "leaky", labelled_shards)))
    with pytest.raises(DataError, match=r"3 of 3 test subjects \(fold 1 of"):
        resolve(leaky)
    let = replace(leaky, data=replace(leaky.data, allow_leak=True))
    assert resolve(let).card["leaks"][0]["leaked"] == 3
    clean = parent(tmp_path / "clean", labelled_shards, fold=1)
    task = resolve(replace(config, init=InitConfig(checkpoint=clean)))
    assert task.parent == clean and task.card["parents"] == (clean,) and not task.card["leaks"]
    assert {row["subject"] for row in load_seen(clean).to_pylist()}.isdisjoint(
        {"BraTS2021_00001", "BraTS2021_00004", "BraTS2021_00007"}
    )


def test_what_changes_between_the_stages_is_said(
    labelled_shards: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = configuration(tmp_path, labelled_shards)
    uri = parent(tmp_path, labelled_shards, intensity="ct_window", space="MNI152")
    config = replace(config, init=InitConfig(checkpoint=uri))
    task = resolve(config)
    assert any("ct_window before, zscore_nonzero now" in note for note in task.notes)
    assert any("template space" in note for note in task.notes)
    shards = ShardSet.open(labelled_shards)
    announce(task, shards, find_place(config, str(tmp_path), shards.meta.manifest_hash))
    out = capsys.readouterr().out
    assert "note:        intensity rule" in out and uri in out
    assert "channel 0 FLAIR <- source 1 FLAIR" in out and "channel 1 T1w <- source 0 T1w" in out


def test_a_parent_of_another_size_is_refused(labelled_shards: str, tmp_path: Path) -> None:
    config = configuration(tmp_path, labelled_shards)
    uri = parent(tmp_path, labelled_shards)
    tiny = replace(config, init=InitConfig(checkpoint=uri), model=replace(config.model, size="tiny"))
    with pytest.raises(CheckpointError, match=r"size nano, this run asks for tiny.*--model.size nano"):
        resolve(tiny)


def test_masks_of_another_task_are_refused(labelled_shards: str, tmp_path: Path) -> None:
    config = configuration(tmp_path, labelled_shards)
    atlas = replace(
        config, task=replace(config.task, name="atlas"), keep=replace(config.keep, best_by="dice")
    )
    with pytest.raises(ConfigError, match=r"does not understand masks .*brats2021.*shards"):
        resolve(atlas)
    wrong = replace(config, keep=replace(config.keep, best_by="total"))
    with pytest.raises(ConfigError, match="'total' is no score of brats"):
        resolve(wrong)


def test_a_set_without_masks_cannot_be_fine_tuned_on(small_shards: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no session of split 'train' has a mask"):
        resolve(configuration(tmp_path, small_shards))


def test_stage_2_trains_on_the_other_folds_only(labelled_shards: str, tmp_path: Path) -> None:
    task = resolve(pretraining(tmp_path, labelled_shards, fold=2))
    assert task.plan.fold == 2 and not task.plan.labelled and task.label is None
    assert task.card["stage"] == "pretrain-1"
    uri = parent(tmp_path, labelled_shards, fold=2)
    config = replace(pretraining(tmp_path, labelled_shards, fold=2), init=InitConfig(checkpoint=uri))
    assert resolve(config).card["stage"] == "pretrain-2"
    everything = resolve(pretraining(tmp_path, labelled_shards))
    assert any(
        "no --fold: the weights will have seen 7 subjects of folds 0, 1, 2" in n for n in everything.notes
    )


def test_a_run_that_goes_on_keeps_its_parent(labelled_shards: str, tmp_path: Path) -> None:
    uri = parent(tmp_path, labelled_shards)
    config = replace(configuration(tmp_path, labelled_shards), init=InitConfig(checkpoint=uri))
    begun = resolve(config)
    shards = ShardSet.open(labelled_shards)
    own = own_scans(shards, begun.fed_by, run=begun.name, stage="finetune")
    seen = encode_seen(seen_table(own, (uri,)), (uri,))
    checkpoint.save(begun.checkpoints, Card(**begun.card, step=2), MODEL, STATE, seen)
    files.write_bytes(files.join(begun.run_dir, "config.yaml"), b"name: tiny")

    files.delete_folder(str(tmp_path / "before"))  # the parent's run was cleared away
    again = resolve(config)
    assert again.parent == uri and again.card["parents"] == (uri,)
    assert resolve(replace(config, init=InitConfig(checkpoint=str(tmp_path / "before")))).parent == uri
    earlier = load_seen(checkpoint.checkpoint_uri(begun.checkpoints, 2))
    table = seen_table(own, again.card["parents"], earlier=earlier, run=begun.name)
    assert set(table["run"].to_pylist()) == {"before", "tiny"} and table.num_rows == earlier.num_rows

    for init, words in (
        (InitConfig(checkpoint=str(tmp_path / "other")), r"the run began from .*before.*, this job asks for"),
        (InitConfig(), "this job asks for random weights"),
        (InitConfig(checkpoint=uri, freeze="encoder"), "has init"),
    ):
        with pytest.raises(CheckpointError, match=words):
            resolve(replace(config, init=init))
    dropped = replace(config, model=replace(config.model, drop_rate=0.2))
    with pytest.raises(CheckpointError, match=r"has encoder .*'drop_rate': 0.0"):
        resolve(dropped)
