"""Studies that are driven without training: what would be run together is noted, with a record each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from brainfoundry.experiments.board import Board
from brainfoundry.experiments.cohort import cohort_info
from brainfoundry.experiments.driver import Outcome, StudyOptions, run_study
from brainfoundry.experiments.node import Node
from brainfoundry.experiments.plan import plan_study
from brainfoundry.experiments.records import StudyFolder, write_record
from brainfoundry.experiments.spec import read_study
from brainfoundry.experiments.study import StudySpec
from brainfoundry.experiments.wave import Work
from brainfoundry.store.reader import ShardSet
from tests.experiments.test_records import record
from tests.experiments.trained import NOWHERE

OPTIONS = {
    "data.crop": [64, 32, 32], "optim.steps": 6, "optim.warmup": 1, "cluster.cpus_per_worker": 0.5,
    "cluster.threads": 1, "keep.validate_every": 2, "keep.checkpoint_every": 1, "keep.log_every": 1,
}  # fmt: skip


def content(**changes: Any) -> dict[str, Any]:
    """A study on one tiny cohort: a pretraining run, and trials with and without it."""
    run = {"cohort": "tiny", "recipe": "brats", "preset": "demo", "options": OPTIONS}
    value = {
        "version": 1, "name": "mini", "title": "A study in miniature", "task": "brats", "tables": ["table9"],
        "stages": {"stage2": run}, "finetune": run, "inits": {"scratch": [], "stage2": ["stage2"]},
        "grid": [{"size": "nano", "init": ["scratch", "stage2"]}],
        "primary": {"metric": "dice_mean", "axis": "init", "arms": ["scratch", "stage2"]},
    }  # fmt: skip
    return {**value, **changes}


class Waves:
    """Stands in for `run_wave`: notes what is run together, and leaves records at once."""

    def __init__(self) -> None:
        self.ran: list[list[str]] = []
        self.work: dict[str, Work] = {}
        self.failing: tuple[str, ...] = ()
        self.unfit: tuple[float, ...] = ()
        """Learning rates."""
        self.checks = 0
        self.killed_after: int | None = None
        self.scores: dict[str, float] = {}
        self.chosen_on = "val"

    def __call__(
        self, study: StudyFolder, make: Callable[[Mapping[str, Any]], Work], board: Board, **how: Any
    ) -> None:
        how["check"]()
        self.checks += 1
        ((name, values),) = how["space"].items()
        wave = [make({name: value}) for value in values["grid_search"]]
        self.ran.append([work.node.id for work in wave])
        for number, work in enumerate(wave):
            if self.killed_after is not None and number >= self.killed_after:
                raise KeyboardInterrupt
            self.work[work.node.id] = work
            fails = any(work.node.id.startswith(prefix) for prefix in self.failing)
            lr = work.config.optim.lr
            state = "failed" if fails else "unfit" if lr in self.unfit else "finished"
            scores = {"val/dice_mean": self.scores.get(stems([work.node.id])[0], 1.0 - lr)}
            made = record(
                work.node.id, study=study.name, kind=work.node.kind, role=work.node.role, chosen=work.chosen,
                point=dict(work.node.point), state=state, steps=6,
                validation=scores if state == "finished" else {},
                chosen_on=self.chosen_on, mlflow_run="run", checkpoint="/there",
                metrics={"dice_mean": 0.5} if work.node.test else {},
                error="out of luck" if fails else "",
            )  # fmt: skip
            write_record(study, made)
            board.ended(made)


def planned(shards: str, folder: Path, **changes: Any) -> tuple[StudySpec, tuple[Node, ...]]:
    spec = read_study(content(**changes))
    return spec, plan_study(spec, {"tiny": cohort_info(ShardSet.open(shards))}, str(folder))


def drive(shards: str, folder: Path, **changes: Any) -> Outcome:
    spec, nodes = planned(shards, folder, **changes)
    options = StudyOptions(cohorts={"tiny": shards}, tracking=NOWHERE)
    return run_study(spec, nodes, str(folder / spec.name), options)


def stems(names: list[str]) -> list[str]:
    return [name.rpartition("-")[0] for name in names]
