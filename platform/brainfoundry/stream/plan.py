"""What is read and when: an endless table of crops, generated on demand.

A plan's rows are a function of the spec and of the sessions in the shard set's index, so any step of
any worker can be produced at once, in memory that does not grow with the run. Terms: a **group** is
the crops that share one contrast matrix and lend voxels to each other (the reference: 2 subjects x 2
crops); a step is `groups_per_step` groups; worker r of w holds groups [r*G/w, (r+1)*G/w) of a step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from brainfoundry.core.errors import ConfigError
from brainfoundry.core.rng import hash64, key_of
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.frames import FRAMES, Frame, draw_corners, frame_bounds
from brainfoundry.stream.order import Visits
from brainfoundry.stream.sessions import eligible, in_order, subset_of, triples

# Part of `Plan.hash`: to be raised when the same spec and index would give other rows.
PLAN_VERSION = 1

PLAN_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("group", pa.int64()),
        ("slot", pa.int32()),
        ("subject", pa.string()),
        ("session", pa.string()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("crop_seed", pa.uint64()),
        ("corner", pa.list_(pa.int32(), 3)),
    ]
)

# Key of the crop size (JSON) in the metadata of a plan table's schema.
CROP_METADATA = b"brainfoundry.crop"
# Likewise, where there are foreground crops: their share, and the frame in which they are placed.
FOREGROUND_METADATA = b"brainfoundry.foreground"

_CROP = key_of("stream.crop")
# Fields of `PlanSpec` that came after the first plans were hashed.
_LATER = ("fold", "labelled", "foreground", "share", "draw")


@dataclass(frozen=True, kw_only=True)
class PlanSpec:
    """What makes a plan, besides the shard set."""

    seed: int
    """Seed of order, sessions and crops."""
    crop: tuple[int, int, int]
    """Crop size in voxels of the RAS grid (paper: 96, 96, 96)."""
    crops_per_subject: int = 2
    """Crops of a subject each time it is visited (released code: sw_batch_size 2)."""
    subjects_per_group: int = 2
    """Subjects whose crops share one contrast matrix (released code: batch_size 2)."""
    groups_per_step: int
    """Groups of one step over all workers (paper: 64 workers, one group each: 256 crops)."""
    frame: Frame
    """Where crops may lie: `box` (foreground box) or `reference` (what the released transforms make)."""
    split: str = "train"
    """Split of the cohort to visit."""
    fold: int | None = None
    """Fold to hold out: its sessions are split `held_out`, all other folds' `train` (`folds.split_view`)."""
    labelled: bool = False
    """Visit only sessions that have a mask."""
    foreground: float = 0.0
    """Share of crops centred on a lesion's voxel (nnU-Net: 0.33). The others are uniform in the frame, as are
    all crops of a session whose mask is empty."""
    share: float = 100.0
    """Per cent of the training subjects to visit: a few-shot subset by the shard set's recipe; 100: all."""
    draw: int = 0
    """Which of the recipe's draws; always 0 where all are visited."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "crop", tuple(int(c) for c in self.crop))
        object.__setattr__(self, "foreground", float(self.foreground))
        object.__setattr__(self, "share", float(self.share))
        if self.share == 100:
            object.__setattr__(self, "draw", 0)
        if len(self.crop) != 3 or min(self.crop) < 1:
            raise ConfigError(
                f"crop {self.crop} is not three positive sizes", fix="give e.g. 96 96 96 voxels"
            )
        for name in ("crops_per_subject", "subjects_per_group", "groups_per_step"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix=f"set {name} to at least 1")
        if self.frame not in FRAMES:
            raise ConfigError(f"unknown frame {self.frame!r}", fix=f"choose one of {', '.join(FRAMES)}")
        if not 0 < self.share <= 100:
            raise ConfigError(f"share is {self.share:g}", fix="give per cent above 0, up to 100")
        if not 0 <= self.foreground <= 1:
            raise ConfigError(f"foreground is {self.foreground}", fix="give a share of crops from 0 to 1")
        if self.foreground and not self.labelled:
            raise ConfigError(
                f"{self.foreground:g} of the crops are to show lesions, but sessions need not have a mask",
                fix="set labelled too, or foreground to 0",
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for hashes, cards and receipts; `PlanSpec(**values)` is the inverse.

        Fields that came later are left out at their default, so that earlier plans keep their hash.
        """
        default = {f.name: f.default for f in fields(self)}
        return {n: v for n, v in asdict(self).items() if n not in _LATER or v != default[n]}

    @property
    def crops_per_group(self) -> int:
        """Crops that share one contrast matrix."""
        return self.subjects_per_group * self.crops_per_subject


