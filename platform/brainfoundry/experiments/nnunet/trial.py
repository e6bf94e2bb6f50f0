"""nnU-Net as a trial of a study: the trial says whose scans, a record puts it into the study's tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError
from brainfoundry.experiments.external import External, find_external
from brainfoundry.experiments.nnunet.cases import Selection
from brainfoundry.experiments.nnunet.export import Export, plan_export
from brainfoundry.experiments.nnunet.run import Trained
from brainfoundry.experiments.records import TrialRecord, losses_of, write_loss_table
from brainfoundry.tasks.scores import ScoreTable
from brainfoundry.training.finetune_config import FinetuneConfig

FAMILY = "nnunetv2"
"""On the axis `family` of a study."""


class StudyTrial(External):
    """A trial of a study that nnU-Net fills."""

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
    name = losses_of(trial.node.id)
    write_loss_table(trial.study.absolute(name), trained.summary["losses"])
    seconds = float(trained.summary["seconds"])
    return trial.finish(
        table, manifest_hash=export.manifest_hash, run_dir=export.folder, checkpoint=str(trained.checkpoint),
        steps=int(trained.summary["steps"]), parameters=int(trained.summary["parameters"]), seconds=seconds,
        device_hours=seconds / 3600, device=trained.device, losses=name, leaks=export.leaks,
        started=trained.started, attempts=trained.attempts,
    )  # fmt: skip
