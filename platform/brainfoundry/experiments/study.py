"""What a study is: its pretraining, its fine-tuning and the grid of its trials (`spec.py` reads one)."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from brainfoundry.experiments.axes import BASE, DEFAULTS, SCRATCH, Point
from brainfoundry.tasks.segmentation import SWINUNETR

VERSION = 1
CT = "ct"
"""In `inits`: the encoder starts from a file of CT weights (`--init.ct-weights`), which the user names."""
TABLES = (*(f"table{n}" for n in range(1, 10)), "fig4", "fig5")
"""What a report can draw of a study."""

COMMAND_FIELDS = ("id", "study", "shards", "fold", "split", "share", "draw", "seed", "steps")
"""What the command of an external family may name in braces."""

Options = Mapping[str, Any]
"""Dotted field of a run's configuration -> value."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A training run: whose scans, and which named configuration with what options on top."""

    cohort: str
    """Name under which the shard set is given at submission."""
    recipe: str
    """ukb, brats or atlas: whose presets."""
    preset: str = "paper"
    options: Options = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageSpec(RunSpec):
    """A pretraining run that others start from."""

    subset: Literal["training", "labelled"] = "training"
    """Of the fine-tuning's cohort: the scans of all training subjects, or of those whose labels the trial
    has."""


@dataclass(frozen=True, kw_only=True)
class ChooseSpec:
    """Options of the fine-tuning that are picked by validation, with equal budgets."""

    options: Mapping[str, tuple[Any, ...]]
    """Dotted field -> the values tried; all combinations are."""
    per: tuple[str, ...] = ()
    """Axes for each of whose values there is a choice of its own."""
    at: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Where on the other axes it is made; the mean over several values (draws) decides."""
    by: str = ""
    """Validation score; "" = the fine-tuning's --keep.best-by."""


@dataclass(frozen=True, kw_only=True)
class PrimarySpec:
    """The comparison that the study is about."""

    metric: str
    axis: str
    arms: tuple[Any, Any]
    """The difference is the second minus the first."""
    where: Mapping[str, Any] = field(default_factory=dict)
    smallest_effect: float | None = None
    """Smallest difference of interest."""


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """Options of the fine-tuning that are drawn and judged by validation, instead of a grid of them."""

    space: Mapping[str, Mapping[str, tuple[Any, ...]]]
    """Dotted field -> {uniform, loguniform or randint: (low, high)} or {choice: values}; randint leaves high
    out."""
    algorithm: Literal["random", "optuna"] = "random"
    trials: int = 20
    scheduler: Literal["none", "asha"] = "none"


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """A study, checked."""

    name: str
    """With the preset, where one changes something: `table9-reference`."""
    title: str
    task: str = ""
    """brats or atlas; "" for a study of pretraining alone."""
    tables: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Footnotes of all its tables."""
    stages: Mapping[str, StageSpec] = field(default_factory=dict)
    finetune: RunSpec | None = None
    """None: the pretraining runs themselves are the trials."""
    inits: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {SCRATCH: ()})
    """Value of the axis `init` -> the stages before, first to last; ("ct",) = CT weights."""
    variants: Mapping[str, Options] = field(default_factory=lambda: {BASE: {}})
    externals: Mapping[str, str] = field(default_factory=dict)
    """Families that another program trains -> the command that fills such a trial."""
    test: Literal["test", "fold"] = "test"
    """What trials are scored on: the test split, or the fold that they hold out."""
    grid: tuple[Mapping[str, tuple[Any, ...]], ...]
    choose: ChooseSpec | None = None
    primary: PrimarySpec | None = None
    search: SearchSpec | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `spec.read_study` reads back."""
        value: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        value["test"] = {"on": self.test}
        return {"version": VERSION, **{k: v for k, v in value.items() if v not in (None, {}, [], "")}}

    @property
    def hash(self) -> str:
        """SHA-256 of everything it says."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def points(self) -> tuple[dict[str, Any], ...]:
        """The trials in the grid's order, each once, as values on every axis."""
        found: dict[str, dict[str, Any]] = {}
        for block in self.grid:
            for values in itertools.product(*block.values()):
                point = self.settled({**DEFAULTS, **dict(zip(block, values, strict=True))})
                found.setdefault(json.dumps(point), point)
        return tuple(found.values())

    def settled(self, point: Point) -> dict[str, Any]:
        """The point with axes that mean nothing to it at their default.

        Without pretraining there is no objective and no seed of it; only swinunetr has sizes.
        """
        idle: tuple[str, ...] = ()
        if not self.stages_of(point):
            idle = ("objective", "pretrain_seed")
        if point["family"] != SWINUNETR:
            idle = (*idle, "size")
        return {axis: DEFAULTS[axis] if axis in idle else point[axis] for axis in DEFAULTS}

    def stages_of(self, point: Point) -> tuple[str, ...]:
        """The pretraining stages that a trial goes through, first to last."""
        chain = self.inits[point["init"]]
        return () if chain == (CT,) else chain

    @property
    def runs(self) -> tuple[RunSpec, ...]:
        """Its training runs: stages, then the fine-tuning."""
        return (*self.stages.values(), *([self.finetune] if self.finetune is not None else []))

    @property
    def main_metric(self) -> str:
        """The test score that it shows first: the primary endpoint's, else the task's mean Dice; "" without
        a task."""
        if self.primary is not None:
            return self.primary.metric
        return {"brats": "dice_mean", "atlas": "dice"}.get(self.task, "")

    def varying(self) -> tuple[str, ...]:
        """Axes that have several values in the grid."""
        points = self.points()
        return tuple(axis for axis in DEFAULTS if len({point[axis] for point in points}) > 1)
