"""Stage 3 through Ray Train: validated beside the training or by the workers, killed and resumed, judged."""

from __future__ import annotations

import contextlib
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from brainfoundry.core import files
from brainfoundry.store.reader import ShardSet
from brainfoundry.training.checkpoint import checkpoint_uri, list_steps, read_card
from brainfoundry.training.config import InitConfig
from brainfoundry.training.evaluation import evaluate_run
from brainfoundry.training.finetune_config import FinetuneConfig
from brainfoundry.training.launch import train
from brainfoundry.training.resolve import resolve_task
from brainfoundry.training.runs import find_place
from brainfoundry.training.task import TrainTask
from brainfoundry.training.verdicts import read_verdict
from tests.training.labelled import configuration
from tests.training.test_resolve import parent
from tests.training.test_resume import train_workers, when_saved
from tests.training.test_verdicts import judged_steps

pytestmark = pytest.mark.slow


def resolve(config: FinetuneConfig) -> TrainTask:
    shards = ShardSet.open(str(config.data.shards))
    return resolve_task(config, shards, find_place(config, str(config.storage), shards.meta.manifest_hash))


def named(config: FinetuneConfig, name: str, **keep: Any) -> FinetuneConfig:
    return replace(config, name=name, keep=replace(config.keep, **keep))


def weights(task: TrainTask, step: int) -> dict[str, torch.Tensor]:
    return load_file(Path(checkpoint_uri(task.checkpoints, step)) / "model.safetensors")


def test_validated_beside_the_training_and_by_the_workers(
    labelled_shards: str, tmp_path: Path, ray_local: int
) -> None:
    config = configuration(tmp_path, labelled_shards)
    uri = parent(tmp_path, labelled_shards)
    config = replace(
        config, init=InitConfig(checkpoint=uri), optim=replace(config.optim, ema=0.5),
        model=replace(config.model, drop_rate=0.1),
    )  # fmt: skip
    beside = resolve(named(config, "beside", validation="async", keep_last=1))
    summary = train(beside)
    assert judged_steps(beside.verdicts) == [2, 4]
    verdict = read_verdict(beside.verdicts, 4)
    assert verdict is not None and not verdict.problem and verdict.rows[0]["subject"] == "BraTS2021_00008"
    # The card has it, the best and the newest are kept, and the transfer's table lies in the run.
    assert read_card(checkpoint_uri(beside.checkpoints, 4)).metrics == dict(verdict.metrics)
    first = read_verdict(beside.verdicts, 2)
    assert first is not None
    best = 4 if verdict.metrics["val/dice_mean"] > first.metrics["val/dice_mean"] else 2
    assert summary["best_checkpoint"] == checkpoint_uri(beside.checkpoints, best)
    assert list_steps(beside.checkpoints) == sorted({best, 4})
    table = files.read_bytes(files.join(beside.run_dir, "transfer.txt")).decode()
    assert "channel 0 FLAIR <- source 1 FLAIR" in table
    card = read_card(summary["checkpoint"])
    assert card.parents == (uri,) and card.init["mode"] == "paper" and card.stage == "finetune"

    inline = resolve(named(config, "inline", validation="inline", keep_last=99))
    train(inline)
    for step in (2, 4):  # the same weights, the same scores
        one, two = read_verdict(beside.verdicts, step), read_verdict(inline.verdicts, step)
        assert one is not None and two is not None and one.metrics == pytest.approx(two.metrics, abs=1e-6)
    assert all(torch.equal(v, weights(inline, 4)[k]) for k, v in weights(beside, 4).items())

    found = evaluate_run(beside, summary)
    assert [row.metric for row in found.table.summary()][:3] == ["dice_tc", "dice_wt", "dice_et"]
    page = files.read_bytes(found.page).decode()
    assert "BraTS2021_00008" in page and "empty_policy" in page and len(found.pictures) == 1


def test_a_worker_killed_in_stage_3_goes_on_to_the_bit(
    labelled_shards: str, tmp_path: Path, ray_local: int
) -> None:
    config = configuration(tmp_path, labelled_shards)
    config = replace(
        config, optim=replace(config.optim, steps=6, ema=0.5), model=replace(config.model, drop_rate=0.1),
        data=replace(config.data, fold=1),
    )  # fmt: skip
    straight = resolve(named(config, "straight", validation="async", keep_last=99))
    train(straight)
    killed = resolve(named(config, "killed", validation="async", keep_last=99))
    struck: list[int] = []

    def kill() -> None:
        for process in train_workers(psutil.Process()):
            process.send_signal(signal.SIGKILL)
            struck.append(process.pid)

    thread = when_saved(tmp_path, "killed", kill, step=2)
    summary = train(killed)
    thread.join()
    assert struck and summary["steps"] == 6
    expected, got = weights(straight, 6), weights(killed, 6)
    assert all(torch.equal(v, got[k]) for k, v in expected.items())
    # A verdict that came, or was lost, while the workers were down is on its card all the same.
    assert judged_steps(killed.verdicts) == judged_steps(straight.verdicts) == [2, 4, 6]
    for step in (2, 4, 6):
        one, two = (read_card(checkpoint_uri(task.checkpoints, step)).metrics for task in (straight, killed))
        assert one and one == pytest.approx(two, abs=1e-6)


def test_a_validation_whose_process_is_killed_costs_a_verdict(
    labelled_shards: str, tmp_path: Path, ray_local: int
) -> None:
    config = configuration(tmp_path, labelled_shards)
    task = resolve(named(config, "shot", validation="async", validate_every=0))
    struck: list[int] = []
    ended = threading.Event()

    def strike() -> None:  # whoever validates, as often as it is started again
        while not ended.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "ray::validate_checkpoint" in " ".join(process.cmdline()):
                        process.kill()
                        struck.append(process.pid)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        summary = train(task)
    finally:
        ended.set()
        thread.join()
    verdict = read_verdict(task.verdicts, 4)
    assert struck and verdict is not None and "Crashed" in verdict.problem and not verdict.metrics
    assert summary["steps"] == 4 and summary["best_checkpoint"] is None
