"""A run of a study, and what hangs together of several: what waits for what, and which are wanted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from brainfoundry.experiments.axes import Point, matches, parse_only
from brainfoundry.experiments.study import Options
from brainfoundry.tasks.scores import ScoreTable
from brainfoundry.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """The sessions that a trial is scored on."""

    __test__ = False  # not one of pytest's

    shards: str
    split: str = "test"
    """Not looked at where a fold is given."""
    fold: int | None = None

    @property
    def guard(self) -> str:
        """As `--data.guard` names it."""
        return f"{self.shards}#" + (f"split={self.split}" if self.fold is None else f"fold={self.fold}")

    def record(self, table: ScoreTable, manifest_hash: str) -> dict[str, Any]:
        """What a trial's record says of it, once its subjects are scored."""
        subjects = len({subject for subject, _ in table.keys})
        return {
            "shards": self.shards, "manifest_hash": manifest_hash, "split": self.split, "fold": self.fold,
            "subjects": subjects,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Node:
    """One run of a study."""

    id: str
    """Readable and stable: names the run, the record and the MLflow run."""
    kind: Literal["pretrain", "finetune", "external", "given"]
    """external: not run by the driver; `command` says what fills it. given: pretraining that the user has
    done before, `config.init.checkpoint`."""
    role: Literal["ancestor", "choice", "trial"]
    point: Point
    """Its value on every axis; of a pretraining run, `init` is what it hands on."""
    config: TrainConfig
    """Complete but for the options of `chosen`; of an external node: its data, task, seed and steps."""
    parents: tuple[str, ...] = ()
    """Nodes that must be finished before."""
    chosen: Mapping[str, Options] = field(default_factory=dict)
    """Choice nodes among which its options are picked -> the options that each tries."""
    chosen_by: str = ""
    """Validation score that picks."""
    test: TestSet | None = None
    """None: nothing is tested (an ancestor, a choice)."""
    command: str = ""
    """Of an external node."""
    subjects: int = 1
    """Training subjects, about: what an epoch is."""


def select(nodes: Sequence[Node], only: Sequence[str]) -> tuple[Node, ...]:
    """The trials that `axis=value` texts name, with the ancestors and choices that they need.

    Raises:
        ConfigError: unknown axis, or a value that no trial has.
    """
    trials = [node for node in nodes if node.role == "trial"]
    wanted = parse_only(only, [node.point for node in trials])
    by_id = {node.id: node for node in nodes}
    kept: set[str] = set()
    waiting = [node.id for node in trials if matches(node.point, wanted)]
    while waiting:
        name = waiting.pop()
        if name not in kept:
            kept.add(name)
            waiting += before(by_id[name])
    return tuple(node for node in nodes if node.id in kept)


def search_name(trial: str) -> str:
    """What the names of the points of a trial's search begin with; behind it a dash and a digest."""
    return f"search-{trial.removeprefix('ft-')}"


def before(node: Node) -> tuple[str, ...]:
    """The nodes that must be done before this one can start."""
    return (*node.parents, *node.chosen)


def waves(nodes: Sequence[Node]) -> tuple[tuple[Node, ...], ...]:
    """The nodes by depth: each wave needs only those before it. Nodes that are not given count as done."""
    by_id = {node.id: node for node in nodes}

    @cache
    def depth(name: str) -> int:
        return 1 + max((depth(other) for other in before(by_id[name]) if other in by_id), default=-1)

    found: dict[int, list[Node]] = defaultdict(list)
    for node in nodes:
        found[depth(node.id)].append(node)
    return tuple(tuple(found[level]) for level in sorted(found))
