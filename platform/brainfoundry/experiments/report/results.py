"""What is known of studies from their files: what was planned, what came of it, and every subject's scores.

Nothing else is read than STUDY/study.yaml, records, score and loss tables, the runs' own configurations and
cards, and the manifests of the cohorts.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from brainfoundry.cohorts.manifest import Manifest, read_manifest
from brainfoundry.core import files
from brainfoundry.core.errors import BrainFoundryError, DataError
from brainfoundry.experiments.freeze import read_frozen
from brainfoundry.experiments.records import StudyFolder, TrialRecord, read_records
from brainfoundry.experiments.stats import per_subject
from brainfoundry.experiments.study import StudySpec
from brainfoundry.models.sizes import SIZES
from brainfoundry.store.meta import manifest_uri
from brainfoundry.tasks.scores import ScoreTable
from brainfoundry.training.card import Card
from brainfoundry.training.checkpoint import read_card

_READERS = 16
_AGAIN = "delete its trial's record and submit the study again"


@dataclass(frozen=True, order=True)
class Repeat:
    """Which repetition of its arm a trial is. What stands behind is drawn anew in each of what stands before.

    Args:
        fold: -1: of none, or tested on itself and put together with the others.
    """

    fold: int
    draw: int
    seed: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """A point of a study's grid, and what came of it.

    Args:
        pretrained: it begins with the weights of a pretraining run.
        record: None where it has not been run.
        scores: per subject; None where there are none.
    """

    point: Mapping[str, Any]
    pretrained: bool
    record: TrialRecord | None = None
    scores: ScoreTable | None = None

    @property
    def scored(self) -> bool:
        """Whether it can be part of a table."""
        return self.scores is not None and self.record is not None and self.record.state == "finished"

    @property
    def repeat(self) -> Repeat:
        """Which repetition it is; folds count as such only where they share one test set."""
        fold = self.point.get("fold")
        tested = (self.record.test or {}).get("fold") if self.record else None
        alone = -1 if fold is None or tested is not None else int(fold)
        return Repeat(alone, int(self.point["draw"]), int(self.point["seed"]))

    def values(self, metric: str) -> dict[str, float]:
        """Subject -> value; NaN where it is not defined."""
        if self.scores is None or metric not in self.scores.metrics:
            return {}
        return per_subject(self.scores, metric)

    def matches(self, where: Mapping[str, Any]) -> bool:
        """Whether it has these values on these axes."""
        return all(self.point.get(axis) == value for axis, value in where.items())


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """One study: as it was frozen, and its files.

    Args:
        cohorts: name -> URI of its shard set.
        trials: the points of the grid in its order, each with what came of it; several a point in a search.
        submitted: words of the command line that named the study.
        records: of everything that was run, ancestors and choices too, by node.
    """

    folder: StudyFolder
    spec: StudySpec
    cohorts: Mapping[str, str]
    trials: tuple[Trial, ...]
    records: Mapping[str, TrialRecord]
    submitted: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name."""
        return self.folder.name

    def select(self, where: Mapping[str, Any]) -> list[Trial]:
        """The trials with these values on these axes, run or not."""
        return [trial for trial in self.trials if trial.matches(where)]

    def scored(self, where: Mapping[str, Any]) -> list[Trial]:
        """Those of them that have scores."""
        return [trial for trial in self.select(where) if trial.scored]

    @cached_property
    def varying(self) -> tuple[str, ...]:
        """Axes on which the trials differ, in the axes' order."""
        axes = dict.fromkeys(axis for trial in self.trials for axis in trial.point)
        seen = {axis: {json.dumps(t.point.get(axis), default=str) for t in self.trials} for axis in axes}
        return tuple(axis for axis in axes if len(seen[axis]) > 1)

    def values_of(self, axis: str) -> list[Any]:
        """The values that trials have on an axis, in the order of the grid."""
        found: list[Any] = []
        for trial in self.trials:
            if trial.point.get(axis) not in found:
                found.append(trial.point.get(axis))
        return found

    @property
    def pretraining(self) -> list[TrialRecord]:
        """Records of the pretraining runs, by number of stages and by size, small ones first."""
        sizes = list(SIZES)
        found = [record for record in self.records.values() if record.kind in ("pretrain", "given")]
        return sorted(found, key=lambda r: (len(r.parents), sizes.index(r.point["size"]), r.id))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics of the score tables."""
        return next((trial.scores.metrics for trial in self.trials if trial.scores is not None), ())

    @property
    def policies(self) -> Mapping[str, str]:
        """What the scores rest on."""
        return next((trial.scores.policies for trial in self.trials if trial.scores is not None), {})

    def losses(self, record: TrialRecord) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Name of a loss -> (steps, values); empty where none were kept."""
        if record.losses is None:
            return {}
        uri = self.folder.absolute(record.losses)
        if not files.exists(uri):
            return {}
        table = _parquet(uri)
        found = {}
        for name in dict.fromkeys(table["name"].to_pylist()):
            rows = table.filter(pa.compute.equal(table["name"], name)).sort_by("step")
            found[name] = rows["step"].to_numpy(), rows["value"].to_numpy()
        return found

    def run_config(self, record: TrialRecord) -> dict[str, Any]:
        """The options a run really had (RUN/config.yaml); empty where its folder is gone."""
        uri = files.join(record.run_dir, "config.yaml")
        if not files.exists(uri):
            return {}
        return yaml.safe_load(files.read_bytes(uri)) or {}

    def card(self, record: TrialRecord) -> Card | None:
        """The card of a run's checkpoint; None where it is gone."""
        try:
            return read_card(record.checkpoint) if record.checkpoint else None
        except (BrainFoundryError, OSError):
            return None

    @cached_property
    def manifests(self) -> Mapping[str, Manifest | str]:
        """Cohort -> its manifest, or why it cannot be read."""
        return {name: _manifest(uri) for name, uri in self.cohorts.items()}

    def manifest_of(self, test: Mapping[str, Any]) -> Manifest | None:
        """The manifest that a trial's test subjects stand in, as it was when they were scored."""
        found = _manifest(str(test["shards"]))
        return found if isinstance(found, Manifest) and found.hash == test["manifest_hash"] else None


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """The studies of a report."""

    studies: tuple[Study, ...]

    @classmethod
    def open(cls, folders: Sequence[str]) -> StudyResults:
        """Read studies by their folders (STORAGE/NAME).

        Raises:
            DataError: no study there, or a damaged file.
        """
        return cls(studies=tuple(open_study(folder) for folder in folders))


