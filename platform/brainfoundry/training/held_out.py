"""What a run is validated on: crops of the val split, or whole volumes of whoever is held out."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from brainfoundry.core.errors import ConfigError
from brainfoundry.core.rng import hash64_int, key_of
from brainfoundry.inference.windows import WindowSpec
from brainfoundry.models.families import load_family
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.folds import HELD_OUT, split_view
from brainfoundry.stream.plan import Plan
from brainfoundry.stream.sessions import subset_of
from brainfoundry.training.finetune_config import FinetuneConfig
from brainfoundry.training.task import TrainTask
from brainfoundry.training.volumes import VolumeSpec, sessions_of


def with_crops(task: TrainTask, shards: ShardSet) -> TrainTask:
    """Validation of a pretraining run: fixed crops of the val split."""
    config = task.config
    view = split_view(shards.index, config.data.fold, subset=subset_of(shards, task.plan), source=shards.uri)
    held_out = len(set(view.filter(pc.equal(view["split"], "val"))["subject"].to_pylist()))
    groups = min(held_out, config.keep.validate_subjects) // config.data.subjects_per_group
    seed = hash64_int(config.data.seed, key_of("validation")) >> 1
    spec = replace(task.plan, split="val", groups_per_step=1, seed=seed, share=100.0)
    notes = (*task.notes, *_folds_seen(view, config.data.fold))
    return replace(task, validation=spec if groups else None, validation_groups=groups, notes=notes)


def _folds_seen(view: pa.Table, fold: int | None) -> list[str]:
    """A line where a pretraining run learns from the folds that a run starting from it may be tested on."""
    seen = pc.is_in(view["split"], pa.array(["train", "val"]))
    dealt = view.filter(pc.and_(pc.is_valid(view["fold"]), seen))
    if fold is not None or not dealt.num_rows:
        return []
    folds = ", ".join(str(f) for f in sorted(set(dealt["fold"].to_pylist())))
    subjects = len(set(dealt["subject"].to_pylist()))
    return [
        f"no --fold: the weights will have seen {subjects} subjects of folds {folds}; to test on one of "
        "these folds, pretrain with --fold and its number"
    ]


def held_out_split(shards: ShardSet, fold: int | None) -> str:
    """Where a fine-tuning run chooses its best checkpoint: the val split, else the fold it holds out, else
    nowhere ("")."""
    if sessions_of(shards, split="val", fold=fold):
        return "val"
    return HELD_OUT if fold is not None else ""


def with_volumes(task: TrainTask, shards: ShardSet) -> TrainTask:
    """Validation of a fine-tuning run: whole volumes of held-out subjects, in the order of a plan of them."""
    config = task.config
    assert isinstance(config, FinetuneConfig) and task.label is not None
    fold, keep = config.data.fold, config.keep
    split = str(task.card["chosen_on"])
    if not split:
        return task
    notes = list(task.notes)
    if split == HELD_OUT:
        notes.append(
            f"the best checkpoint is chosen on fold {fold} itself, as in the paper: scores on it are "
            "optimistic; with a val split (jobs/split.py --val) it is chosen there"
        )
    held_out = replace(
        task.plan, split=split, groups_per_step=1, foreground=0.0, share=100.0,
        seed=hash64_int(config.data.seed, key_of("validation")) >> 1,
    )  # fmt: skip
    plan = Plan.open(shards, held_out)
    subjects = min(plan.n_subjects, keep.validate_subjects)
    places = set(zip(*(plan.rows(0, subjects)[n].to_pylist() for n in ("shard", "row")), strict=True))
    sessions = sessions_of(shards, split=split, fold=fold, places=places)
    window = WindowSpec(window=_window(config), overlap=keep.overlap, weights=keep.weights, mode=keep.windows)
    volumes = VolumeSpec(
        shards=task.shards, sessions=sessions, channels=task.channels, label=task.label,
        task=config.task.name, scheme=task.scheme, intensity=config.data.intensity, window=window,
        precision=config.optim.precision,
    )  # fmt: skip
    return replace(task, volumes=volumes, validation=held_out, validation_groups=subjects, notes=tuple(notes))


def _window(config: FinetuneConfig) -> tuple[int, int, int]:
    window = config.keep.window or config.data.crop
    if window != config.data.crop and load_family(config.model.family).fixed_crop:
        raise ConfigError(
            f"{config.model.family} takes no other window than its crop", fix="leave --keep.window out"
        )
    return window
