"""What a pretraining job prints: before it starts and after it ends."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from brainfoundry.core import files
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.folds import HELD_OUT, split_view
from brainfoundry.stream.plan import Plan
from brainfoundry.stream.sessions import subset_of
from brainfoundry.tasks.segmentation import SWINUNETR
from brainfoundry.training.estimate import estimate
from brainfoundry.training.runs import RunPlace
from brainfoundry.training.task import TrainTask
from brainfoundry.training.worker import build_network

PAPER_TIMES = {
    "pretrain-ukb": "3 to 6 days on 8 to 64 A100s",
    "pretrain-brats": "48 to 72 hours on 2 GPUs",
    "pretrain-atlas": "35 hours on 4 GPUs",
}
"""What the paper says of its own runs (sections 1.2 and 2.1); of fine-tuning it says nothing."""


def announce(task: TrainTask, shards: ShardSet, place: RunPlace) -> None:
    """Data found, weights taken over, sizes, order, memory, steps and cost, in plain lines."""
    config, meta = task.config, shards.meta
    view = split_view(shards.index, config.data.fold, subset=subset_of(shards, task.plan))
    splits = view.group_by("split").aggregate([("subject", "count_distinct")]).to_pylist()
    subjects = {row["split"]: row["subject_count_distinct"] for row in splits}
    train = max(Plan.open(shards, task.plan).n_subjects, 1)
    cost = estimate(config, train)
    spacing = "as scanned" if meta.spacing_mm is None else f"{meta.spacing_mm} mm"
    groups_per_worker = config.data.groups_per_step // config.cluster.workers
    source = task.parent or config.init.ct_weights
    where = {"new": "new", "unfinished": f"continues after step {place.step}", "finished": "finished before"}
    channels = ", ".join(
        c if c == m else f"{c} (fed by {m})" for c, m in zip(task.modalities, task.fed_by, strict=True)
    )
    told = {"val": "held out", HELD_OUT: f"of fold {config.data.fold} held out", "test": "to test on"}
    others = "".join(f", {subjects[split]} {what}" for split, what in told.items() if split in subjects)
    rows = {
        "run": f"{task.name} ({where[place.state]}) in {task.run_dir}",
        "data": f"{shards.uri}: {train} subjects to train on{_share(task)}{others}, "
        f"{shards.index.num_rows} sessions, "
        f"voxels {spacing}, {channels}",
        "manifest": meta.manifest_hash,
        "network": _network_line(task),
        "start": f"{source}, mode {config.init.mode}, frozen: {config.init.freeze}"
        if source
        else "random weights",
        "step": _step_line(task, cost, groups_per_worker),
        "order": f"seed {config.data.seed}, each subject once an epoch, "
        f"{config.data.crops_per_subject} crop(s) a visit; plan {task.card['plan_hash'][:12]}",
        "steps": f"{config.optim.steps} ({cost['epochs']:.1f} epochs), warm-up {config.optim.warmup}, "
        f"peak lr {config.optim.lr:g}, {config.optim.schedule}"
        + (f", weights averaged with decay {config.optim.ema}" if config.optim.ema else ""),
        **_cost_lines(task, cost),
        "tracking": task.tracking_uri,
        "validation": _validation_line(task),
        **({"probe": task.probe.line()} if task.probe else {}),
    }
    for label, text in rows.items():
        print(f"{label + ':':<12} {text}")
    for note in task.notes:
        print(f"{'note:':<12} {note}")
    if source and not place.step:
        _, table = build_network(task)
        if table is not None:
            print(table.text())
    sys.stdout.flush()


def _share(task: TrainTask) -> str:
    plan = task.plan
    return (
        f" ({plan.share:g} % of them, draw {plan.draw}; the others are not seen)" if plan.share != 100 else ""
    )


def _network_line(task: TrainTask) -> str:
    config, card = task.config, task.card
    network = f"{config.model.size} ({config.model.merging} merging)"
    if card["family"] != SWINUNETR:
        options = ", ".join(f"{name} {value}" for name, value in card["family_options"].items())
        network = f"family {card['family']}" + (f" ({options})" if options else "")
        millions = sum(p.numel() for p in build_network(task, fresh=False)[0].parameters()) / 1e6
        network += f", {millions:.1f} M parameters"
    crop = "x".join(map(str, config.data.crop))
    return (
        f"{network}, {config.model.objective}, crop {crop}, intensity {config.data.intensity}, "
        f"frame {config.data.frame}"
    )


def _cost_lines(task: TrainTask, cost: Mapping[str, float]) -> dict[str, str]:
    config = task.config
    if "memory_gb_per_worker" not in cost:
        return dict.fromkeys(("memory", "cost"), f"not estimated for family {task.card['family']}")
    return {
        "memory": f"about {cost['memory_gb_per_worker']:.1f} GB a worker (estimate)",
        "cost": f"about {cost['gpu_hours_low']:,.0f} to {cost['gpu_hours_high']:,.0f} A100 GPU-hours, "
        f"{cost['days_low']:.1f} to {cost['days_high']:.1f} days on {config.cluster.workers} of them "
        f"(arithmetic, not measured; the paper: {PAPER_TIMES.get(config.job, 'no time given')})",
    }


def _step_line(task: TrainTask, cost: Mapping[str, float], groups_per_worker: int) -> str:
    config = task.config
    views = (
        f" = {cost['views_per_step']:.0f} views" if cost["views_per_step"] != cost["crops_per_step"] else ""
    )
    return (
        f"{config.data.groups_per_step} groups = {cost['crops_per_step']:.0f} crops{views} of "
        f"{cost['subjects_per_step']:.0f} subjects; {config.cluster.workers} worker(s), "
        f"{groups_per_worker} group(s) each, {config.optim.precision}"
    )


def _validation_line(task: TrainTask) -> str:
    config = task.config
    every = f"every {config.keep.validate_every} steps" if config.keep.validate_every else "at the end"
    if task.volumes is not None:
        return (
            f"{len(task.volumes.sessions)} whole held-out volumes {every}, the best by {config.keep.best_by}"
        )
    if task.validation is not None:
        held_out = task.validation_groups * config.data.subjects_per_group
        return f"{held_out} held-out subjects {every}, fixed crops"
    return "none: nobody is held out to validate on (jobs/split.py --val, or --fold)"


def finished_before(task: TrainTask) -> dict[str, Any]:
    """Say that there is nothing to do, and where the results are; returns the run's summary."""
    print(f"run {task.name} was finished before; --resume never starts another beside it")
    summary: dict[str, Any] = files.read_json(files.join(task.run_dir, "summary.json"))
    summarise(task, summary)
    return summary


