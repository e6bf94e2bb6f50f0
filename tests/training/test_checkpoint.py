"""Checkpoints: whole or invisible, checked when read, the last N and the best kept."""

import dataclasses
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch

from brainfoundry.core import files
from brainfoundry.core.errors import CheckpointError
from brainfoundry.training import checkpoint
from brainfoundry.training.card import Card
from brainfoundry.training.checkpoint import CheckpointWriter


def card(step: int = 10, **changes: Any) -> Card:
    base = Card(
        stage="pretrain-1",
        size="nano",
        modalities=("T1w", "FLAIR"),
        merging="current",
        encoder={"size": "nano"},
        objective="inpaint_rotate_contrast",
        objective_config={},
        intensity="zscore_nonzero",
        crop=(64, 32, 32),
        patch=2,
        frame="box",
        spacing_mm=2.0,
        orientation="RAS",
        space="MNI152",
        skull_stripped=True,
        manifest_hash="m",
        plan_hash="p",
        step=step,
        steps=100,
        run="r",
    )
    return dataclasses.replace(base, **changes)


MODEL = {"a.weight": torch.arange(6.0).reshape(2, 3), "index": torch.arange(4)}
STATE = {
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]},
    "scaler": {},
}


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def test_what_is_saved_comes_back(folder: str) -> None:
    uri = checkpoint.save(folder, card(), MODEL, STATE)
    back = checkpoint.load(uri)
    assert dataclasses.replace(back.card, files={}) == card()
    assert torch.equal(back.model["a.weight"], MODEL["a.weight"])
    assert back.state["optimizer"]["param_groups"] == [{"lr": 1e-4}]
    assert checkpoint.latest_step(folder) == 10
    assert checkpoint.load(uri, with_state=False).state == {}


def test_a_checkpoint_without_its_card_does_not_exist(folder: str) -> None:
    checkpoint.save(folder, card(10), MODEL, STATE)
    uri = checkpoint.save(folder, card(20), MODEL, STATE)
    files.delete_file(files.join(uri, "card.json"))
    assert checkpoint.list_steps(folder) == [10]
    with pytest.raises(CheckpointError, match=r"card\.json is missing"):
        checkpoint.load(uri)
    CheckpointWriter(folder, keep_last=2, best_by="total")  # a restart sweeps the half away
    assert not files.exists(uri)


@pytest.mark.parametrize("name", [checkpoint.MODEL, checkpoint.STATE])
def test_a_flipped_byte_is_found(folder: str, name: str) -> None:
    uri = checkpoint.save(folder, card(), MODEL, STATE)
    path = files.join(uri, *name.split("/"))
    data = bytearray(files.read_bytes(path))
    data[len(data) // 2] ^= 1
    files.write_bytes(path, bytes(data))
    with pytest.raises(CheckpointError, match="does not match its checksum") as caught:
        checkpoint.load(uri)
    assert path in caught.value.line() and "Fix:" in caught.value.line()


def test_a_card_of_another_version_is_refused(tmp_path: Path) -> None:
    uri = checkpoint.save(str(tmp_path), card(version=99), MODEL, STATE)
    with pytest.raises(CheckpointError, match="version 99, this program reads version 1"):
        checkpoint.read_card(uri)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": "tiny"}, ["size", "'nano'", "'tiny'"]),
        ({"modalities": ("FLAIR", "T1w")}, ["modalities", "('T1w', 'FLAIR')"]),
        ({"plan_hash": "q"}, ["plan_hash"]),
        ({"merging": "legacy"}, ["merging"]),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        card(**change).refuse_mismatch(card(), "run/step-00000010")
    for word in [*words, "run/step-00000010", "Fix:"]:
        assert word in caught.value.line()
    card(step=99, metrics={"x": 1.0}).refuse_mismatch(card(), "same run, other step")


def test_the_last_two_and_the_best_are_kept(folder: str) -> None:
    writer = CheckpointWriter(folder, keep_last=2, best_by="total")
    for step, loss in [(10, 3.0), (20, 1.0), (30, 2.0), (40, 2.5), (50, None)]:
        writer.save(card(step, metrics={} if loss is None else {"val/total": loss}), MODEL, STATE)
    writer.wait()
    assert checkpoint.list_steps(folder) == [20, 40, 50]
    assert writer.best_step == 20
    again = CheckpointWriter(folder, keep_last=2, best_by="total")  # a restart remembers the best
    again.save(card(60, metrics={"val/total": 0.5}), MODEL, STATE)
    again.wait()
    assert checkpoint.list_steps(folder) == [50, 60] and again.best_step == 60


def test_the_snapshot_does_not_change_with_the_model() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    frozen = checkpoint.to_cpu({"a": weight, "b": [weight]})
    with torch.no_grad():
        weight.zero_()
    assert torch.equal(frozen["a"], torch.ones(2)) and torch.equal(frozen["b"][0], torch.ones(2))


def test_an_error_of_the_writer_reaches_the_training(tmp_path: Path) -> None:
    writer = CheckpointWriter(str(tmp_path / "c"), keep_last=1, best_by="total")
    (tmp_path / "c").rmdir()
    (tmp_path / "c").write_text("not a folder any more")
    writer.save(card(), MODEL, STATE)
    with pytest.raises(CheckpointError, match="could not be written"):
        writer.wait()


def test_foreign_pickles_are_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    uri = checkpoint.save(str(tmp_path), card(), MODEL, {"optimizer": Evil()})
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(uri)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_waits_for_its_verdict(folder: str) -> None:
    writer = CheckpointWriter(folder, keep_last=1, best_by="dice", higher=True)
    for step in (10, 20, 30):
        writer.hold([step])
        writer.save(card(step), MODEL, STATE)
        writer.wait()
    assert checkpoint.list_steps(folder) == [10, 20, 30] and writer.best_step is None
    writer.judge(20, {"val/dice": 0.7, "val/hd95": 3.0})  # verdicts come in any order
    assert writer.best_step == 20 and checkpoint.list_steps(folder) == [10, 20, 30]
    writer.judge(10, {"val/dice": 0.5})
    assert checkpoint.list_steps(folder) == [20, 30]  # neither newest nor best
    writer.judge(30, {"val/dice": float("nan")})  # nothing was defined: it is kept as the newest only
    assert writer.best_step == 20
    back = checkpoint.load(checkpoint.checkpoint_uri(folder, 20))  # the card was written anew, and holds
    assert back.card.metrics == {"val/dice": 0.7, "val/hd95": 3.0}
    again = CheckpointWriter(folder, keep_last=1, best_by="dice", higher=True)  # after a restart
    assert again.best_step == 20
    again.save(card(40, metrics={"val/dice": 0.9}), MODEL, STATE)
    again.wait()
    assert checkpoint.list_steps(folder) == [40]


def test_a_verdict_on_what_was_deleted_by_hand_is_taken_calmly(folder: str) -> None:
    writer = CheckpointWriter(folder, keep_last=3, best_by="dice", higher=True)
    writer.judge(10, {"val/dice": 0.5})
    assert writer.best_step is None


def test_cards_from_before_there_were_stages_are_read(folder: str) -> None:
    uri = checkpoint.save(folder, card(), MODEL, STATE)
    path = files.join(uri, "card.json")
    value = files.read_json(path)
    for name in ("feeds", "task", "init"):
        del value[name]
    files.write_json(path, value)
    found = checkpoint.read_card(uri)
    assert (found.feeds, found.task, found.init) == ({}, {}, {})
    card().refuse_mismatch(found, uri)
