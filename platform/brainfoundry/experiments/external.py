"""Trials of a study that its driver does not run: found by whoever fills them, and recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError
from brainfoundry.experiments.axes import matches, parse_only
from brainfoundry.experiments.cohort import cohort_info
from brainfoundry.experiments.freeze import read_frozen
from brainfoundry.experiments.node import Node
from brainfoundry.experiments.plan import plan_study
from brainfoundry.experiments.records import StudyFolder, TrialRecord, scores_of, write_record
from brainfoundry.store.reader import ShardSet
from brainfoundry.tasks.scores import ScoreTable
from brainfoundry.training.ensemble import Model
from brainfoundry.training.evaluation import Evaluation
from brainfoundry.training.tracking.tags import git_tags
from brainfoundry.training.volumes import VolumeSpec


@dataclass(frozen=True, kw_only=True)
class External:
    """A trial that a command of its own fills."""

    study: StudyFolder
    node: Node

    def check_volumes(self, spec: VolumeSpec, *, split: str, fold: int | None, limit: int | None) -> None:
        """Refuse an evaluation of other volumes than the trial's.

        Raises:
            ConfigError: another shard set, split or fold, or only some of its subjects.
        """
        test = self.node.test
        assert test is not None
        asked = (spec.shards, fold, None if fold is not None else split)
        own = (files.absolute(test.shards), test.fold, None if test.fold is not None else test.split)
        if asked != own or limit is not None:
            raise ConfigError(
                f"trial {self.node.id} is scored on all of {test.guard}", file=self.study.frozen,
                fix="give its --shards and its --split or --fold, and no --limit",
            )  # fmt: skip

    def finish(self, table: ScoreTable, *, manifest_hash: str, **what: Any) -> TrialRecord:
        """Write scores and record into the study; from then on the trial counts as done.

        Args:
            manifest_hash: of the shard set as it was scored.
            what: further fields of the record.
        """
        study, node = self.study, self.node
        assert node.test is not None
        files.make_folder(files.join(study.uri, "scores"))
        table.to_parquet(study.absolute(scores_of(node.id)))
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        record = TrialRecord(
            study=study.name, id=node.id, kind="external", role="trial", point=dict(node.point),
            state="finished", scores=scores_of(node.id), test=node.test.record(table, manifest_hash),
            metrics=table.means(), git_commit=git_tags().get("git_commit"),
            ended=ended, **{"started": ended, **what},
        )  # fmt: skip
        write_record(study, record)
        return record


def find_external(folder: str, *, family: str = "", node: str = "", point: Sequence[str] = ()) -> External:
    """An external trial of a study that was submitted (STORAGE/NAME).

    Args:
        family: those of this family alone.
        node: its id, as jobs/study.py prints it.
        point: or `axis=value` texts that it alone has.

    Raises:
        DataError: no study there.
        ConfigError: no such trial, or several.
    """
    study, spec, frozen = read_frozen(folder)
    infos = {name: cohort_info(ShardSet.open(shards)) for name, shards in frozen["cohorts"].items()}
    families = {str(p["family"]) for p in spec.points()}
    if family and family not in families:
        raise ConfigError(
            f"study {study.name} has no trials of family {family}", file=study.frozen,
            fix=f"add {family} to its externals and its grid",
        )  # fmt: skip
    nodes = plan_study(spec, infos, study.uri.rpartition("/")[0], only=[f"family={family}"] if family else ())
    ours = [n for n in nodes if n.kind == "external"]
    wanted = parse_only(point, [n.point for n in ours])
    found = [n for n in ours if (not node or n.id == node) and matches(n.point, wanted)]
    if len(found) == 1:
        return External(study=study, node=found[0])
    raise ConfigError(
        f"{len(found)} {f'trials of {family}' if family else 'external trials'} are "
        f"{' '.join([node, *point]).strip() or 'in the study'}",
        file=study.frozen, fix=f"name one: --node {' or '.join(n.id for n in (found or ours))}",
    )  # fmt: skip


def record_evaluation(
    trial: External, models: Sequence[Model], found: Evaluation, leaks: Sequence[dict[str, Any]]
) -> TrialRecord:
    """The scores of checkpoints as the trial's.

    Args:
        leaks: of this evaluation, as the leak gate let pass.
    """
    card, test = models[0].card, trial.node.test
    assert test is not None
    return trial.finish(
        found.table, manifest_hash=ShardSet.open(test.shards).meta.manifest_hash, run_dir=found.folder,
        checkpoint=models[0].uri, steps=card.step, leaks=(*card.leaks, *leaks), attempts=1,
    )  # fmt: skip