def summarise(task: TrainTask, summary: dict[str, Any]) -> None:
    """Losses before and after, and where to look."""
    last, first = summary["last"], summary["first_losses"]
    print(f"\ndone: {summary['steps']} steps ({summary['steps'] - summary['first_step']} in this attempt)")
    for key, value in first.items():
        if key in ("train/lr", "train/saturated", "train/grad_norm"):
            continue
        held_out = last.get(key.replace("train/", "val/")) if task.volumes is None else None
        print(
            f"  {key.removeprefix('train/'):<16} {value:8.4f} -> {last[key]:8.4f}"
            + (f"   held out {held_out:8.4f}" if held_out is not None else "")
        )
    speed = {k.removeprefix("speed/"): v for k, v in last.items() if k.startswith("speed/")}
    print("  " + ", ".join(f"{k} {v:.3g}" for k, v in speed.items()))
    if not summary["tracking_delivered"]:
        print(f"  metrics wait in {task.run_dir}/spool: jobs/sync_tracking.py {task.run_dir} delivers them")
    for record in task.card.get("leaks", ()):
        print(
            f"  LEAK: {record['leaked']} of {record['tested']} test subjects ({record['selection']} of "
            f"{record['test']}) were seen in training, as --data.allow-leak let pass; it is on the card"
        )
    for label, text in (
        ("checkpoint", summary["checkpoint"]),
        ("best", summary["best_checkpoint"]),
        ("loss figure", summary["figure"]),
        ("pictures", files.join(task.run_dir, "figures")),
        ("tracking", summary["tracking"]),
    ):
        if text:
            print(f"  {label + ':':<12} {text}")
    sys.stdout.flush()
