"""One node of a study from its configuration to its record: trained, judged on the test set, written down.

Each part is found done where it was: a run that finished is only evaluated, one that did not goes on from its
newest checkpoint. Reports read the record, so it is written last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from brainfoundry.core import files
from brainfoundry.core.errors import BrainFoundryError, ConfigError, DivergedError
from brainfoundry.experiments.capacity import cores
from brainfoundry.experiments.node import Node, TestSet
from brainfoundry.experiments.records import (
    StudyFolder,
    TrialRecord,
    losses_of,
    scores_of,
    write_loss_table,
    write_record,
)
from brainfoundry.inference.windows import WindowSpec
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.folds import HELD_OUT
from brainfoundry.training.checkpoint import checkpoint_uri, list_steps, read_card, step_of
from brainfoundry.training.config import TrainConfig
from brainfoundry.training.ensemble import find_models, window_of
from brainfoundry.training.evaluation import Evaluation, evaluate, log_evaluation
from brainfoundry.training.evaluation_spec import volumes_of
from brainfoundry.training.finetune_config import FinetuneConfig
from brainfoundry.training.initialise import find_checkpoint
from brainfoundry.training.launch import train
from brainfoundry.training.receipt_log import attempts
from brainfoundry.training.reporter import tracker_of
from brainfoundry.training.resolve import storage_of
from brainfoundry.training.task import TrainTask
from brainfoundry.training.tracking.spool import read_history
from brainfoundry.training.tracking.tags import git_tags
from brainfoundry.training.train_job import prepare

_DELIVERY_S, _SILENT_S = 60.0, 2.0
"""Longest wait for MLflow at the end of a trial, and where it did not answer the training either. What it
does not take waits in the run's spool."""


@dataclass(frozen=True)
class _Tested:
    """What the test set said."""

    evaluation: Evaluation
    test: Mapping[str, Any]
    leaks: tuple[Mapping[str, Any], ...]


def run_node(
    node: Node,
    config: TrainConfig,
    study: StudyFolder,
    *,
    chosen: Mapping[str, Any] | None = None,
    callbacks: Sequence[Any] = (),
) -> TrialRecord:
    """Train, or go on training, evaluate on the test set, and write the record.

    Args:
        config: the node's, with what was picked for it.
        chosen: options that were picked for it, for the record.
        callbacks: of Ray Train, in the run's controller.

    Raises:
        BrainFoundryError: whatever keeps the run from starting, or stopped it.
    """
    task, state = open_run(config)
    run_dir = task.run_dir
    if state == "finished":
        summary = files.read_json(files.join(run_dir, "summary.json"))
        _say(node, "was trained before")
    else:
        _say(node, f"trains to step {task.config.optim.steps}")
        summary = train(task, callbacks=callbacks)
    uri, chosen_on = judged(task, node.test)
    card = read_card(uri)
    tested = _test(node.test, task, uri) if node.test is not None else None
    if tested is not None:
        found = tested.evaluation.table
        files.make_folder(files.join(study.uri, "scores"))
        found.to_parquet(study.absolute(scores_of(node.id)))
    write_losses(study.absolute(losses_of(node.id)), run_dir)
    metrics = tested.evaluation.table.means() if tested else {}
    run_id = _track(task, tested, summary, step_of(uri))
    cpu_seconds = summary.get("cpu_seconds")
    record = replace(
        _begun(node, study, run_dir, chosen or {}),
        state="finished",
        checkpoint=uri,
        steps=int(summary["steps"]),
        parameters=summary.get("parameters"),
        seconds=summary.get("seconds"),
        device_hours=summary.get("device_hours"),
        device=summary.get("device"),
        cpu_hours=None if cpu_seconds is None else cpu_seconds / 3600,
        energy_kwh=summary.get("energy_kwh"),
        test=tested.test if tested else None,
        scores=scores_of(node.id) if tested else None,
        metrics=metrics,
        validation=dict(card.metrics),
        losses=losses_of(node.id),
        chosen_on=chosen_on,
        leaks=(*card.leaks, *(tested.leaks if tested else ())),
        mlflow_run=run_id,
        git_commit=card.git_commit,
    )
    write_record(study, record)
    _say(node, "finished")
    return record


def failed(
    node: Node,
    config: TrainConfig,
    study: StudyFolder,
    error: BaseException | str,
    *,
    chosen: Mapping[str, Any] | None = None,
) -> TrialRecord:
    """The record of a node that its problem stopped, written. Options that were only tried and do not train
    have had their say: they lose."""
    unfit = node.role == "choice" and isinstance(error, DivergedError | ConfigError)
    record = replace(
        _begun(node, study, run_dir_of(config), chosen or {}), state="unfit" if unfit else "failed",
        error=error if isinstance(error, str) else one_line(error),
    )  # fmt: skip
    write_record(study, record)
    return record


def stopped(
    node: Node, config: TrainConfig, study: StudyFolder, *, chosen: Mapping[str, Any] | None = None
) -> TrialRecord:
    """The record of a node that a scheduler gave up early, written; its best checkpoint so far is named."""
    run_dir = run_dir_of(config)
    record = replace(
        _begun(node, study, run_dir, chosen or {}), state="stopped", git_commit=git_tags().get("git_commit")
    )
    steps = list_steps(files.join(run_dir, "checkpoints"))
    if steps:
        uri = find_checkpoint(run_dir)
        card = read_card(uri)
        write_losses(study.absolute(losses_of(node.id)), run_dir)
        record = replace(
            record, checkpoint=uri, steps=steps[-1], validation=dict(card.metrics),
            losses=losses_of(node.id), chosen_on=card.chosen_on,
        )  # fmt: skip
    write_record(study, record)
    return record


