"""The driver's side of a run: resolve it, check it against data and cluster, hand it to Ray Train."""

from __future__ import annotations

import functools
import math
import os
import time
from dataclasses import asdict, replace
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from brainfoundry.core import files, paths
from brainfoundry.core.config import to_dict
from brainfoundry.core.errors import BrainFoundryError, ClusterError, ConfigError
from brainfoundry.core.rng import hash64_int, key_of
from brainfoundry.models.sizes import EncoderSpec
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.plan import Plan, PlanSpec
from brainfoundry.stream.ray_train_data import FetchOptions, PlanDataConfig
from brainfoundry.training.card import Card
from brainfoundry.training.checkpoint import checkpoint_uri, latest_step, read_card
from brainfoundry.training.config import PretrainConfig
from brainfoundry.training.leak_gate import gate_run
from brainfoundry.training.objectives import build_objective, options_of
from brainfoundry.training.receipt_log import write_plan
from brainfoundry.training.runs import RunPlace
from brainfoundry.training.task import PretrainTask
from brainfoundry.training.tracking.tags import ray_tags, run_tags, version_tags
from brainfoundry.training.tracking.uri import refuse_if_multinode, resolve_uri
from brainfoundry.training.watch import Watcher
from brainfoundry.training.worker import pretrain_worker


def storage_of(config: PretrainConfig) -> str:
    """Folder of all pretraining runs, absolute: Ray's workers run in folders of their own."""
    return files.absolute(config.storage or str(paths.home() / "pretrain"))


def resolve_task(config: PretrainConfig, shards: ShardSet, place: RunPlace) -> PretrainTask:
    """Everything the workers need, checked against what the shard set really holds.

    Raises:
        ConfigError: a modality the shard set does not have, a crop the network cannot take, workers that do
            not divide the groups, too few subjects.
        CheckpointError: the run's newest checkpoint was made with other options or other scans.
        DataError: the run would see subjects of a test set.
    """
    config.check()
    modalities = config.data.modalities or tuple(shards.meta.modalities)
    for name in modalities:
        if name not in shards.meta.modalities:
            raise ConfigError(
                f"modality {name!r} is not in the shard set, which has {', '.join(shards.meta.modalities)}",
                file=shards.uri,
                fix="choose --data.modalities from these, or prepare a shard set with it",
            )
    if len(set(modalities)) != len(modalities):
        raise ConfigError(f"a modality is named twice in {modalities}", fix="name each channel once")
    data = config.data
    plan = PlanSpec(
        seed=data.seed,
        crop=data.crop,
        crops_per_subject=data.crops_per_subject,
        subjects_per_group=data.subjects_per_group,
        groups_per_step=data.groups_per_step,
        frame=data.frame,
        split="train",
    )
    opened = Plan.from_index(shards.index, plan)
    opened.check_world(config.cluster.workers)
    held_out = len(set(shards.index.filter(_split_mask(shards, "val")).column("subject").to_pylist()))
    groups = min(held_out, config.keep.validate_subjects) // data.subjects_per_group
    validation = replace(
        plan, split="val", groups_per_step=1, seed=hash64_int(data.seed, key_of("validation")) >> 1
    )
    encoder = EncoderSpec(
        size=config.model.size,
        in_channels=len(modalities),
        merging=config.model.merging,
        activation_checkpointing=config.model.activation_checkpointing,
    )
    objective = build_objective(config.model.objective, config.model.objective_options)
    objective.check_crop(config.data.crop)
    if config.keep.best_by not in ("total", *objective.loss_names):
        raise ConfigError(
            f"--keep.best-by {config.keep.best_by!r} is no loss of {config.model.objective}",
            fix=f"choose one of total, {', '.join(objective.loss_names)}",
        )
    tags = run_tags()
    stage, parents = "pretrain-1", ()
    leaks, notes = gate_run(
        shards,
        modalities,
        run=place.name,
        stage=stage,
        guard=data.guard,
        parents=parents,
        allow=data.allow_leak,
        earlier=checkpoint_uri(files.join(place.folder, "checkpoints"), place.step) if place.step else None,
    )
    if notes:
        tags["leaks"] = "; ".join(n for n in notes if not n.startswith("none of"))[:4000] or "none"
    card = {
        "stage": stage,
        "size": config.model.size,
        "modalities": modalities,
        "merging": config.model.merging,
        "encoder": encoder.to_dict(),
        "objective": config.model.objective,
        "objective_config": options_of(objective),
        "intensity": data.intensity,
        "crop": data.crop,
        "patch": 2,
        "frame": data.frame,
        "spacing_mm": shards.meta.spacing_mm,
        "orientation": "RAS",
        "space": shards.meta.space,
        "skull_stripped": shards.meta.skull_stripped,
        "manifest_hash": shards.meta.manifest_hash,
        "plan_hash": opened.hash,
        "plan": asdict(plan),
        "parents": parents,
        "leaks": leaks,
        "steps": config.optim.steps,
        "run": place.name,
        "git_commit": tags.get("git_commit"),
        "versions": {k.removeprefix("version_"): v for k, v in version_tags().items()},
    }
    if place.state == "unfinished" and place.step:
        over = _continue_from(card, place, shards)
        if over:
            notes.append(over)
            tags["withdrawal"] = over
    return PretrainTask(
        config=config,
        name=place.name,
        run_dir=place.folder,
        shards=shards.uri,
        modalities=modalities,
        channels=tuple(list(shards.meta.modalities).index(m) for m in modalities),
        plan=plan,
        validation=validation if groups else None,
        validation_groups=groups,
        card=card,
        history=tuple(shards.meta.history),
        notes=tuple(notes),
        tracking_uri=resolve_uri(config.tracking.uri, str(paths.home())),
        tags={
            **tags,
            "manifest_hash": shards.meta.manifest_hash,
            "stage": stage,
            "size": config.model.size,
            "preset": config.preset,
            "modalities": ",".join(modalities),
        },
        params=_params(config),
    )


