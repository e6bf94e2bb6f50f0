"""A study from its plan to its records: waves of trials over Ray Tune, resumed from what is written down.

Killed and submitted again, it goes on: nodes with a record are done, runs continue from their newest
checkpoint, and those that failed are tried again. A trial that fails stops only those that start from it.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray import tune

from brainfoundry.core import files, paths
from brainfoundry.core.errors import ClusterError, ConfigError
from brainfoundry.experiments.axes import REPEATED, safe
from brainfoundry.experiments.board import Board
from brainfoundry.experiments.capacity import at_once
from brainfoundry.experiments.choice import choose, undecided, with_choice
from brainfoundry.experiments.freeze import freeze
from brainfoundry.experiments.given import record_given
from brainfoundry.experiments.lock import driving
from brainfoundry.experiments.mlflow_model import register
from brainfoundry.experiments.mlflow_view import close_study, experiment_of, open_study
from brainfoundry.experiments.node import Node, before, search_name, waves
from brainfoundry.experiments.records import StudyFolder, TrialRecord, by_run, named_after, read_records
from brainfoundry.experiments.search import Search, require_optuna
from brainfoundry.experiments.study import StudySpec
from brainfoundry.experiments.wave import Make, Work, run_wave
from brainfoundry.tasks.scores import higher_is_better
from brainfoundry.training.config import ClusterConfig, TrainConfig
from brainfoundry.training.tracking.tags import run_tags
from brainfoundry.training.tracking.uri import refuse_if_multinode, resolve_uri


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """How a study is run; nothing of it changes a result."""

    cohorts: Mapping[str, str]
    """The study's names -> shard sets."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Names -> files of the user's that trials start from."""
    submitted: tuple[str, ...] = ()
    """Words of the command line that name the study."""
    retries: int = 2
    """How often a trial that died is begun again."""
    tracking: str | None = None
    """MLflow, as --tracking.uri."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a study in this session."""

    records: Mapping[str, TrialRecord]
    failed: tuple[str, ...] = ()
    waiting: Mapping[str, str] = field(default_factory=dict)
    """Node -> the node whose failure it waits for."""
    external: Mapping[str, str] = field(default_factory=dict)
    """Node -> the command that fills it."""


def run_study(spec: StudySpec, nodes: Sequence[Node], folder: str, options: StudyOptions) -> Outcome:
    """Run what is not done of a study on the connected cluster.

    Args:
        nodes: of `plan_study`, ancestors first.
        folder: STUDY.

    Raises:
        ConfigError: another study of this name, an ancestor that nobody planned, no Optuna.
        ClusterError: another driver is at it, or the cluster does not hold one trial.
    """
    study = StudyFolder(name=spec.name, uri=files.absolute(folder))
    files.check_writable(study.uri)
    with driving(study) as check:
        freeze(study, spec, options.cohorts, options.weights, options.submitted)
        return _Driver(spec, nodes, study, options, check).run()


