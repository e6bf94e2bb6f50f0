"""Who the probe looks at: a few labelled subjects, of nobody's test set, in the run's channels.

Whoever chooses a checkpoint or stops a run by the probe's figures has chosen on these subjects. Therefore
none of them is of a test split, of `--data.guard`, or of the fold that the run holds out, and the card says
who they are: how many, of which manifest and split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from brainfoundry.core.errors import ConfigError
from brainfoundry.core.rng import hash64_int, key_of
from brainfoundry.store.reader import ShardSet
from brainfoundry.tasks.base import load_task, readers_of
from brainfoundry.training.config import PretrainConfig
from brainfoundry.training.leak_gate import parse_test_set
from brainfoundry.training.volumes import Session, sessions_of


@dataclass(frozen=True, kw_only=True)
class ProbeSpec:
    """Who is looked at, and how."""

    shards: str
    cohort: str
    manifest_hash: str
    task: str
    scheme: str
    channels: tuple[int | None, ...]
    """Place in the probe's shard set of what each channel of the run shows; None: it has no such scan, and
    the channel is 0."""
    label: int
    """The masks' channel."""
    intensity: str
    window: tuple[int, int, int]
    every: int
    fitted: tuple[Session, ...]
    """Subjects whom the head is fitted on."""
    scored: tuple[Session, ...]
    """Subjects whom it is scored on."""
    scored_split: str
    remarks: tuple[str, ...] = ()
    """How its scans differ from the run's."""

    def record(self) -> dict[str, Any]:
        """For the card: whom a choice by the probe is a choice on. No ids."""
        return {
            "cohort": self.cohort, "manifest_hash": self.manifest_hash, "task": self.task,
            "fitted": len(self.fitted), "scored": len(self.scored), "scored_split": self.scored_split,
            "note": "a checkpoint chosen, or a run stopped, by probe/* was chosen on these subjects",
        }  # fmt: skip

    def line(self) -> str:
        """For the announcement."""
        every = f"at the start, every {self.every} steps" if self.every else "at the start"
        what = (
            f"{every} and at the end: linear head on {len(self.fitted)} labelled subjects of {self.shards} "
            f"({self.task}), Dice of {len(self.scored)} others ({self.scored_split})"
        )
        return "; ".join([what, *self.remarks, "to choose by it is to choose on them"])


def resolve_probe(config: PretrainConfig, shown: Sequence[str], shards: ShardSet) -> ProbeSpec | None:
    """What `--probe` asks for, checked against its shard set; None where there is no probe.

    Args:
        shown: the modality that each channel of the run shows.
        shards: the run's own shard set.

    Raises:
        ConfigError: a set without masks, with masks that no task reads, with none of the run's modalities, or
            with too few subjects.
        DataError: there is no shard set, or none of `--data.guard`.
    """
    asked = config.probe
    if asked.shards is None:
        return None
    labelled = ShardSet.open(asked.shards)
    meta = labelled.meta
    if labelled.label_channel is None:
        raise ConfigError(
            "the probe's shard set has no masks",
            file=labelled.uri,
            fix="name a labelled one with --probe.shards",
        )
    there = list(meta.modalities)
    channels = tuple(there.index(name) if name in there else None for name in shown)
    if all(channel is None for channel in channels):
        raise ConfigError(
            f"the probe's shard set has {', '.join(there)}, the run shows its network {', '.join(shown)}",
            file=labelled.uri,
            fix="name a labelled shard set that shares a modality with the run",
        )
    absent = [name for name, channel in zip(shown, channels, strict=True) if channel is None]
    remarks = [f"it has no {', '.join(absent)}: 0 throughout"] if absent else []
    if meta.spacing_mm != shards.meta.spacing_mm:
        sizes = [
            "as scanned" if s is None else f"{s:g} mm" for s in (meta.spacing_mm, shards.meta.spacing_mm)
        ]
        remarks.append(f"its voxels are {sizes[0]}, the run's {sizes[1]}")
    fitted, scored, split = _subjects(config, labelled, _barred(config, labelled, shards))
    return ProbeSpec(
        shards=labelled.uri,
        cohort=meta.cohort,
        manifest_hash=meta.manifest_hash,
        task=_task_name(asked.task, labelled),
        scheme=meta.labels,
        channels=channels,
        label=labelled.label_channel,
        intensity=config.data.intensity,
        window=config.data.crop,
        every=asked.every,
        fitted=fitted,
        scored=scored,
        scored_split=split,
        remarks=tuple(remarks),
    )


def _task_name(asked: str | None, labelled: ShardSet) -> str:
    """The task that reads the masks."""
    scheme = labelled.meta.labels
    if asked is not None:
        try:
            load_task(asked).check_scheme(scheme)
        except ConfigError as error:
            raise ConfigError(f"--probe.task: {error.problem}", file=labelled.uri, fix=error.fix) from error
        return asked
    able = readers_of(scheme)
    if not able:
        raise ConfigError(
            f"no task reads the probe's masks, of label scheme {scheme!r}",
            file=labelled.uri,
            fix="name another shard set with --probe.shards",
        )
    return able[0]


def _barred(config: PretrainConfig, labelled: ShardSet, shards: ShardSet) -> set[str]:
    """Subjects of the probe's set who are for testing: those of a guarded set, or of the held-out fold."""
    cohort = labelled.meta.cohort
    barred: set[str] = set()
    for text in config.data.guard:
        test = parse_test_set(text)
        if test.cohort == cohort:
            barred |= set(test.table["subject"].to_pylist())
    fold = config.data.fold
    if fold is not None and cohort == shards.meta.cohort:
        rows = zip(*(labelled.index[name].to_pylist() for name in ("subject", "fold")), strict=True)
        barred |= {subject for subject, of in rows if of == fold}
    return barred


def _subjects(
    config: PretrainConfig, labelled: ShardSet, barred: set[str]
) -> tuple[tuple[Session, ...], tuple[Session, ...], str]:
    """Whom the head is fitted and scored on, and of which split the latter are: val, else further ones of
    train. Those of lowest hash, so that a larger number only adds."""

    def able(split: str) -> list[Session]:
        found = [s for s in sessions_of(labelled, split=split) if s.subject not in barred]
        return sorted(found, key=lambda s: (hash64_int(0, key_of(s.subject)), s.subject))

    train, val = able("train"), able("val")
    fitted = train[: config.probe.subjects]
    held_out, split = (val, "val") if val else (train[config.probe.subjects :], "train")
    scored = held_out[: config.probe.test_subjects]
    if not fitted or not scored:
        raise ConfigError(
            f"the probe has {len(fitted)} labelled subjects to fit on and {len(scored)} to score: train "
            f"{len(train)}, val {len(val)}" + (f", {len(barred)} barred as test subjects" if barred else ""),
            file=labelled.uri,
            fix="lower --probe.subjects, or name a labelled shard set with subjects in train and val",
        )
    return tuple(fitted), tuple(scored), split