def _continue_from(card: dict[str, Any], place: RunPlace, shards: ShardSet) -> str:
    """Hold the run against its newest checkpoint before anything starts; a line if withdrawals lie between.

    Leaks that an earlier submission let pass stay on the card.
    """
    uri = checkpoint_uri(files.join(place.folder, "checkpoints"), place.step)
    found = read_card(uri)
    over = Card(**card, step=place.step).refuse_mismatch(found, uri, shards.meta.history)
    now = {(record["test"], record["selection"]) for record in card["leaks"]}
    card["leaks"] += tuple(r for r in found.leaks if (r["test"], r["selection"]) not in now)
    if over is None:
        return ""
    return (
        f"continues from step {place.step} without {over['subjects']} withdrawn subject(s), whom its weights "
        f"may have seen: manifest {over['from'][:12]} is now {over['to'][:12]}, the order is planned anew"
    )


def _split_mask(shards: ShardSet, split: str) -> Any:
    import pyarrow.compute as pc

    return pc.equal(shards.index.column("split"), split)


def _params(config: PretrainConfig) -> dict[str, Any]:
    """The few settings people compare runs by; the whole configuration goes as an artifact."""
    values = to_dict(config)
    chosen = {
        f"optim.{k}": values["optim"][k] for k in ("steps", "lr", "weight_decay", "warmup", "precision")
    }
    chosen |= {f"model.{k}": values["model"][k] for k in ("size", "merging", "objective")}
    chosen |= {
        f"data.{k}": values["data"][k] for k in ("crop", "groups_per_step", "frame", "intensity", "seed")
    }
    return {k: str(v) for k, v in chosen.items()}


def check_cluster(config: PretrainConfig) -> bool:
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


def pretrain(task: PretrainTask) -> dict[str, Any]:
    """Run it to the end on the connected cluster; returns the summary.

    Raises:
        BrainFoundryError: whatever stopped it, in one line.
    """
    config = task.config
    use_gpu = check_cluster(config)
    nodes = sum(node["Alive"] for node in ray.nodes())
    refuse_if_multinode(task.tracking_uri, nodes)
    files.check_writable(task.run_dir)
    _keep_plans(task)
    task = replace(task, tags={**task.tags, **ray_tags()})
    trainer = TorchTrainer(
        pretrain_worker,  # type: ignore[arg-type]  # its value becomes Result.return_value
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
            stop_step=config.optim.steps,
            plan_hash=str(task.card["plan_hash"]),
            start_step=functools.partial(latest_step, task.checkpoints),
            fetch=FetchOptions(cpus_per_actor=config.cluster.fetch_cpus, actors=config.cluster.fetchers),
        ),
        run_config=RunConfig(
            # Ray's own record of the attempt, under a fresh name: our checkpoints say where to go on.
            name=f"attempt-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=files.join(task.run_dir, "ray"),
            failure_config=FailureConfig(max_failures=config.cluster.max_failures),
        ),
    )
    with Watcher(task, latest_step(task.checkpoints)):
        try:
            result = trainer.fit()
        except Exception as error:
            raise _explain(error, task) from error
    return dict(result.return_value)  # type: ignore[attr-defined]


def _keep_plans(task: PretrainTask) -> None:
    """The receipt's plans, before the first step: they say later who was in which step."""
    shards = ShardSet.open(task.shards)
    about = {
        "run": task.name,
        "stage": task.card["stage"],
        "cohort": shards.meta.cohort,
        "manifest_hash": shards.meta.manifest_hash,
        "modalities": list(task.modalities),
    }
    for spec, role in ((task.plan, "train"), (task.validation, "val")):
        if spec is not None:
            write_plan(task.run_dir, shards.index, spec, {**about, "role": role})


def _explain(error: BaseException, task: PretrainTask) -> BrainFoundryError:
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