class _Driver:
    """One session of a study."""

    def __init__(
        self,
        spec: StudySpec,
        nodes: Sequence[Node],
        study: StudyFolder,
        options: StudyOptions,
        check: Callable[[], None],
    ) -> None:
        """
        Args:
            check: raises where another driver has taken over.
        """
        self._spec, self._nodes, self._study, self._options = spec, nodes, study, options
        self._still_mine = check
        self._records = read_records(study.uri)
        self._records |= record_given(study, nodes)
        self._forget_unfit()
        self._check()
        todo = [node for node in nodes if node.kind != "external" and not self._done(node.id)]
        at_once([node.config for node in todo])  # each fits, before anything starts
        self._uri = resolve_uri(options.tracking, str(paths.home()))
        refuse_if_multinode(self._uri, sum(node["Alive"] for node in ray.nodes()))
        print(f"study {spec.name}: {len(nodes)} runs, {len(todo)} to do, in {study.uri}", flush=True)
        self._board = Board(spec.name, len(todo), spec.main_metric)
        self._parent: str | None = None
        self._unsearched: dict[str, str] = {}
        """Trial -> why its search does not say which options are its own."""

    def run(self) -> Outcome:
        """Every wave."""
        spec = self._spec
        self._parent = open_study(
            self._uri, self._study.uri, spec.name, title=spec.title, task=spec.task, axes=spec.varying(),
            tags={**run_tags(), "study_hash": spec.hash},
        )  # fmt: skip
        outcome = None
        try:
            files.delete_folder(files.join(self._study.uri, "ray"))  # of earlier sessions
            with self._board:
                for wave in waves([node for node in self._nodes if not self._done(node.id)]):
                    self._still_mine()
                    self._wave([node for node in wave if self._ready(node)])
            outcome = self._outcome()
            self._register()
        finally:
            if self._mine():
                self._close(outcome)
        return outcome

    def _mine(self) -> bool:
        try:
            self._still_mine()
        except ClusterError:
            return False
        return True

    # --- what runs

    def _done(self, name: str) -> bool:
        return name in self._records and self._records[name].done

    def _forget_unfit(self) -> None:
        """Options of which none trains are tried again: what all of them read may have been mended since."""
        tried = [
            {name: self._records[name] for name in node.chosen if name in self._records}
            for node in self._nodes
        ]
        if self._spec.search is not None:
            tried += [named_after(search_name(node.id), self._records) for node in self._nodes]
        for own in tried:
            if own and all(record.state == "unfit" for record in own.values()):
                for name in own:
                    files.delete_file(self._study.record(name))
                    self._records.pop(name, None)

    def _check(self) -> None:
        planned = {node.id for node in self._nodes}
        for node in self._nodes:
            missing = [name for name in before(node) if name not in planned and not self._done(name)]
            if missing:
                raise ConfigError(
                    f"{node.id} starts from {missing[0]}, which is neither planned nor recorded",
                    file=self._study.uri,
                    fix="submit the whole study, or name its trials with --only",
                )
        if self._spec.search is not None:
            if self._spec.search.algorithm == "optuna":
                require_optuna()
            for node in self._nodes:
                if self._is_searched(node) and not self._done(node.id):
                    Search(base=node, spec=self._spec.search).check()

    def _ready(self, node: Node) -> bool:
        return node.kind != "external" and not self._done(node.id) and not self._missing(node)

    def _is_searched(self, node: Node) -> bool:
        """Whether the node's options are those of the best point of a search."""
        return self._spec.search is not None and node.role == "trial" and node.kind == "finetune"

    def _missing(self, node: Node) -> str:
        """What a node waits for that did not finish; "" where it can start."""
        parents = (n for n in node.parents if n not in self._records or self._records[n].state != "finished")
        return next(parents, "") or undecided(node, self._records)

    def _wave(self, wave: Sequence[Node]) -> None:
        work: dict[str, Work] = {}
        options = {name: tried for node in self._nodes for name, tried in node.chosen.items()}
        for node in wave:
            if self._is_searched(node):
                found = self._searched(node)
                if found is not None:
                    work[node.id] = found
                continue
            chosen = choose(node, self._records) if node.chosen else options.get(node.id, {})
            work[node.id] = self._work(node, with_choice(node, self._records), chosen)
        # Runs that take as much of the cluster go together, the large ones first: as many as fit, whole.
        groups: dict[ClusterConfig, list[Work]] = defaultdict(list)
        for one in work.values():
            groups[one.config.cluster].append(one)
        for cluster in sorted(groups, key=lambda cluster: -cluster.workers):
            ids = [one.node.id for one in groups[cluster]]
            self._run(
                f"{len(ids)} run(s)", functools.partial(_named, work), cluster_of=groups[cluster][0].config,
                space={"node": tune.grid_search(ids)},
            )  # fmt: skip

    def _run(self, what: str, make: Make, *, cluster_of: TrainConfig, **settings: Any) -> None:
        """Trials that all take as much of the cluster as one configuration."""
        n = at_once([cluster_of])
        self._board.line(f"{what}, {n} at once")
        run_wave(
            self._study, make, self._board, at_once=n, retries=self._options.retries, check=self._still_mine,
            **settings,
        )  # fmt: skip
        self._records = read_records(self._study.uri)

    def _work(self, node: Node, config: TrainConfig, chosen: Mapping[str, Any]) -> Work:
        """The node, as part of the study's MLflow run."""
        tags = {"study": self._spec.name, "kind": node.kind, "role": node.role, **node.point, **chosen}
        tracking = replace(
            config.tracking, uri=self._uri, parent=self._parent, experiment=experiment_of(self._spec.name),
            tags=tuple(f"{name}={value}" for name, value in tags.items()),
        )  # fmt: skip
        return Work(node=node, config=replace(config, tracking=tracking), chosen=dict(chosen))

    def _searched(self, node: Node) -> Work | None:
        """Search for a trial's options; the best, or None where no point was trained to the end."""
        assert self._spec.search is not None
        base = replace(node, config=self._work(node, node.config, {}).config)
        search = Search(base=base, spec=self._spec.search)
        settings: dict[str, Any] = {"scored": True, "higher": search.higher, "scheduler": search.scheduler()}
        if search.spec.algorithm == "random":
            todo = search.waiting(self._records)
            count, make = len(todo), search.drawn
            settings["space"] = {"draw": tune.grid_search(todo)}
        else:
            searcher, count = search.optuna(self._study, self._records)
            make = search.suggested
            settings |= {"space": {}, "samples": count, "searcher": searcher}
        if count:
            self._board.more(count)
            what = f"search for {node.id}, {count} point(s)"
            self._run(what, make, cluster_of=node.config, **settings)
        search.table(self._records)
        points = len(search.mine(self._records))
        if points < search.spec.trials:
            self._board.line(f"{points} of {search.spec.trials} points: the space has no others, as it seems")
        failed = search.failed(self._records)
        if failed:  # with what is left of its points, it would have had a smaller budget than others
            self._unsearched[node.id] = (
                f"its search: {len(failed)} point(s) failed, such as {failed[0].id}: {failed[0].error}"
            )
            return None
        best = search.best(self._records)
        if best is None:
            self._unsearched[node.id] = "its search, of which no point was trained to the end"
            return None
        # The trial is the best point's run, which is now judged on the test set.
        return Work(node=node, config=replace(best.config, tracking=base.config.tracking), chosen=best.chosen)

    # --- what came of it

    def _outcome(self) -> Outcome:
        waiting = {}
        for node in self._nodes:
            if node.kind == "external" or node.id in self._records:
                continue
            waiting[node.id] = self._missing(node) or self._unsearched.get(node.id, "its turn")
        ids = [node.id for node in self._nodes]
        return Outcome(
            records=self._records,
            failed=tuple(name for name in ids if name in self._records and not self._done(name)),
            waiting=waiting,
            external={
                node.id: node.command
                for node in self._nodes
                if node.kind == "external" and node.id not in self._records
            },
        )

    def _trials(self) -> list[TrialRecord]:
        ids = [node.id for node in self._nodes if node.role == "trial"]
        return [self._records[name] for name in ids if name in self._records]

    def _register(self) -> None:
        """A checkpoint of each arm as a model in MLflow: of its repetitions the best by validation; the first
        where nobody but the test set was held out, because choosing among folds would be choosing on it."""
        if self._parent is None:
            return
        axes = ("init", *(a for a in self._spec.varying() if a not in ("init", "fold", *REPEATED)))
        best: dict[str, tuple[float, TrialRecord]] = {}
        for node in self._nodes:
            by, record = node.config.keep.best_by, self._records.get(node.id)
            if node.role != "trial" or node.kind != "finetune" or record is None or not record.mlflow_run:
                continue
            score = record.validation.get(f"val/{by}") if record.chosen_on else 0.0
            if record.state != "finished" or score is None:
                continue
            score = score if higher_is_better(by) else -score
            arm = safe(
                "-".join(f"share{node.point[a]:g}" if a == "share" else str(node.point[a]) for a in axes)
            )
            if arm not in best or score > best[arm][0]:
                best[arm] = (score, record)
        for arm, (_, record) in sorted(best.items()):
            assert record.mlflow_run and record.checkpoint
            tags = {"node": record.id, **{k: str(v) for k, v in record.point.items()}}
            register(self._uri, record.mlflow_run, f"study-{self._spec.name}-{arm}", record.checkpoint, tags)

    def _close(self, outcome: Outcome | None) -> None:
        trials = self._trials()
        hours = [r.device_hours for r in by_run(self._records.values()) if r.device_hours is not None]
        metrics = {
            "trials_done": float(sum(r.done for r in trials)),
            "trials_failed": float(sum(not r.done for r in trials)),
            **({"device_hours": sum(hours)} if hours else {}),
        }
        close_study(
            self._uri, self._parent, title=self._spec.title, lines=_lines(trials, self._spec),
            metrics=metrics, failed=outcome is None or bool(outcome.failed or outcome.waiting),
        )  # fmt: skip


def _named(work: Mapping[str, Work], parameters: Mapping[str, Any]) -> Work:
    return work[parameters["node"]]


def _lines(trials: Sequence[TrialRecord], spec: StudySpec) -> list[str]:
    """The trials as a Markdown table, the best first."""
    metric = spec.main_metric
    scored = [r for r in trials if metric in r.metrics]
    sign = -1.0 if higher_is_better(metric) else 1.0
    lines = [f"{len(scored)} of {len(trials)} recorded trials are scored on their test set.", ""]
    if scored:
        lines += [f"| trial | {metric} | subjects |", "|---|---|---|"]
    for record in sorted(scored, key=lambda r: sign * r.metrics[metric]):
        subjects = (record.test or {}).get("subjects", "")
        lines.append(f"| {record.id} | {record.metrics[metric]:.4f} | {subjects} |")
    return lines