def open_run(config: TrainConfig) -> tuple[TrainTask, str]:
    """The run that a configuration means, checked, and how far it is: new, unfinished or finished.

    Volumes are validated by the run's own workers: beside them (`--keep.validation async`) there is nothing
    to spare, because other trials fill the cluster, and two that wait for each other's share would wait for
    good.
    """
    if isinstance(config, FinetuneConfig):
        config = replace(config, keep=replace(config.keep, validation="inline"))
    config.check()
    task, place = prepare(config, ShardSet.open(str(config.data.shards)))
    return task, place.state


def judged(task: TrainTask, test: TestSet | None) -> tuple[str, str]:
    """The checkpoint to judge, and where it was chosen: the best by validation, never by the test set.

    Where validation is of the very fold that is tested, or nobody is held out, the last one stands.
    """
    chosen_on = str(task.card["chosen_on"])
    if test is not None and chosen_on:
        on_fold = chosen_on == HELD_OUT and test.fold is not None and test.fold == task.config.data.fold
        if on_fold or (test.fold is None and chosen_on == test.split):
            chosen_on = ""
    if test is None or chosen_on:
        return find_checkpoint(task.run_dir), chosen_on
    return checkpoint_uri(task.checkpoints, task.config.optim.steps), ""


def _test(test: TestSet, task: TrainTask, uri: str) -> _Tested:
    """Whole volumes of the test set, held against everybody the checkpoint has seen."""
    config = task.config
    assert isinstance(config, FinetuneConfig)
    models, keep = find_models([uri]), config.keep
    window = WindowSpec(
        window=window_of(models, keep.window), overlap=keep.overlap, weights=keep.weights, mode=keep.windows
    )
    spec, notes, leaks = volumes_of(
        models, test.shards, split=test.split, fold=test.fold, limit=None,
        allow_leak=config.data.allow_leak, window=window, precision=config.optim.precision,
    )  # fmt: skip
    found = evaluate(
        [uri], spec, files.join(task.run_dir, "test"),
        title=f"{task.name}: {len(spec.sessions)} test subjects",
        lead=f"{uri}, {config.model.label}, {', '.join(task.modalities)}",
        best_by=config.keep.best_by, pictures=0, notes=notes, cpus=cores(config.cluster),
    )  # fmt: skip
    return _Tested(found, test.record(found.table, ShardSet.open(test.shards).meta.manifest_hash), leaks)


def _track(task: TrainTask, tested: _Tested | None, summary: Mapping[str, Any], step: int) -> str | None:
    """Test scores into the node's MLflow run, under the names that all trials share; the run's id."""
    tracker = tracker_of(task)
    if tested is not None:
        log_evaluation(tracker, tested.evaluation, step=step, subjects=task.config.tracking.subjects)
    speed = summary.get("last", {}).get("speed/crops_per_s")
    if speed is not None:
        tracker.metrics(int(summary["steps"]), {"crops_per_s": float(speed)})
    answered = summary.get("tracking_delivered", True)
    tracker.close("FINISHED", timeout_s=_DELIVERY_S if answered else _SILENT_S)
    return tracker.run_id or summary.get("run_id")


def write_losses(uri: str, run_dir: str) -> None:
    """Every training and validation figure of a run as a table step, name, value."""
    rows = [
        {"step": int(row["step"]), "name": name, "value": value}
        for row in read_history(run_dir)
        for name, value in sorted(row.items())
        if name.startswith(("train/", "val/")) and name != "val/seconds"
    ]
    write_loss_table(uri, rows)


def score_so_far(run_dir: str, metric: str, *, higher: bool) -> tuple[float, float] | None:
    """How much of a run was done at its newest verdict, per cent, and its best score up to there; None before
    the first.

    Args:
        metric: of the validation, such as dice_mean.
    """
    folder = files.join(run_dir, "validation")
    found: dict[int, float] = {}
    for name in files.list_names(folder):
        if name.endswith(".json"):
            verdict = files.read_json(files.join(folder, name))
            value = verdict["metrics"].get(f"val/{metric}")
            if value is not None and math.isfinite(value):
                found[int(verdict["step"])] = value
    progress = files.join(run_dir, "progress.json")
    if not found or not files.exists(progress):
        return None
    best = (max if higher else min)(found.values())
    return 100.0 * max(found) / files.read_json(progress)["steps"], best


def one_line(error: BaseException) -> str:
    """The user's error inside Ray's wrapping, else the innermost message."""
    seen: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop(0)
        if current is None or current in seen:
            continue
        if isinstance(current, BrainFoundryError):
            return current.line()
        seen.append(current)
        queue += [getattr(current, "cause", None), current.__cause__, current.__context__]
    last = str(seen[-1]).strip().splitlines()
    return f"{type(seen[-1]).__name__}: {last[-1].strip() if last else ''}"


def run_dir_of(config: TrainConfig) -> str:
    """Folder of the training run of a configuration with a name."""
    return files.join(storage_of(config), str(config.name))


def _begun(node: Node, study: StudyFolder, run_dir: str, chosen: Mapping[str, Any]) -> TrialRecord:
    """What holds whatever came of it."""
    tries = attempts(run_dir)
    now = datetime.now(UTC)
    first = datetime.fromtimestamp(int(tries[0].split("-")[1]) / 1000, UTC) if tries else now
    return TrialRecord(
        study=study.name, id=node.id, kind=node.kind, role=node.role, point=dict(node.point), state="failed",
        run_dir=run_dir, parents=tuple(node.parents), chosen=dict(chosen),
        started=first.isoformat(timespec="seconds"), ended=now.isoformat(timespec="seconds"),
        attempts=len(tries),
    )  # fmt: skip


def _say(node: Node, what: str) -> None:
    print(f"{node.id}: {what}", flush=True)
