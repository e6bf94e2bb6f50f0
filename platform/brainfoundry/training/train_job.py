"""What every training job does once it has its options: data, run, announcement, training, summary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from brainfoundry.core import files, paths
from brainfoundry.core.errors import ConfigError
from brainfoundry.core.ray_session import connect
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.plan import Plan
from brainfoundry.training import report
from brainfoundry.training.config import TrainConfig
from brainfoundry.training.evaluation import evaluate_run, page_of
from brainfoundry.training.launch import train
from brainfoundry.training.resolve import plan_of, resolve_task, storage_of
from brainfoundry.training.runs import RunPlace, find_place, identity_hash, in_steps
from brainfoundry.training.task import TrainTask

ALIASES = {
    "--shards": "--data.shards",
    "--modalities": "--data.modalities",
    "--fold": "--data.fold",
    "--size": "--model.size",
    "--checkpoint": "--init.checkpoint",
    "--steps": "--optim.steps",
    "--workers": "--cluster.workers",
}


def prepare(config: TrainConfig, shards: ShardSet) -> tuple[TrainTask, RunPlace]:
    """The run that a configuration means on a shard set, resolved, and where it lives.

    The same name and storage go on where the newest checkpoint left off, also after a withdrawal. The run is
    held against its test sets here (--data.guard), before anything starts.

    Raises:
        BrainFoundryError: as `resolve_task`, and `runs.find_place`.
    """
    subjects = Plan.open(shards, plan_of(config)).n_subjects
    config = in_steps(config, storage_of(config), identity_hash(shards.meta), subjects)
    place = find_place(config, storage_of(config), identity_hash(shards.meta))
    return resolve_task(config, shards, place), place


def train_job(config: TrainConfig, ensure_demo: Callable[..., str]) -> None:
    """Train, or go on training, and say what came of it.

    Args:
        ensure_demo: makes the demo shard set of the job's cohort, for the demo preset without --data.shards.

    Raises:
        BrainFoundryError: whatever keeps the run from starting, or stopped it.
    """
    config.check()

    # Data: a shard set that a prepare job made; the demo preset makes its own.
    shards_uri = config.data.shards
    if shards_uri is None:
        if config.preset != "demo":
            raise ConfigError(
                f"preset {config.preset} needs a shard set",
                fix="make one with a prepare job (jobs/prepare_ukb.py, ...), name it with --data.shards",
            )
        shards_uri = ensure_demo(Path(paths.home()) / "demo", make=not config.dry_run)
    shards = ShardSet.open(shards_uri)
    task, place = prepare(config, shards)
    report.announce(task, shards, place)
    if config.dry_run:
        print("dry run: nothing was started")
        return
    if place.state == "finished":
        summary = report.finished_before(task)
        if task.volumes is not None and not files.exists(page_of(task)):
            print(f"joined {connect()}", flush=True)  # the job was stopped in the middle of that
            evaluate_run(task, summary)
        return

    print(f"joined {connect()}", flush=True)
    summary = train(task)
    report.summarise(task, summary)
    if task.volumes is not None:
        evaluate_run(task, summary)
