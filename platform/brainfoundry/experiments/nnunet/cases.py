"""Whose scans nnU-Net gets, and under what names: the subjects that a run of ours has, no others."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow.compute as pc

from brainfoundry.cohorts.manifest import read_manifest
from brainfoundry.cohorts.nnunet import case_of
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.store.meta import manifest_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.folds import HELD_OUT, few_shot_subset, split_view
from brainfoundry.tasks.base import available, load_task, readers_of
from brainfoundry.training.held_out import held_out_split
from brainfoundry.training.volumes import sessions_of

Part = Literal["train", "val", "test"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?<!_seg)")
"""What nnU-Net takes as a case's name; `_seg` at its end is how it names preprocessed masks."""
_DIGITS = 10


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which subjects of a shard set are trained, validated and tested on, and in which channels."""

    shards: str = ""
    task: str = ""
    """"" = the one that understands the set's masks."""
    fold: int | None = None
    """Fold held out of training; None: the split columns as they are."""
    test: Literal["test", "fold"] = "test"
    """What is predicted: the test split, or the fold held out."""
    share: float = 100.0
    """Per cent of the training subjects."""
    draw: int = 0
    modalities: tuple[str, ...] = ()
    """Channels in order; empty: the shard set's own."""
    feed: tuple[str, ...] = ()
    """CHANNEL=MODALITY for channels that are shown another scan."""

    def __post_init__(self) -> None:
        if self.test == "fold" and self.fold is None:
            raise ConfigError(
                "the fold held out is to be tested, and none is held out", fix="name it: --fold 0"
            )


@dataclass(frozen=True, kw_only=True)
class Case:
    """A session as nnU-Net knows it."""

    name: str
    part: Part
    subject: str
    session: str
    shard: int
    row: int


def task_of(shards: ShardSet, name: str = "") -> str:
    """The task whose regions are trained, by name; "" = the only one that understands the set's masks.

    Raises:
        ConfigError: no masks, none or several such tasks, or one that does not understand them.
    """
    scheme = shards.meta.labels
    if not scheme:
        raise ConfigError(
            "the shard set has no masks", file=shards.uri, fix="prepare the cohort with its labels"
        )
    if name:
        load_task(name).check_scheme(scheme)
        return name
    fits = readers_of(scheme)
    if len(fits) != 1:
        raise ConfigError(
            f"masks of {scheme} are of {'several tasks' if fits else 'no task'}", file=shards.uri,
            fix=f"name one with --task: {', '.join(fits or available())}",
        )  # fmt: skip
    return fits[0]


def select_cases(shards: ShardSet, selection: Selection) -> tuple[Case, ...]:
    """The cases of a selection, by part and name.

    Training has every labelled session of its subjects. Validation and test have one a subject, the same that
    runs of ours are scored on; validation is where such a run chooses its checkpoint.

    Raises:
        ConfigError: no such fold or few-shot subset, or nobody to validate on.
        DataError: nobody to train or to test on.
    """
    fold = selection.fold
    subset = few_shot_subset(shards, share=selection.share, draw=selection.draw, fold=fold)
    view = split_view(shards.index, fold, subset=subset, source=shards.uri)
    rows = view.filter(pc.and_(pc.equal(view["split"], "train"), view["has_label"]))
    places: dict[Part, list[tuple[str, str, int, int]]] = {
        "train": list(
            zip(*(rows[n].to_pylist() for n in ("subject", "session", "shard", "row")), strict=True)
        ),
    }
    wanted: tuple[tuple[Part, str], ...] = (
        ("val", held_out_split(shards, fold)),
        ("test", HELD_OUT if selection.test == "fold" else "test"),
    )
    for part, split in wanted:
        found = sessions_of(shards, split=split, fold=fold) if split else ()
        places[part] = [(s.subject, s.session, s.shard, s.row) for s in found]
    _check(shards, places, selection)
    names = _names(shards)
    cases = [
        Case(name=names[subject, session], part=part, subject=subject, session=session, shard=shard, row=row)
        for part, sessions in places.items()
        for subject, session, shard, row in sessions
    ]
    order = ("train", "val", "test")
    return tuple(sorted(cases, key=lambda case: (order.index(case.part), case.name)))


def _check(
    shards: ShardSet, places: dict[Part, list[tuple[str, str, int, int]]], selection: Selection
) -> None:
    if not places["train"]:
        raise DataError(
            "nobody with a mask is in the training split", file=shards.uri, fix="split the cohort first"
        )
    if not places["val"]:
        raise ConfigError(
            "nobody is held out, and nnU-Net validates while it trains", file=shards.uri,
            fix=f"jobs/split.py --shards {shards.uri} --val 0.1, or hold a fold out with --fold",
        )  # fmt: skip
    if not places["test"]:
        what = f"fold {selection.fold}" if selection.test == "fold" else "the test split"
        raise DataError(
            f"nobody with a mask is in {what}", file=shards.uri,
            fix="jobs/split.py --test 0.2, or test on the fold held out with --test fold",
        )  # fmt: skip


def _names(shards: ShardSet) -> dict[tuple[str, str], str]:
    """(subject, session) -> case, for the whole set: which others are exported changes nobody's name."""
    return named(
        [(row.subject, row.session, case_of(row)) for row in read_manifest(manifest_uri(shards.uri)).rows()]
    )


def named(sessions: Sequence[tuple[str, str, str]]) -> dict[tuple[str, str], str]:
    """(subject, session) -> a name that nnU-Net takes and no other session has.

    Args:
        sessions: subject, session, and the name they have in nnU-Net's splits (`cohorts.nnunet.case_of`).
    """
    lower = [case.lower() for *_, case in sessions]  # some file systems do not tell a from A
    found = {}
    for subject, session, case in sessions:
        if not _NAME.fullmatch(case) or lower.count(case.lower()) > 1:
            digest = hashlib.sha256(f"{subject}\n{session}".encode()).hexdigest()
            case = f"case-{digest[:_DIGITS]}"
        found[subject, session] = case
    return found
