"""The driver's side of a run: check it against the cluster, hand it to Ray Train, explain what stopped it."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, ValidationConfig
from ray.train.torch import TorchConfig

from brainfoundry.core import files
from brainfoundry.core.errors import BrainFoundryError, ClusterError
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.ray_train_data import FetchOptions, PlanDataConfig
from brainfoundry.stream.sessions import subset_of
from brainfoundry.training.checkpoint import latest_step
from brainfoundry.training.config import TrainConfig
from brainfoundry.training.finetune_config import FinetuneConfig
from brainfoundry.training.receipt_log import write_plan
from brainfoundry.training.task import TrainTask
from brainfoundry.training.tracking.tags import ray_tags
from brainfoundry.training.tracking.uri import refuse_if_multinode
from brainfoundry.training.trainer import Trainer
from brainfoundry.training.validation_task import validate_guarded
from brainfoundry.training.watch import Watcher
from brainfoundry.training.worker import train_worker


def check_cluster(config: TrainConfig) -> bool:
    """Compare what the run asks for with what the cluster has; returns whether workers use GPUs.

    Raises:
        ClusterError: more workers than CPUs or GPUs.
    """
    have = ray.cluster_resources()
    cluster = config.cluster
    gpus = int(have.get("GPU", 0))
    use_gpu = cluster.gpu == "yes" or (cluster.gpu == "auto" and gpus > 0)
    if use_gpu and gpus < cluster.workers:
        raise ClusterError(
            f"{cluster.workers} workers need {cluster.workers} GPUs, the cluster has {gpus}",
            fix=f"use --cluster.workers {max(gpus, 1)}" + ("" if gpus else " --cluster.gpu no"),
        )
    per_worker = cluster.cpus_per_worker + cluster.fetch_cpus * cluster.fetchers
    need, cpus = per_worker * cluster.workers, have.get("CPU", 0.0)
    if need > cpus + 1e-9:
        fits = math.floor(cpus / per_worker)
        raise ClusterError(
            f"{cluster.workers} workers need {need:g} CPUs ({cluster.cpus_per_worker:g} each and "
            f"{cluster.fetch_cpus * cluster.fetchers:g} to read), the cluster has {cpus:g}",
            fix=(f"use --cluster.workers {fits}" if fits else "use --cluster.cpus-per-worker 0.5")
            + ", or start Ray with more --num-cpus",
        )
    return use_gpu


def spare_resources(config: TrainConfig, use_gpu: bool) -> dict[str, float] | None:
    """What Ray Train may validate with beside the training: resources that the run itself never holds.

    A GPU run validates on a GPU: on a CPU a validation would outlast the training. None: there is nothing.
    """
    have = ray.cluster_resources()
    cluster = config.cluster
    if use_gpu:
        return {"num_gpus": 1, "num_cpus": 0} if have.get("GPU", 0) >= cluster.workers + 1 else None
    per_worker = cluster.cpus_per_worker + cluster.fetch_cpus * cluster.fetchers
    spare = have.get("CPU", 0.0) - per_worker * cluster.workers
    return {"num_cpus": min(1.0, math.floor(spare * 4) / 4)} if spare >= 0.25 else None


def _validation(task: TrainTask, use_gpu: bool) -> tuple[TrainTask, ValidationConfig | None]:
    """How whole volumes are validated on this cluster."""
    config = task.config
    if task.volumes is None or not isinstance(config, FinetuneConfig) or config.keep.validation == "inline":
        return task, None
    spare = spare_resources(config, use_gpu)
    if spare is None:
        if config.keep.validation == "async":
            raise ClusterError(
                "no resources are left to validate on beside the training",
                fix="use fewer workers, --keep.validation inline, or a larger cluster",
            )
        return task, None
    fn = functools.partial(validate_guarded, spec=task.volumes, folder=task.verdicts, resources=spare)
    # Ray Train's own task only waits for the one that computes.
    options = {"num_cpus": 0, "max_retries": -1}
    return replace(task, beside=True), ValidationConfig(fn=fn, ray_remote_kwargs=options)


def train(task: TrainTask, *, callbacks: Sequence[Any] = ()) -> dict[str, Any]:
    """Run it to the end on the connected cluster; returns the summary.

    Args:
        callbacks: of Ray Train, in the run's controller.

    Raises:
        BrainFoundryError: whatever stopped it, in one line.
    """
    config = task.config
    use_gpu = check_cluster(config)
    nodes = sum(node["Alive"] for node in ray.nodes())
    refuse_if_multinode(task.tracking_uri, nodes)
    files.check_writable(task.run_dir)
    _keep_plans(task)
    task, validation = _validation(replace(task, tags={**task.tags, **ray_tags()}), use_gpu)
    trainer = Trainer(
        train_worker,  # type: ignore[arg-type]  # its value becomes Result.return_value
        train_loop_config={"task": task},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=config.cluster.timeout_s),
        scaling_config=ScalingConfig(
            num_workers=config.cluster.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": config.cluster.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        # The real data set is made by PlanDataConfig.configure() at each start of the worker group.
        datasets={"train": functools.partial(ray.data.range, 1)},
        dataset_config=PlanDataConfig(
            shards=task.shards,
            spec=task.plan,
            channels=task.channels,
            label=task.label,
            stop_step=config.optim.steps,
            plan_hash=str(task.card["plan_hash"]),
            start_step=functools.partial(latest_step, task.checkpoints),
            fetch=FetchOptions(cpus_per_actor=config.cluster.fetch_cpus, actors=config.cluster.fetchers),
        ),
        validation_config=validation,  # type: ignore[call-arg]  # of Train V2, the default
        run_config=RunConfig(
            # Ray's own record of the attempt, under a fresh name: our checkpoints say where to go on.
            name=f"attempt-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=files.join(task.run_dir, "ray"),
            failure_config=FailureConfig(max_failures=config.cluster.max_failures),
            callbacks=list(callbacks),
        ),
    )
    with Watcher(task, latest_step(task.checkpoints)):
        try:
            result = trainer.fit()
        except Exception as error:
            raise _explain(error, task) from error
    return dict(result.return_value)  # type: ignore[attr-defined]


def _keep_plans(task: TrainTask) -> None:
    """The receipt's plans, before the first step: they say later who was in which step."""
    shards = ShardSet.open(task.shards)
    about = {
        "run": task.name,
        "stage": task.card["stage"],
        "cohort": shards.meta.cohort,
        "manifest_hash": shards.meta.manifest_hash,
        "modalities": sorted(set(task.fed_by)),
    }
    for spec, role in ((task.plan, "train"), (task.validation, "val")):
        if spec is not None:
            write_plan(task.run_dir, shards.index, spec, {**about, "role": role}, subset_of(shards, spec))


def _explain(error: BaseException, task: TrainTask) -> BrainFoundryError:
    """The user's error inside Ray's wrapping, or the innermost message with where to look."""
    seen: list[BaseException] = []
    queue: list[BaseException] = [error]
    while queue:
        current = queue.pop(0)
        if current in seen:
            continue
        seen.append(current)
        if isinstance(current, BrainFoundryError):
            return current
        inner = [getattr(current, "cause", None), current.__cause__, current.__context__]
        inner += list(getattr(current, "worker_failures", {}).values())
        queue += [e for e in inner if isinstance(e, BaseException)]
    last = str(seen[-1]).strip().splitlines()
    return ClusterError(
        f"training stopped: {type(seen[-1]).__name__}: {last[-1] if last else ''}",
        file=task.run_dir,
        fix="read the messages above; submit the same job again to continue from the newest checkpoint",
    )
