"""Training runs of a study as if they had been trained: networks at random, with scores as they are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from brainfoundry.core import files
from brainfoundry.core.config import to_yaml
from brainfoundry.experiments.axes import DEFAULTS
from brainfoundry.experiments.node import Node, TestSet
from brainfoundry.experiments.records import StudyFolder
from brainfoundry.store.reader import ShardSet
from brainfoundry.training.checkpoint import checkpoint_uri, save
from brainfoundry.training.config import TrainConfig
from brainfoundry.training.finetune_config import FinetuneConfig
from brainfoundry.training.seen import encode_seen, own_scans, seen_table
from brainfoundry.training.task import TrainTask
from brainfoundry.training.tracking.spool import SpoolWriter
from brainfoundry.training.train_job import prepare
from brainfoundry.training.worker import build_network, make_card
from tests.training.labelled import configuration

NOWHERE = "http://127.0.0.1:9"
"""A tracking server that is down."""


def study_folder(folder: Path, name: str = "s") -> StudyFolder:
    return StudyFolder(name=name, uri=str(folder / name))


def node(study: StudyFolder, shards: str, name: str = "ft-a", **changes: Any) -> Node:
    """A trial of the tiny cohort, tested on its test split."""
    config = configuration(Path(study.runs), shards, name=name)
    config = replace(config, tracking=replace(config.tracking, uri=NOWHERE))
    values: dict[str, Any] = {
        "id": name, "kind": "finetune", "role": "trial", "point": {**DEFAULTS, "size": "nano"},
        "config": config, "test": TestSet(shards=shards),
    }  # fmt: skip
    return Node(**{**values, **changes})


def held_out_fold(of: Node, fold: int) -> Node:
    """The same, with a fold held out and tested."""
    config = replace(of.config, data=replace(of.config.data, fold=fold))
    assert of.test is not None
    return replace(of, config=config, test=replace(of.test, fold=fold))


def train_as_if(config: TrainConfig, scores: Mapping[int, float], *, finished: bool = True) -> TrainTask:
    """Leave what a training leaves: configuration, checkpoints, verdicts, spool and, at the end, the summary.

    Args:
        scores: step -> dice_mean in validation.
    """
    assert isinstance(config, FinetuneConfig)
    config = replace(config, keep=replace(config.keep, validation="inline"))
    shards = ShardSet.open(str(config.data.shards))
    task, _ = prepare(config, shards)
    network, _ = build_network(task)
    own = own_scans(
        shards, sorted(set(task.fed_by)), run=task.name, stage="finetune", held_out_fold=task.plan.fold
    )
    spool = SpoolWriter(task.run_dir)
    for step, score in scores.items():
        metrics = {"val/dice_mean": score}
        seen = encode_seen(seen_table(own))
        save(task.checkpoints, make_card(task, step, metrics), network.state_dict(), {}, seen)
        verdict = {"step": step, "metrics": metrics, "rows": [], "seconds": 1.0, "problem": ""}
        files.write_json(files.join(task.verdicts, f"step-{step:08d}.json"), verdict)
        values = {"train/total": 1.0 / step, "speed/crops_per_s": 2.0, **metrics, "val/seconds": 0.5}
        spool.append([{"kind": "metrics", "time": step, "step": step, "values": values}])
    spool.flush(force=True)
    spool.close()
    files.write_bytes(files.join(task.run_dir, "config.yaml"), to_yaml(task.config).encode())
    files.write_json(
        files.join(task.run_dir, "progress.json"), {"step": max(scores), "steps": config.optim.steps}
    )
    if finished:
        summary = {
            "steps": config.optim.steps,
            "seconds": 60.0,
            "cpu_seconds": 90.0,
            "device_hours": 0.5,
            "parameters": 7,
            "device": "a chip",
            "last": {"speed/crops_per_s": 2.0},
            "run_id": None,
            "tracking_delivered": False,
            "checkpoint": checkpoint_uri(task.checkpoints, config.optim.steps),
        }
        files.write_json(files.join(task.run_dir, "summary.json"), summary)
    return task
