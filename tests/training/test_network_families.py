"""Fine-tuning runs of other families than SwinUNETR: resolved, refused, trained, loaded, predicted with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from brainfoundry.core import files
from brainfoundry.core.errors import CheckpointError, ConfigError
from brainfoundry.core.rng import hash64_int
from brainfoundry.models import EncoderSpec, build_segmenter
from brainfoundry.models.families import load_family
from brainfoundry.prediction.predictor import Predictor
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.folds import few_shot_subset
from brainfoundry.tasks.segmentation import NetworkSpec
from brainfoundry.training.card import Card
from brainfoundry.training.config import InitConfig
from brainfoundry.training.ensemble import find_models, window_of
from brainfoundry.training.evaluation import evaluate_run
from brainfoundry.training.finetune_config import FinetuneConfig
from brainfoundry.training.initialise import check_parent
from brainfoundry.training.launch import train
from brainfoundry.training.presets_finetune import BRATS_DEMO
from brainfoundry.training.receipt import who
from brainfoundry.training.receipt_read import check, read_receipt
from brainfoundry.training.report import announce
from brainfoundry.training.runs import default_name
from brainfoundry.training.seen import load_seen
from brainfoundry.training.train_job import prepare
from brainfoundry.training.volumes import load_segmenter
from brainfoundry.training.worker import build_network
from tests.prediction.builders import card as finetuned
from tests.prediction.builders import job as prediction_job
from tests.prediction.builders import put_case, save_checkpoint
from tests.prediction.test_predictor import cases
from tests.training.labelled import configuration, with_shares

SEGRESNET = {"filters": 8, "dropout": 0.0}
UNETR = {"filters": 4, "embed": 24, "heads": 2, "hidden": 32, "dropout": 0.0}


def segresnet(storage: Path, shards: str, **changes: Any) -> FinetuneConfig:
    config = configuration(storage, shards, **changes)
    model = replace(config.model, family="segresnet", family_options=("filters=8", "dropout=0"))
    return replace(config, model=model)


def test_a_run_of_another_family(
    labelled_shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = segresnet(tmp_path, labelled_shards)
    shards = ShardSet.open(labelled_shards)
    task, place = prepare(config, shards)
    assert (task.card["family"], task.card["family_options"]) == ("segresnet", SEGRESNET)
    assert task.card["size"] == "nano"  # as given, and of no meaning
    assert task.tags["family"] == "segresnet" and "size" not in task.tags
    assert task.params["model.family"] == "segresnet" and task.params["data.modalities"] == "FLAIR,T1w"
    network, table = build_network(task)
    assert table is None and network(torch.zeros(1, 2, 64, 32, 32)).shape == (1, 3, 64, 32, 32)
    capsys.readouterr()
    announce(task, shards, place)
    told = capsys.readouterr().out
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    assert f"family segresnet (filters 8, dropout 0.0), {millions:.1f} M parameters, segmentation" in told
    assert told.count("not estimated for family segresnet") == 2  # memory and cost
    assert "nano" not in told


def test_swinunetr_is_what_it_was(labelled_shards: str, tmp_path: Path) -> None:
    config = configuration(tmp_path, labelled_shards)
    task, _ = prepare(config, ShardSet.open(labelled_shards))
    assert (task.card["family"], task.card["family_options"]) == ("swinunetr", {})
    assert task.tags["size"] == "nano" and "share" not in task.tags
    assert "family" not in task.card["objective_config"]  # or earlier runs could not go on
    network, _ = build_network(task)
    torch.manual_seed(hash64_int(config.data.seed, 0) >> 1)
    by_hand = build_segmenter(EncoderSpec.from_dict(task.card["encoder"]), 3)
    torch.testing.assert_close(network.state_dict(), by_hand.state_dict(), rtol=0, atol=0)


def test_names_of_runs() -> None:
    assert (
        default_name(BRATS_DEMO, "m") == "finetune-brats-demo-nano-403c5423"
    )  # as before there were families
    other = replace(BRATS_DEMO, model=replace(BRATS_DEMO.model, family="segresnet"))
    assert default_name(other, "m").startswith("finetune-brats-demo-segresnet-")
    options = replace(other, model=replace(other.model, family_options=("filters=8",)))
    assert default_name(options, "m") != default_name(other, "m")


@pytest.mark.parametrize(
    ("model", "init", "words"),
    [
        ({"family": "unet"}, {}, "network family 'unet' does not exist.*segresnet"),
        ({"family_options": ("filters=8x",)}, {}, "option filters of family segresnet is '8x'"),
        ({"family_options": ("filter=8",)}, {}, "no option 'filter'.*did you mean filters"),
        ({"family_options": ("filters",)}, {}, "option 'filters' is not name=value"),
        ({"family": "swinunetr", "family_options": ("size=big",)}, {}, "--model.size"),
        ({}, {"checkpoint": "x"}, "--init.checkpoint means the encoder of swinunetr, which family segresnet"),
        ({}, {"ct_weights": "x"}, "--init.ct-weights means the encoder of swinunetr"),
        ({}, {"freeze": "stem"}, "--init.freeze stem means the encoder"),
        ({}, {"layer_decay": 0.5}, "--init.layer-decay 0.5 means the encoder"),
    ],
)
def test_what_a_family_does_not_have(
    labelled_shards: str, tmp_path: Path, model: dict[str, Any], init: dict[str, Any], words: str
) -> None:
    config = segresnet(tmp_path, labelled_shards, init=InitConfig(**init))
    config = replace(config, model=replace(config.model, **model))
    with pytest.raises(ConfigError, match=words):
        prepare(config, ShardSet.open(labelled_shards))


def test_crops_are_multiples_of_the_familys(labelled_shards: str, tmp_path: Path) -> None:
    spec = NetworkSpec(family="segresnet")
    spec.check_crop((40, 32, 24))
    with pytest.raises(ConfigError, match=r"multiples of 8.*nearest valid size is 40x32x24"):
        spec.check_crop((41, 32, 24))
    with pytest.raises(ConfigError, match="multiple of 32"):
        NetworkSpec().check_crop((40, 32, 24))
    config = segresnet(tmp_path, labelled_shards)
    config = replace(config, data=replace(config.data, crop=(64, 36, 32)))
    with pytest.raises(ConfigError, match="segresnet needs sides that are multiples of 8"):
        prepare(config, ShardSet.open(labelled_shards))


def test_a_card_from_before_there_were_families() -> None:
    card = finetuned()
    old: dict[str, Any] = json.loads(card.to_json())
    del old["family"], old["family_options"]
    read = Card.from_json(json.dumps(old).encode(), "x")
    assert (read.family, read.family_options, read.label) == ("swinunetr", {}, "nano")
    other = finetuned(family="segresnet", family_options=SEGRESNET)
    assert other.label == "segresnet"
    card.refuse_mismatch(read, "x")
    with pytest.raises(CheckpointError, match="has family 'segresnet', this run asks for 'swinunetr'"):
        card.refuse_mismatch(other, "x")
    with pytest.raises(CheckpointError, match=r"has family_options .*8.*asks for .*16"):
        replace(other, family_options={**SEGRESNET, "filters": 16}).refuse_mismatch(other, "x")


def test_only_swinunetr_hands_weights_over() -> None:
    with pytest.raises(CheckpointError, match="is of family segresnet: only swinunetr hands weights over"):
        check_parent(
            finetuned(family="segresnet"), size="nano", merging="current", modalities=("T1w",),
            intensity="zscore_nonzero", spacing_mm=None, space="", skull_stripped=False, parts=("encoder",),
        )  # fmt: skip


@pytest.mark.parametrize(("family", "options"), [("segresnet", SEGRESNET), ("unetr", UNETR)])
def test_a_checkpoint_of_any_family_loads_and_predicts(
    tmp_path: Path, family: str, options: Mapping[str, Any]
) -> None:
    uri = save_checkpoint(tmp_path / "run", family=family, family_options=dict(options))
    network, card = load_segmenter(uri)
    assert card.family == family and not network.training
    torch.manual_seed(0)
    fresh = load_family(family).build(4, 3, card.crop, options).eval()
    x = torch.randn(1, 4, *card.crop)
    with torch.no_grad():
        assert torch.equal(network(x), fresh(x))
    case = put_case(tmp_path / "scans", "BraTS2021_00001")
    the_job = prediction_job(tmp_path, uri)
    assert the_job.models[0].about()["size"] == family
    (outcome,) = (Predictor(the_job)(one) for one in cases(case.parent, the_job))
    assert not outcome.error and outcome.record is not None


def test_windows_that_a_family_cannot_take(tmp_path: Path) -> None:
    models = find_models((save_checkpoint(tmp_path / "run", family="unetr", family_options=dict(UNETR)),))
    assert window_of(models, None) == models[0].card.crop == (64, 32, 32)
    with pytest.raises(ConfigError, match="unetr was trained on crops of 64x32x32 and takes no other"):
        window_of(models, (64, 64, 64))
    with pytest.raises(ConfigError, match="multiples of 16"):
        window_of(models, (60, 32, 32))


def test_a_bundles_card_has_no_encoder(tmp_path: Path) -> None:
    options = {"network": {"_target_": "SegResNet", "init_filters": 8, "in_channels": 4, "out_channels": 3}}
    uri = save_checkpoint(
        tmp_path / "run", family="bundle", family_options=options, encoder={"in_channels": 4}
    )
    card_uri = files.join(uri, "card.json")
    card = json.loads(files.read_bytes(card_uri))
    files.write_json(card_uri, {**card, "encoder": {}})
    network, _ = load_segmenter(uri)
    assert network(torch.zeros(1, 4, 64, 32, 32)).shape == (1, 3, 64, 32, 32)


@pytest.mark.slow
def test_a_family_on_few_labels_through_ray_train(
    labelled_shards: str, tmp_path: Path, ray_local: int
) -> None:
    uri = with_shares(labelled_shards, tmp_path)
    config = segresnet(tmp_path / "runs", uri)
    config = replace(config, data=replace(config.data, share=50.0, draw=1))
    task, _ = prepare(config, ShardSet.open(uri))
    summary = train(task)
    subset = few_shot_subset(uri, share=50, draw=1)
    assert subset is not None and len(subset) == 4
    assert set(load_seen(summary["checkpoint"])["subject"].to_pylist()) == subset | {"BraTS2021_00008"}
    receipt = read_receipt(task.run_dir)
    assert receipt.problems == [] and check(receipt) == []
    visits = {row["subject"]: row["visits"] for row in who(receipt).to_pylist() if row["visits"]}
    assert set(visits) == subset and sum(visits.values()) == 4 * config.data.groups_per_step
    assert summary["parameters"] == sum(p.numel() for p in build_network(task)[0].parameters())
    assert summary["seconds"] > 0 and summary["cpu_seconds"] > 0 and summary["attempts"] == 1
    assert summary["device_hours"] == pytest.approx(summary["seconds"] / 3600)
    assert summary["energy_kwh"] is None and summary["device"]
    assert files.read_json(files.join(task.run_dir, "summary.json")) == summary
    found = evaluate_run(task, summary)
    assert found.table.summary() and "segresnet" in files.read_bytes(found.page).decode()


def test_validation_may_have_a_window_of_its_own(labelled_shards: str, tmp_path: Path) -> None:
    config = configuration(tmp_path, labelled_shards)
    shards = ShardSet.open(labelled_shards)
    wide = replace(config, keep=replace(config.keep, window=(64, 64, 64)))
    task, _ = prepare(wide, shards)
    assert task.volumes is not None and task.volumes.window.window == (64, 64, 64)
    assert default_name(wide, "m") == default_name(config, "m")
    fixed = replace(wide, model=replace(wide.model, family="transbts"))
    with pytest.raises(ConfigError, match="transbts takes no other window than its crop"):
        prepare(fixed, shards)
