"""A run that starts from CT weights: what it takes over, what it says and what its card keeps of it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from brainfoundry.core.errors import BrainFoundryError, CheckpointError, ConfigError, DataError
from brainfoundry.models.keys import KeysError
from brainfoundry.models.transfer import STEM
from brainfoundry.store.reader import ShardSet
from brainfoundry.training import checkpoint
from brainfoundry.training.card import Card
from brainfoundry.training.config import InitConfig
from brainfoundry.training.finetune_config import FinetuneConfig
from brainfoundry.training.initialise import init_record, settled
from brainfoundry.training.report import announce
from brainfoundry.training.seen import encode_seen, own_scans, seen_table
from brainfoundry.training.task import TrainTask
from brainfoundry.training.train_job import prepare
from brainfoundry.training.worker import build_network, make_card
from tests.models.test_ct_weights import ct_file
from tests.training.labelled import configuration
from tests.training.test_checkpoint import MODEL, STATE


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = tmp_path_factory.mktemp("ct") / "model_swinvit.pt"
    torch.save({"state_dict": ct_file("nano")}, uri)
    return str(uri)


def run(storage: Path, shards: str, weights: str, **init: Any) -> FinetuneConfig:
    config = configuration(storage, shards)
    model = replace(config.model, merging="legacy")
    return replace(config, model=model, init=InitConfig(ct_weights=weights, **init))


def resolve(config: FinetuneConfig) -> TrainTask:
    return prepare(config, ShardSet.open(str(config.data.shards)))[0]


def test_every_channel_gets_the_one_of_ct(
    labelled_shards: str,
    tmp_path: Path,
    weights: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(Path(weights).parent)  # workers run in other folders than the job
    config = run(tmp_path, labelled_shards, "model_swinvit.pt")
    shards = ShardSet.open(labelled_shards)
    task, place = prepare(config, shards)
    monkeypatch.chdir(tmp_path)
    network, table = build_network(task)
    stem = ct_file("nano")["module.patch_embed.proj.weight"]
    assert torch.equal(network.state_dict()[STEM], stem.repeat(1, 2, 1, 1, 1))
    assert table is not None and table.mode == "repeat" and table.source == weights
    assert {row.action for row in table.rows if row.name.startswith("swinViT.")} == {"copied", "adapted"}
    digest = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    assert task.card["init"] == {
        "mode": "repeat", "parts": ["encoder"], "freeze": "none", "layer_decay": 1.0,
        "ct_weights": {"file": "model_swinvit.pt", "sha256": digest},
    }  # fmt: skip
    assert task.card["parents"] == () and task.parent is None and not task.card["leaks"]
    (note,) = [n for n in task.notes if n.startswith("CT weights")]
    assert "provenance by the user's word" in note
    capsys.readouterr()
    announce(task, shards, place)
    told = capsys.readouterr().out
    assert f"{weights}, mode repeat" in told and "channel 1 T1w <- source 0 CT" in told


def test_a_chosen_mode_and_another_merging(labelled_shards: str, tmp_path: Path, weights: str) -> None:
    config = run(tmp_path, labelled_shards, weights, mode="reference")
    task = resolve(replace(config, model=replace(config.model, merging="current")))
    assert task.card["init"]["mode"] == "reference"
    assert any("use --model.merging legacy" in note for note in task.notes)
    network, _ = build_network(task)
    stem = ct_file("nano")["module.patch_embed.proj.weight"]
    assert not torch.equal(network.state_dict()[STEM][:, :1], stem)
    assert settled(InitConfig()) == InitConfig()


def test_what_does_not_fit_is_shown(labelled_shards: str, tmp_path: Path, weights: str) -> None:
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(KeysError, match=r"(?s)not those of a Swin encoder.*conv1.weight"):
        build_network(resolve(run(tmp_path, labelled_shards, str(tmp_path / "other.pt"))))
    with pytest.raises(DataError, match=r"nowhere\.pt"):
        resolve(run(tmp_path, labelled_shards, str(tmp_path / "nowhere.pt")))
    config = run(tmp_path, labelled_shards, weights)
    with pytest.raises(ConfigError, match=r"--init\.checkpoint and --init\.ct-weights both say"):
        resolve(replace(config, init=replace(config.init, checkpoint="x")))
    torch.save(ct_file("tiny"), tmp_path / "tiny.pt")  # of another size than the network
    with pytest.raises(CheckpointError, match=r"tiny\.pt"):
        build_network(resolve(run(tmp_path, labelled_shards, str(tmp_path / "tiny.pt"))))


def test_a_run_goes_on_without_the_file_but_not_with_another(
    labelled_shards: str, tmp_path: Path, weights: str
) -> None:
    file = tmp_path / "ct.pt"
    file.write_bytes(Path(weights).read_bytes())
    config = run(tmp_path / "runs", labelled_shards, str(file))
    task = resolve(config)
    Path(task.run_dir).mkdir(parents=True)
    Path(task.run_dir, "config.yaml").touch()
    own = own_scans(ShardSet.open(task.shards), task.fed_by, run=task.name, stage="finetune")
    checkpoint.save(task.checkpoints, make_card(task, 2, {}), MODEL, STATE, encode_seen(seen_table(own)))
    file.unlink()
    assert resolve(config).card["init"] == task.card["init"]
    torch.save(ct_file("nano", channels=1) | {"epoch": 1}, file)
    with pytest.raises(BrainFoundryError, match=r"the checkpoint has init .*this run asks for"):
        resolve(config)
    known = Card(**task.card, step=2).init
    assert init_record(InitConfig(), known) == {
        "mode": "paper", "parts": ["encoder"], "freeze": "none", "layer_decay": 1.0
    }  # fmt: skip