def check_world(groups_per_step: int, world: int) -> None:
    """Refuse a number of workers that cannot take whole groups, all as many.

    Raises:
        ConfigError: naming the nearest worker counts and groups a step that fit.
    """
    if world >= 1 and groups_per_step % world == 0:
        return
    divisors = [d for d in range(1, groups_per_step + 1) if groups_per_step % d == 0]
    workers = [
        max((d for d in divisors if d < world), default=None),
        min((d for d in divisors if d > world), default=None),
    ]
    below = groups_per_step // max(world, 1) * max(world, 1)
    groups = [below or None, below + max(world, 1)] if world >= 1 else []
    raise ConfigError(
        f"{groups_per_step} groups a step cannot be dealt evenly to {world} workers",
        fix=f"use {_either(workers)} workers" + (f", or {_either(groups)} groups a step" if groups else ""),
    )


def _either(values: list[int | None]) -> str:
    return " or ".join(str(v) for v in values if v is not None)


class Plan:
    """The rows of a run, lazily. Open one with `Plan.open` or `Plan.from_index`.

    Args:
        sessions: those to visit, and no others (`eligible`); a receipt keeps them.
        spec: the plan.
        source: where they came from, for messages.
    """

    def __init__(self, sessions: pa.Table, spec: PlanSpec, *, source: str = "the index") -> None:
        table = in_order(sessions, source)
        self.spec = spec
        self._subject = table["subject"].combine_chunks()
        self._session = table["session"].combine_chunks()
        self._shard = table["shard"].to_numpy().astype(np.int32)
        self._row = table["row"].to_numpy().astype(np.int32)
        self._shape, self._box_lo, self._box_hi = (
            triples(table[name]) for name in ("shape", "box_lo", "box_hi")
        )
        self._lo, self._hi = frame_bounds(spec.frame, self._shape, self._box_lo, self._box_hi, spec.crop)
        self._visits = Visits(spec.seed, self._subject.to_pylist(), self._session.to_pylist())
        if self.n_subjects < spec.subjects_per_group:
            raise ConfigError(
                f"a group needs {spec.subjects_per_group} subjects but split {spec.split!r} has"
                f" {self.n_subjects}{' with a mask' if spec.labelled else ''}",
                file=source,
                fix="lower subjects_per_group or add subjects",
            )

    @classmethod
    def open(cls, shards: str | ShardSet, spec: PlanSpec) -> Plan:
        """The plan over a shard set, or the one at a URI: reads its index, no shard.

        Raises:
            DataError: no whole shard set there, or one of another version.
            ConfigError: no eligible subject, fewer than a group takes, or no few-shot subset of that share.
        """
        opened = ShardSet.open(shards) if isinstance(shards, str) else shards
        subset = subset_of(opened, spec)
        return cls(eligible(opened.index, spec, opened.uri, subset), spec, source=opened.uri)

    @classmethod
    def from_index(cls, index_table: pa.Table, spec: PlanSpec, subset: Collection[str] | None = None) -> Plan:
        """The plan over an index already in memory (`ShardSet.index`), with `subset_of` the shard set."""
        return cls(eligible(index_table, spec, subset=subset), spec)

    @property
    def n_subjects(self) -> int:
        """Subjects visited once an epoch."""
        return self._visits.n_subjects

    @property
    def crops_per_group(self) -> int:
        """Crops that share one contrast matrix."""
        return self.spec.crops_per_group

    @property
    def crops_per_step(self) -> int:
        """Crops of one step over all workers."""
        return self.spec.groups_per_step * self.spec.crops_per_group

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which every subject is visited once (not whole where the last group carries over)."""
        return self.n_subjects / (self.spec.groups_per_step * self.spec.subjects_per_group)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) over spec and sessions: equal hashes mean equal rows at every step."""
        digest = hashlib.sha256()
        digest.update(json.dumps({"version": PLAN_VERSION, **self.spec.to_dict()}, sort_keys=True).encode())
        for names in (self._subject, self._session):
            digest.update(json.dumps(names.to_pylist()).encode())
        for numbers in (self._shard, self._row, self._shape, self._box_lo, self._box_hi):
            digest.update(np.ascontiguousarray(numbers, "<i8").tobytes())
        return digest.hexdigest()

    def check_world(self, world: int) -> None:
        """Refuse a number of workers that does not divide the groups of a step.

        Raises:
            ConfigError: naming the nearest valid worker counts and groups a step.
        """
        check_world(self.spec.groups_per_step, world)

    def rows(self, start_step: int, stop_step: int, rank: int = 0, world: int = 1) -> pa.Table:
        """Rows of steps [start_step, stop_step) that worker `rank` of `world` reads, in order.

        Schema: `PLAN_SCHEMA`. Memory follows the rows asked for, so ask for a few steps at a time.
        """
        per_worker = self.groups_per_worker(world)
        if not 0 <= rank < world or start_step < 0:
            raise ValueError(f"rank {rank} of {world} from step {start_step}")
        count = max(stop_step - start_step, 0) * per_worker
        return self.worker_groups(0, count, start_step=start_step, rank=rank, world=world)

    @cached_property
    def sessions(self) -> tuple[list[str], list[str]]:
        """(subjects, sessions) of the stored sessions, in the order `visits` numbers them."""
        return self._subject.to_pylist(), self._session.to_pylist()

    def visits(
        self, start_step: int, stop_step: int, rank: int = 0, world: int = 1
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Who is visited when, without the crops: (step, epoch, session), int64, one entry a visit, in order.

        Sessions are positions in `sessions`. Each visit is `crops_per_subject` rows of `rows`.
        """
        per_worker = self.groups_per_worker(world)
        step_G, place_G = np.divmod(np.arange(max(stop_step - start_step, 0) * per_worker), per_worker)
        step_G += start_step
        group_G = step_G * self.spec.groups_per_step + rank * per_worker + place_G
        position = self._positions(group_G).ravel()
        step = np.repeat(step_G, self.spec.subjects_per_group)
        return step, position // self.n_subjects, self._visits.rows(position)

    def groups_per_worker(self, world: int) -> int:
        """Groups of one step that each of `world` workers reads."""
        self.check_world(world)
        return self.spec.groups_per_step // world

    def worker_groups(self, first: int, last: int, *, start_step: int, rank: int, world: int) -> pa.Table:
        """Rows of a worker's groups number [first, last), counted from `start_step`.

        The unit in which a stream cuts its work: a group is never divided.
        """
        step, place = np.divmod(np.arange(first, last, dtype=np.int64), self.groups_per_worker(world))
        step += start_step
        group = step * self.spec.groups_per_step + rank * self.groups_per_worker(world) + place
        return self._table(step, group)

    def _positions(self, group_G: np.ndarray) -> np.ndarray:
        """(groups, subjects a group) places in the endless sequence of visits."""
        each = self.spec.subjects_per_group
        return group_G[:, None] * each + np.arange(each)

    def _table(self, step_G: np.ndarray, group_G: np.ndarray) -> pa.Table:
        spec = self.spec
        position = self._positions(group_G)
        session = np.repeat(self._visits.rows(position.ravel()), spec.crops_per_subject)
        n = len(session)
        crop = np.tile(np.arange(spec.crops_per_subject, dtype=np.int64), position.size)
        seed = hash64(spec.seed, _CROP, np.repeat(position.ravel(), spec.crops_per_subject), crop)
        corner = draw_corners(seed, self._lo[session], self._hi[session], spec.crop)
        take = pa.array(session)
        columns = [
            pa.array(np.repeat(step_G, spec.crops_per_group)),
            pa.array(np.repeat(group_G, spec.crops_per_group)),
            pa.array(np.tile(np.arange(spec.crops_per_group, dtype=np.int32), len(group_G))),
            self._subject.take(take),
            self._session.take(take),
            pa.array(self._shard[session]),
            pa.array(self._row[session]),
            pa.array(seed.reshape(n)),
            pa.FixedSizeListArray.from_arrays(pa.array(corner.ravel()), 3),
        ]
        metadata = {CROP_METADATA: json.dumps(spec.crop)}
        if spec.foreground:
            metadata[FOREGROUND_METADATA] = json.dumps([spec.foreground, spec.frame])
        return pa.Table.from_arrays(columns, schema=PLAN_SCHEMA.with_metadata(metadata))