def open_study(folder: str) -> Study:
    """A study by its folder.

    Raises:
        DataError: there is no study, or one of its files is damaged.
        ConfigError: a study of another version.
    """
    study, spec, frozen = read_frozen(folder)
    records = read_records(study.uri)
    with ThreadPoolExecutor(_READERS) as pool:
        wanted = [record for record in records.values() if record.role == "trial" and record.scores]
        tables = pool.map(lambda record: _read_scores(study.absolute(str(record.scores))), wanted)
        scores = {record.id: table for record, table in zip(wanted, tables, strict=True)}
    trials = []
    for point in spec.points():
        made = [r for r in records.values() if r.role == "trial" and _same(r.point, point, spec)]
        pretrained = bool(spec.stages_of(point))
        trials += [
            Trial(point=point, pretrained=pretrained, record=record, scores=scores.get(record.id))
            for record in sorted(made, key=lambda record: record.id)
        ] or [Trial(point=point, pretrained=pretrained)]
    return Study(
        folder=study,
        spec=spec,
        cohorts=frozen.get("cohorts", {}),
        trials=tuple(trials),
        records=records,
        submitted=tuple(frozen.get("submitted", ())),
    )


def _same(found: Mapping[str, Any], point: Mapping[str, Any], spec: StudySpec) -> bool:
    """Whether a record is of this point; a pretraining run has no say on the axes of fine-tuning."""
    axes = point if spec.finetune is not None else ("size", "objective", "modalities", "pretrain_seed")
    return all(found.get(axis) == point[axis] for axis in axes)


def _manifest(shards: str) -> Manifest | str:
    try:
        return read_manifest(manifest_uri(shards))
    except (BrainFoundryError, OSError) as error:
        return error.problem if isinstance(error, BrainFoundryError) else str(error)


def _read_scores(uri: str) -> ScoreTable:
    try:
        return ScoreTable.from_parquet(uri)
    except DataError as error:
        raise DataError(error.problem, file=uri, fix=_AGAIN) from error


def _parquet(uri: str) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(files.read_bytes(uri)))
    except pa.ArrowInvalid as error:
        raise DataError(f"damaged table: {error}", file=uri, fix=_AGAIN) from error
