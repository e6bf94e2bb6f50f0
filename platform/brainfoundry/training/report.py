"""What a pretraining job prints: before it starts and after it ends."""

from __future__ import annotations

import sys
from typing import Any

from brainfoundry.core import files
from brainfoundry.store.reader import ShardSet
from brainfoundry.training.estimate import estimate
from brainfoundry.training.runs import RunPlace
from brainfoundry.training.task import PretrainTask


def announce(task: PretrainTask, shards: ShardSet, place: RunPlace) -> None:
    """Data found, sizes, order, memory, steps and cost, in plain lines."""
    config = task.config
    splits = shards.index.group_by("split").aggregate([("subject", "count_distinct")]).to_pylist()
    subjects = {row["split"]: row["subject_count_distinct"] for row in splits}
    train = max(subjects.get("train", 0), 1)
    cost = estimate(config, train)
    spacing = "as scanned" if shards.meta.spacing_mm is None else f"{shards.meta.spacing_mm} mm"
    groups_per_worker = config.data.groups_per_step // config.cluster.workers
    crop = "x".join(map(str, config.data.crop))
    where = {"new": "new", "unfinished": f"continues after step {place.step}", "finished": "finished before"}
    rows = {
        "run": f"{task.name} ({where[place.state]}) in {task.run_dir}",
        "data": f"{shards.uri}: {subjects.get('train', 0)} subjects to train on, "
        f"{subjects.get('val', 0)} held out, {shards.index.num_rows} sessions, "
        f"voxels {spacing}, {', '.join(task.modalities)}",
        "manifest": shards.meta.manifest_hash,
        "network": f"{config.model.size} ({config.model.merging} merging), {config.model.objective}, "
        f"crop {crop}, intensity {config.data.intensity}, frame {config.data.frame}",
        "step": f"{config.data.groups_per_step} groups = {cost['crops_per_step']:.0f} crops = "
        f"{cost['views_per_step']:.0f} views of {cost['subjects_per_step']:.0f} subjects; "
        f"{config.cluster.workers} worker(s), {groups_per_worker} group(s) each, {config.optim.precision}",
        "order": f"seed {config.data.seed}, each subject once an epoch, "
        f"{config.data.crops_per_subject} crops a visit; plan {task.card['plan_hash'][:12]}",
        "steps": f"{config.optim.steps} ({cost['epochs']:.1f} epochs), warm-up {config.optim.warmup}, "
        f"peak lr {config.optim.lr:g}, {config.optim.schedule}",
        "memory": f"about {cost['memory_gb_per_worker']:.1f} GB a worker (estimate)",
        "cost": f"about {cost['gpu_hours_low']:,.0f} to {cost['gpu_hours_high']:,.0f} A100 GPU-hours, "
        f"{cost['days_low']:.1f} to {cost['days_high']:.1f} days on {config.cluster.workers} of them "
        "(arithmetic, not measured; the paper: 3 to 6 days on 8 to 64 A100s)",
        "tracking": task.tracking_uri,
    }
    if task.validation is None:
        rows["validation"] = "none: too few held-out subjects for a group"
    else:
        held_out = task.validation_groups * config.data.subjects_per_group
        rows["validation"] = (
            f"{held_out} held-out subjects every {config.keep.validate_every} steps, fixed crops"
        )
    for label, text in rows.items():
        print(f"{label + ':':<12} {text}")
    for note in task.notes:
        print(f"{'note:':<12} {note}")
    sys.stdout.flush()


def finished_before(task: PretrainTask) -> None:
    """Say that there is nothing to do, and where the results are."""
    print(f"run {task.name} was finished before; --resume never starts another beside it")
    summarise(task, files.read_json(files.join(task.run_dir, "summary.json")))


def summarise(task: PretrainTask, summary: dict[str, Any]) -> None:
    """Losses before and after, and where to look."""
    last, first = summary["last"], summary["first_losses"]
    print(f"\ndone: {summary['steps']} steps ({summary['steps'] - summary['first_step']} in this attempt)")
    for key, value in first.items():
        if key in ("train/lr", "train/saturated", "train/grad_norm"):
            continue
        held_out = last.get(key.replace("train/", "val/"))
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
