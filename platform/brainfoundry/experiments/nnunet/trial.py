"""nnU-Net as a trial of a study: the trial says whose scans, a record puts it into the study's tables."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq

from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError
from brainfoundry.experiments.external import find_external
from brainfoundry.experiments.nnunet.cases import Selection
from brainfoundry.experiments.nnunet.export import Export, plan_export
from brainfoundry.experiments.nnunet.run import Trained
from brainfoundry.experiments.node import Node
from brainfoundry.experiments.records import StudyFolder, TrialRecord, losses_of, scores_of, write_record
from brainfoundry.tasks.scores import ScoreTable
from brainfoundry.training.finetune_config import FinetuneConfig
from brainfoundry.training.tracking.tags import git_tags

FAMILY = "nnunetv2"
"""On the axis `family` of a study."""


@dataclass(frozen=True, kw_only=True)
class StudyTrial:
    """A trial of a study that nnU-Net fills."""

    study: StudyFolder
    node: Node

    @property
    def selection(self) -> Selection:
        """Whose scans, and in which channels."""
        node = self.node
        assert isinstance(node.config, FinetuneConfig) and node.test is not None
        data = node.config.data
        return Selection(
            shards=node.test.shards, task=node.config.task.name, fold=data.fold,
            test="test" if node.test.fold is None else "fold", share=data.share, draw=data.draw,
            modalities=tuple(data.modalities), feed=tuple(data.feed),
        )  # fmt: skip

    def check(self, asked: Selection) -> None:
        """Refuse options that say otherwise than the trial.

        Raises:
            ConfigError: names the first.
        """
        for field in fields(Selection):
            value, own = getattr(asked, field.name), getattr(self.selection, field.name)
            if value != field.default and value != own:
                raise ConfigError(
                    f"--{field.name} {value}, and trial {self.node.id} has {own}", file=self.study.frozen,
                    fix=f"leave --{field.name} out: the trial says it",
                )  # fmt: skip

    def check_export(self, export: Export) -> None:
        """Refuse an export of something else.

        Raises:
            ConfigError: other subjects, channels or masks than the trial's.
        """
        own = plan_export(self.selection, export.folder, dataset_id=export.dataset_id, allow_leak=True)
        if replace(own, shards=export.shards, leaks=export.leaks) != export:
            raise ConfigError(
                f"the export in this folder is not of trial {self.node.id}", file=export.folder,
                fix="name the trial's own --out, or another trial",
            )  # fmt: skip

    @property
    def steps(self) -> int:
        """The steps of the study's other trials."""
        return self.node.config.in_steps(self.node.subjects).optim.steps

    @property
    def folder(self) -> str:
        """Where its run lies if nobody says otherwise: as the runs of other trials."""
        return files.join(self.study.runs, self.node.id)


def find_trial(folder: str, *, node: str = "", point: Sequence[str] = ()) -> StudyTrial:
    """The trial of a study that was submitted (STORAGE/NAME); see `find_external`.

    Args:
        point: `axis=value` texts that it alone has among those of family nnunetv2.
    """
    found = find_external(folder, family=FAMILY, node=node, point=point)
    return StudyTrial(study=found.study, node=found.node)


def record_trial(trial: StudyTrial, export: Export, trained: Trained, table: ScoreTable) -> TrialRecord:
    """Write scores, losses and record into the study; from then on it counts as done."""
    study, node = trial.study, trial.node
    for name in ("scores", "losses"):
        files.make_folder(files.join(study.uri, name))
    table.to_parquet(study.absolute(scores_of(node.id)))
    sink = io.BytesIO()
    schema = pa.schema([("step", pa.int64()), ("name", pa.string()), ("value", pa.float64())])
    pq.write_table(pa.Table.from_pylist(list(trained.summary["losses"]), schema), sink, compression="zstd")
    files.write_bytes(study.absolute(losses_of(node.id)), sink.getvalue())
    seconds = float(trained.summary["seconds"])
    assert node.test is not None
    record = TrialRecord(
        study=study.name, id=node.id, kind="external", role="trial", point=dict(node.point), state="finished",
        run_dir=export.folder, checkpoint=str(trained.checkpoint), steps=int(trained.summary["steps"]),
        parameters=int(trained.summary["parameters"]), seconds=seconds, device_hours=seconds / 3600,
        device=trained.device, scores=scores_of(node.id), losses=losses_of(node.id), leaks=export.leaks,
        test={
            "shards": export.shards, "manifest_hash": export.manifest_hash, "split": node.test.split,
            "fold": node.test.fold, "subjects": len({subject for subject, _ in table.keys}),
        },
        metrics={line.metric: line.mean for line in table.summary() if line.defined},
        git_commit=git_tags().get("git_commit"), started=trained.started,
        ended=datetime.now(UTC).isoformat(timespec="seconds"), attempts=trained.attempts,
    )  # fmt: skip
    write_record(study, record)
    return record
