"""Which volumes a checkpoint is judged on: a shard set's, held against the checkpoint's card."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from brainfoundry.core import files, paths
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.inference.windows import WindowSpec
from brainfoundry.store.meta import ShardSetMeta
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.folds import HELD_OUT
from brainfoundry.training.card import Card
from brainfoundry.training.channels import channels_of
from brainfoundry.training.config import TrackingOptions
from brainfoundry.training.ensemble import Model
from brainfoundry.training.leak_gate import gate, leak_note, open_test_set
from brainfoundry.training.tracking.tags import asked_tags, run_tags
from brainfoundry.training.tracking.tracker import Tracker
from brainfoundry.training.tracking.uri import resolve_uri
from brainfoundry.training.volumes import VolumeSpec, sessions_of


class Volumes(NamedTuple):
    """What checkpoints are to be judged on."""

    spec: VolumeSpec
    notes: list[str]
    """Lines about it for the report."""
    leaks: tuple[dict[str, Any], ...]
    """Records of the leak gate that `allow_leak` let pass."""


def volumes_of(
    models: Sequence[Model],
    shards_uri: str,
    *,
    split: str,
    fold: int | None,
    limit: int | None,
    allow_leak: bool,
    window: WindowSpec,
    precision: str = "fp32",
    flips: bool = False,
    lesionwise: bool = False,
) -> Volumes:
    """What is to be scored of a shard set, checked against the checkpoints' cards.

    Args:
        models: as `ensemble.find_models` finds them.
        fold: its sessions outside the test split are scored; None: the sessions of `split`.

    Raises:
        ConfigError: modalities or masks that the shard set does not have, another voxel size.
        DataError: nobody to score, or somebody whom a checkpoint has seen.
        CheckpointError: a checkpoint that cannot prove whom it has seen.
    """
    card = models[0].card
    shards = ShardSet.open(shards_uri)
    try:
        _, fed_by = channels_of(card.modalities, [f"{c}={m}" for c, m in card.feeds.items()], shards)
    except ConfigError as error:  # its fix names options of a training
        raise ConfigError(
            error.problem, file=shards.uri,
            fix=f"score it on a cohort prepared with the network's channels: {', '.join(card.modalities)}",
        ) from None  # fmt: skip
    if shards.meta.labels != card.task["scheme"]:
        raise ConfigError(
            f"the network marks labels of {card.task['scheme']}, the masks are of "
            f"{shards.meta.labels or 'no scheme'}",
            file=shards.uri, fix="score it on a cohort prepared with that --scheme",
        )  # fmt: skip
    if shards.meta.spacing_mm != card.spacing_mm:
        raise ConfigError(
            f"the network was trained at voxels of {_mm(card.spacing_mm)}, the shard set has "
            f"{_mm(shards.meta.spacing_mm)}",
            file=shards.uri, fix="prepare the cohort with the same --spacing-mm",
        )  # fmt: skip
    tested = open_test_set(shards, split=split, fold=fold)
    leaks = gate([tested], [model.uri for model in models], allow=allow_leak)
    notes = _differences(card, shards.meta)
    notes += map(leak_note, leaks)
    chosen = HELD_OUT if fold is not None else split
    cards = [model.card for model in models]
    if any(c.chosen_on == chosen and (fold is None or c.plan.get("fold") == fold) for c in cards):
        notes.append(f"the best checkpoint was chosen on {chosen} itself: scores on it are optimistic")
    sessions = sessions_of(shards, split=chosen, fold=fold, limit=limit)
    if not sessions:
        raise DataError(f"nobody with a mask is in {chosen}", file=shards.uri, fix="choose another split")
    assert shards.label_channel is not None
    names = list(shards.meta.modalities)
    spec = VolumeSpec(
        shards=shards.uri, sessions=sessions, channels=tuple(names.index(m) for m in fed_by),
        label=shards.label_channel, task=card.task["name"], scheme=card.task["scheme"],
        intensity=card.intensity, window=window, precision=precision, flips=flips,
        lesionwise=lesionwise,
    )  # fmt: skip
    return Volumes(spec, notes, leaks)


def _differences(card: Card, meta: ShardSetMeta) -> list[str]:
    """Notes on what the networks have not seen in training, but may be scored on."""
    notes = []
    if meta.space != card.space:
        mine, other = card.space or "scanner", meta.space or "scanner"
        notes.append(f"the network was trained in {mine} space, the shard set is in {other} space")
    if meta.skull_stripped != card.skull_stripped:
        mine, other = (
            "skull-stripped brains" if stripped else "whole heads"
            for stripped in (card.skull_stripped, meta.skull_stripped)
        )  # fmt: skip
        notes.append(f"the network was trained on {mine}, the shard set holds {other}")
    return notes


def _mm(spacing_mm: float | None) -> str:
    return "the scans' own size" if spacing_mm is None else f"{spacing_mm:g} mm"


def tracker_for(
    folder: str, options: TrackingOptions, checkpoints: Sequence[str], spec: VolumeSpec
) -> Tracker:
    """The tracker of an evaluation that is no part of a training run; each is a run of its own."""
    stamp = f"evaluate-{time.time_ns()}"
    return Tracker(
        run_dir=files.join(str(paths.home()), "tracking", stamp),
        uri=resolve_uri(options.uri, str(paths.home())),
        experiment=options.experiment,
        run_name=folder.rstrip("/").rpartition("/")[2],
        run_key=stamp,
        tags={
            **asked_tags(options.parent, options.tags),
            **run_tags(),
            "checkpoints": ", ".join(checkpoints),
            "shards": spec.shards,
            "stage": "evaluate",
        },
        params={
            "task": spec.task,
            "overlap": spec.window.overlap,
            "mode": spec.window.mode,
            "flips": spec.flips,
        },
    )
