"""Options drawn from a space and judged by validation: at random, or as Optuna suggests.

Draw i of the random search is a pure function of the space and i, the same for every trial of the study that
is searched for, so that arms are compared with equal budgets. Whatever was drawn, a point is a node of its
own, named by its options: a search that is interrupted finds its finished and its unfinished points again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import yaml
from ray.tune.schedulers import ASHAScheduler
from rich.console import Console
from rich.table import Table

from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError
from brainfoundry.core.rng import hash64_int, key_of
from brainfoundry.experiments.cohort import cohort_info
from brainfoundry.experiments.node import Node, search_name
from brainfoundry.experiments.recipes import with_options
from brainfoundry.experiments.records import StudyFolder, TrialRecord, named_after
from brainfoundry.experiments.study import SearchSpec
from brainfoundry.experiments.suggest import OptunaSearcher, require_optuna
from brainfoundry.experiments.wave import PERCENT, SCORE, Work
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.folds import HELD_OUT
from brainfoundry.tasks.scores import higher_is_better
from brainfoundry.training.resolve import held_out_split

SEED = 0
_STREAM = key_of("search")
_DIGITS = 4
"""Significant digits of a drawn number: more would only make names and tables long."""
_ENDLESS = 10_000
"""Points from which on a space is not looked through for untried ones."""
_FIRST_RUNG, _FACTOR = 12, 3
"""ASHA gives up two of three trials at 12 % and at 36 % of their steps."""


def draw(space: Mapping[str, Mapping[str, Sequence[Any]]], index: int) -> dict[str, Any]:
    """The options of draw `index` of the random search."""
    found = {}
    for name, distribution in space.items():
        u = (hash64_int(SEED, _STREAM, index, key_of(name)) >> 11) * 2.0**-53
        found[name] = _at(distribution, u)
    return found


def _at(distribution: Mapping[str, Sequence[Any]], u: float) -> Any:
    """The value at a share u in [0, 1) of a distribution."""
    kind, bounds = next(iter(distribution.items()))
    if kind == "choice":
        return bounds[math.floor(u * len(bounds))]
    low, high = bounds
    if kind == "randint":
        return low + math.floor(u * (high - low))
    if kind == "loguniform":
        return _rounded(math.exp(math.log(low) + u * (math.log(high) - math.log(low))))
    return _rounded(low + u * (high - low))


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search for one trial's options.

    Args:
        base: the trial; its configuration is complete but for what is searched.
    """

    base: Node
    spec: SearchSpec

    @property
    def higher(self) -> bool:
        """Whether the highest validation score is the best."""
        return higher_is_better(self.base.config.keep.best_by)

    def check(self) -> None:
        """Refuse to search where validation would look at the test set.

        Raises:
            ConfigError: nobody but the test set is held out.
        """
        data, test = self.base.config.data, self.base.test
        shards = ShardSet.open(str(data.shards))
        held_out = held_out_split(shards, data.fold)
        if not held_out or (held_out == HELD_OUT and test is not None and test.fold == data.fold):
            raise ConfigError(
                f"{self.base.id} is searched for by validation, and nobody but the test set is held out",
                file=shards.uri,
                fix=f"give the cohort a val split: {cohort_info(shards).split_command(val='0.1')}",
            )

    def point(self, options: Mapping[str, Any]) -> Work:
        """The node that tries these options: judged by validation alone, never on the test set."""
        digest = hashlib.sha256(json.dumps(dict(sorted(options.items()))).encode()).hexdigest()[:6]
        name = f"{search_name(self.base.id)}-{digest}"
        tracking = self.base.config.tracking
        tags = [tag for tag in tracking.tags if not tag.startswith("role=")]
        tags += ["role=choice", *(f"{option}={value}" for option, value in options.items())]
        config = with_options(self.base.config, options)
        config = replace(config, name=name, tracking=replace(tracking, tags=tuple(tags)))
        node = replace(self.base, id=name, role="choice", config=config, test=None)
        return Work(node=node, config=config, chosen=dict(options))

    def drawn(self, parameters: Mapping[str, Any]) -> Work:
        """What Tune's parameters mean, random."""
        return self.point(draw(self.spec.space, int(parameters["draw"])))

    def suggested(self, parameters: Mapping[str, Any]) -> Work:
        """What Tune's parameters mean, Optuna's."""
        options = {}
        for name, distribution in self.spec.space.items():
            value = parameters[name]
            if "choice" in distribution:
                value = distribution["choice"][int(value)]
            options[name] = _rounded(value) if isinstance(value, float) else value
        return self.point(options)

    def mine(self, records: Mapping[str, TrialRecord]) -> dict[str, TrialRecord]:
        """Records of the points of this search."""
        return named_after(search_name(self.base.id), records)

    def waiting(self, records: Mapping[str, TrialRecord]) -> list[int]:
        """Draws that have no record yet, or failed."""
        names = [self.drawn({"draw": i}).node.id for i in range(self.spec.trials)]
        first = {name: i for i, name in reversed(list(enumerate(names)))}
        return sorted(i for name, i in first.items() if name not in records or not records[name].done)

    def failed(self, records: Mapping[str, TrialRecord]) -> list[TrialRecord]:
        """Points that something else than their own options stopped; they are tried again."""
        return [record for record in self.mine(records).values() if not record.done]

    def scheduler(self) -> ASHAScheduler | None:
        """ASHA, where the study asks for it. It never stops a trial at its very end."""
        if self.spec.scheduler == "none":
            return None
        return ASHAScheduler(time_attr=PERCENT, max_t=101, grace_period=_FIRST_RUNG, reduction_factor=_FACTOR)

    def optuna(self, study: StudyFolder, records: Mapping[str, TrialRecord]) -> tuple[OptunaSearcher, int]:
        """Optuna as Tune's searcher, told of the points that are done, and how many are still to run.

        Points that were begun before come first.

        Raises:
            ConfigError: Optuna is not installed.
        """
        require_optuna()
        from optuna.distributions import (
            BaseDistribution,
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        space: dict[str, BaseDistribution] = {}
        for name, distribution in self.spec.space.items():
            kind, bounds = next(iter(distribution.items()))
            if kind in ("uniform", "loguniform"):
                space[name] = FloatDistribution(bounds[0], bounds[1], log=kind == "loguniform")
            elif kind == "randint":
                space[name] = IntDistribution(bounds[0], bounds[1] - 1)
            else:
                space[name] = CategoricalDistribution(range(len(bounds)))
        key = f"val/{self.base.config.keep.best_by}"
        done = {n: r for n, r in self.mine(records).items() if r.done}
        scored = [
            (self._parameters(r.chosen), r.validation[key]) for r in done.values() if key in r.validation
        ]
        searcher = OptunaSearcher(
            space, self._name_of, metric=SCORE, mode="max" if self.higher else "min", seed=SEED + len(done),
            done=scored, tried=done, first=self._unfinished(study, records, done),
            points=_points(self.spec.space),
        )  # fmt: skip
        return searcher, max(0, self.spec.trials - len(done))

    def _name_of(self, parameters: Mapping[str, Any]) -> str:
        return self.suggested(parameters).node.id

    def _parameters(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options as Optuna knows them: a choice is its number."""
        found = {}
        for name, distribution in self.spec.space.items():
            found[name] = options[name]
            if "choice" in distribution:
                values = [
                    json.dumps(value) for value in distribution["choice"]
                ]  # lists may have become tuples
                found[name] = values.index(json.dumps(options[name]))
        return found

    def _unfinished(
        self, study: StudyFolder, records: Mapping[str, TrialRecord], done: Mapping[str, TrialRecord]
    ) -> list[dict[str, Any]]:
        """Points that failed, from their records; and that have begun and have no end, from their
        configurations."""
        failed = self.failed(records)
        found = [self._parameters(record.chosen) for record in failed]
        known = {*done, *(record.id for record in failed)}
        prefix = search_name(self.base.id)
        for name in files.list_names(study.runs):
            uri = files.join(study.runs, name, "config.yaml")
            if name.rpartition("-")[0] != prefix or name in known or not files.exists(uri):
                continue
            config = yaml.safe_load(files.read_bytes(uri))
            options = {key: _dotted(config, key) for key in self.spec.space}
            if self.point(options).node.id == name:
                found.append(self._parameters(options))
        return found

    def best(self, records: Mapping[str, TrialRecord]) -> Work | None:
        """The point that validation likes best of those that were trained to the end; of equals the first by
        name. None where there is none."""
        key = f"val/{self.base.config.keep.best_by}"
        scored = {
            n: r for n, r in self.mine(records).items() if r.state == "finished" and key in r.validation
        }
        if not scored:
            return None
        sign = -1.0 if self.higher else 1.0
        name = min(scored, key=lambda n: (sign * scored[n].validation[key], n))
        return self.point(scored[name].chosen)

    def table(self, records: Mapping[str, TrialRecord], console: Console | None = None) -> None:
        """Print the points, best first."""
        by = self.base.config.keep.best_by
        table = Table(title=f"search for {self.base.id}, by {by} in validation", title_justify="left")
        for name in ("score", "steps", "state", *self.spec.space):
            table.add_column(name, justify="right")
        sign = -1.0 if self.higher else 1.0

        def order(record: TrialRecord) -> tuple[bool, float, str]:
            score = record.validation.get(f"val/{by}", math.nan)
            return math.isnan(score), sign * score if math.isfinite(score) else 0.0, record.id

        for record in sorted(self.mine(records).values(), key=order):
            score = record.validation.get(f"val/{by}")
            cells = ["-" if score is None else f"{score:.4f}", str(record.steps), record.state]
            table.add_row(*cells, *(str(record.chosen.get(name, "")) for name in self.spec.space))
        (console or Console(width=110)).print(table)


def _points(space: Mapping[str, Mapping[str, Sequence[Any]]]) -> list[dict[str, Any]]:
    """Optuna's parameters of all points, shuffled; none where there are too many to look through, as in any
    space with real numbers."""
    kinds = [next(iter(distribution.items())) for distribution in space.values()]
    if any(kind not in ("choice", "randint") for kind, _ in kinds):
        return []
    values = [range(len(b)) if kind == "choice" else range(b[0], b[1]) for kind, b in kinds]
    if math.prod(map(len, values)) > _ENDLESS:
        return []
    found = [dict(zip(space, point, strict=True)) for point in product(*values)]
    return sorted(found, key=lambda point: hash64_int(SEED, _STREAM, *point.values()))


def _dotted(config: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return config[section][name]
