"""From a configuration and a shard set to a run: everything checked before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from brainfoundry.core import files, paths
from brainfoundry.core.config import to_dict
from brainfoundry.core.errors import CheckpointError, ConfigError
from brainfoundry.models.sizes import EncoderSpec
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.plan import Plan, PlanSpec
from brainfoundry.tasks.base import load_task
from brainfoundry.tasks.segmentation import SWINUNETR, NetworkSpec
from brainfoundry.training.card import Card
from brainfoundry.training.channels import channels_of
from brainfoundry.training.checkpoint import checkpoint_uri, read_card
from brainfoundry.training.config import PretrainConfig, TrainConfig
from brainfoundry.training.finetune_config import FinetuneConfig
from brainfoundry.training.held_out import held_out_split, with_crops, with_volumes
from brainfoundry.training.initialise import check_parent, ct_notes, find_checkpoint, init_record, settled
from brainfoundry.training.leak_gate import gate_run
from brainfoundry.training.objectives import network_of, objective_of, options_of
from brainfoundry.training.probe_spec import resolve_probe
from brainfoundry.training.runs import RunPlace
from brainfoundry.training.task import TrainTask
from brainfoundry.training.tracking.tags import asked_tags, run_tags, version_tags
from brainfoundry.training.tracking.uri import resolve_uri


def storage_of(config: TrainConfig) -> str:
    """Folder of all runs of this kind, absolute: Ray's workers run in folders of their own."""
    return files.absolute(config.storage or str(paths.home() / config.folder))


def plan_of(config: TrainConfig) -> PlanSpec:
    """What the configuration asks of the stream."""
    data = config.data
    return PlanSpec(
        seed=data.seed,
        crop=data.crop,
        crops_per_subject=data.crops_per_subject,
        subjects_per_group=data.subjects_per_group,
        groups_per_step=data.groups_per_step,
        frame=data.frame,
        split="train",
        fold=data.fold,
        labelled=isinstance(config, FinetuneConfig),
        foreground=getattr(data, "foreground", 0.0),
        share=data.share,
        draw=data.draw,
    )


def resolve_task(config: TrainConfig, shards: ShardSet, place: RunPlace) -> TrainTask:
    """Everything the workers need, checked against what the shard set really holds.

    Raises:
        ConfigError: a modality the shard set does not have, a crop the network cannot take, workers that do
            not divide the groups, too few subjects, masks of another scheme.
        CheckpointError: the run's newest checkpoint was made with other options or other scans; a parent of
            another size.
        DataError: the run, or an ancestor, would see subjects of a test set.
    """
    config.check()
    config = replace(config, init=settled(config.init))
    data, meta = config.data, shards.meta
    modalities, fed_by = channels_of(data.modalities, data.feed, shards)
    plan = plan_of(config)
    opened = Plan.open(shards, plan)
    opened.check_world(config.cluster.workers)
    encoder = EncoderSpec(
        size=config.model.size,
        in_channels=len(modalities),
        merging=config.model.merging,
        activation_checkpointing=config.model.activation_checkpointing,
        attention=config.model.attention,
        drop_rate=getattr(config.model, "drop_rate", 0.0),
    )
    scheme = _scheme(config, shards)
    objective = objective_of(config, scheme)
    objective.check_crop(data.crop)
    _check_best_by(config, objective.loss_names)
    probe = resolve_probe(config, fed_by, shards) if isinstance(config, PretrainConfig) else None

    before = None
    if place.step:
        before = read_card(checkpoint_uri(files.join(place.folder, "checkpoints"), place.step))
    parents = _parents(config, before, place)
    notes = ct_notes(config.init, merging=config.model.merging)
    if parents and before is None:  # a run that goes on was held against its parent when it began
        notes += check_parent(
            read_card(parents[0]), size=config.model.size, merging=config.model.merging,
            modalities=modalities, intensity=data.intensity, spacing_mm=meta.spacing_mm, space=meta.space,
            skull_stripped=meta.skull_stripped, parts=config.init.parts, mode=config.init.mode,
        )  # fmt: skip
    tags = {**asked_tags(config.tracking.parent, config.tracking.tags), **run_tags()}
    leaks, found = gate_run(
        shards,
        sorted(set(fed_by)),
        run=place.name,
        stage=config.stage,
        guard=data.guard,
        parents=parents,
        allow=data.allow_leak,
        earlier=checkpoint_uri(files.join(place.folder, "checkpoints"), place.step) if before else None,
        fold=data.fold,
        share=plan.share,
        draw=plan.draw,
    )
    if found:
        tags["leaks"] = "; ".join(n for n in found if not n.startswith("none of"))[:4000] or "none"
    notes += found
    task = load_task(config.task.name) if isinstance(config, FinetuneConfig) else None
    network = network_of(config) if isinstance(config, FinetuneConfig) else NetworkSpec()
    card: dict[str, Any] = {
        "stage": config.stage,
        "family": network.family,
        "family_options": dict(network.options),
        "size": config.model.size,
        "modalities": modalities,
        "feeds": {c: m for c, m in zip(modalities, fed_by, strict=True) if c != m},
        "merging": config.model.merging,
        "encoder": encoder.to_dict(),
        "objective": config.model.objective,
        "objective_config": options_of(objective),
        "intensity": data.intensity,
        "crop": data.crop,
        "patch": 2,
        "frame": data.frame,
        "spacing_mm": meta.spacing_mm,
        "orientation": "RAS",
        "space": meta.space,
        "skull_stripped": meta.skull_stripped,
        "manifest_hash": meta.manifest_hash,
        "plan_hash": opened.hash,
        "plan": plan.to_dict(),
        "parents": parents,
        "leaks": leaks,
        "task": {"name": task.name, "scheme": scheme, "regions": [r.name for r in task.regions]}
        if task
        else {},
        "chosen_on": held_out_split(shards, data.fold) if task else "",
        "probe": probe.record() if probe else {},
        "init": init_record(config.init, before.init if before else None),
        "steps": config.optim.steps,
        "run": place.name,
        "git_commit": tags.get("git_commit"),
        "versions": {k.removeprefix("version_"): v for k, v in version_tags().items()},
    }
    if before is not None and place.state == "unfinished":
        over = _continue_from(card, before, place, shards)
        if over:
            notes.append(over)
            tags["withdrawal"] = over
    resolved = TrainTask(
        config=config,
        name=place.name,
        run_dir=place.folder,
        shards=shards.uri,
        modalities=modalities,
        fed_by=fed_by,
        channels=tuple(list(meta.modalities).index(m) for m in fed_by),
        plan=plan,
        label=shards.label_channel if task else None,
        scheme=scheme,
        parent=parents[0] if parents else None,
        probe=probe,
        card=card,
        history=tuple(meta.history),
        notes=tuple(notes),
        tracking_uri=resolve_uri(config.tracking.uri, str(paths.home())),
        tags={
            **tags,
            "manifest_hash": meta.manifest_hash,
            "cohort": meta.cohort,
            "stage": config.stage,
            "family": network.family,
            **({"size": config.model.size} if network.family == SWINUNETR else {}),
            "preset": config.preset,
            "modalities": ",".join(modalities),
            **({"fold": str(data.fold)} if data.fold is not None else {}),
            **({"share": f"{plan.share:g}", "draw": str(plan.draw)} if plan.share != 100 else {}),
            **({"parent": parents[0]} if parents else {}),
        },
        params=_params(config, modalities),
    )
    return with_volumes(resolved, shards) if task else with_crops(resolved, shards)


def _scheme(config: TrainConfig, shards: ShardSet) -> str:
    """Label scheme of the masks that the run learns from."""
    if not isinstance(config, FinetuneConfig):
        return ""
    if not shards.meta.labels:
        raise ConfigError(
            "the shard set has no masks to learn from", file=shards.uri,
            fix="prepare the cohort with its masks (prepare_brats.py, prepare_atlas.py, prepare_bids.py)",
        )  # fmt: skip
    try:
        load_task(config.task.name).check_scheme(shards.meta.labels)
    except ConfigError as error:
        raise ConfigError(error.problem, file=shards.uri, fix=error.fix) from error
    return shards.meta.labels


def _check_best_by(config: TrainConfig, losses: Sequence[str]) -> None:
    wanted = config.keep.best_by
    names, what = ("total", *losses), f"loss of {config.model.objective}"
    if isinstance(config, FinetuneConfig):
        names, what = load_task(config.task.name).score_names, f"score of {config.task.name}"
    if wanted not in names:
        raise ConfigError(
            f"--keep.best-by {wanted!r} is no {what}",
            fix=f"choose one of {', '.join(names)}",
        )


def _parents(config: TrainConfig, before: Card | None, place: RunPlace) -> tuple[str, ...]:
    """The checkpoint a run starts from; one that goes on keeps the one it began with, whatever became of it.

    Raises:
        CheckpointError: nothing to start from, or the run began from another one.
    """
    asked = config.init.checkpoint
    if before is None:
        return () if asked is None else (find_checkpoint(asked),)
    began = before.parents[0] if before.parents else None
    wanted = None if asked is None else files.absolute(asked)
    same = began is None if wanted is None else began is not None and f"{began}/".startswith(f"{wanted}/")
    if not same:
        raise CheckpointError(
            f"the run began from {began or 'random weights'}, this job asks for {wanted or 'random weights'}",
            file=place.folder,
            fix="give this run another --name, or the --init.checkpoint it began with",
        )
    return before.parents


def _continue_from(card: dict[str, Any], found: Card, place: RunPlace, shards: ShardSet) -> str:
    """Hold the run against its newest checkpoint before anything starts; a line if withdrawals lie between.

    Leaks that an earlier submission let pass stay on the card.
    """
    uri = checkpoint_uri(files.join(place.folder, "checkpoints"), place.step)
    over = Card(**card, step=place.step).refuse_mismatch(found, uri, shards.meta.history)
    now = {(record["test"], record["selection"]) for record in card["leaks"]}
    card["leaks"] += tuple(r for r in found.leaks if (r["test"], r["selection"]) not in now)
    if over is None:
        return ""
    return (
        f"continues from step {place.step} without {over['subjects']} withdrawn subject(s), whom its weights "
        f"may have seen: manifest {over['from'][:12]} is now {over['to'][:12]}, the order is planned anew"
    )


def _params(config: TrainConfig, modalities: Sequence[str]) -> dict[str, Any]:
    """The few settings people compare runs by; the whole configuration goes as an artifact."""
    values = to_dict(config)
    chosen = {
        f"optim.{k}": values["optim"][k] for k in ("steps", "lr", "weight_decay", "warmup", "precision")
    }
    chosen |= {f"model.{k}": values["model"][k] for k in ("size", "merging", "objective")}
    chosen |= {
        f"data.{k}": values["data"][k]
        for k in ("crop", "groups_per_step", "frame", "intensity", "seed", "fold", "share", "draw")
    }
    chosen["data.modalities"] = ",".join(modalities)
    chosen["model.family"] = values["model"].get("family", SWINUNETR)
    chosen |= {f"init.{k}": values["init"][k] for k in ("mode", "freeze", "layer_decay")}
    return {k: str(v) for k, v in chosen.items()}
