"""What a study asks of its trials: options to choose or search, and the comparison that it is about."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from brainfoundry.experiments.axes import axis_value, check_axis, nearest
from brainfoundry.experiments.recipes import with_options
from brainfoundry.experiments.study import ChooseSpec, Options, PrimarySpec, SearchSpec, StudySpec
from brainfoundry.experiments.study_file import Place, several
from brainfoundry.tasks import load_task
from brainfoundry.training.finetune_config import FinetuneConfig

_BOUNDED = ("uniform", "loguniform", "randint")


@dataclass(frozen=True, kw_only=True)
class Names:
    """What the rest of the study has, to hold its questions against."""

    axes: Mapping[str, Collection[str]]
    """Names on the axes `init`, `variant`, `objective` and `family`."""
    finetune: FinetuneConfig | None
    variants: Mapping[str, Options]

    def values(self, at: Place, axis: str, values: Any) -> tuple[Any, ...]:
        """Values of an axis, each once (ConfigError otherwise)."""
        with at.telling():
            check_axis(axis)
        with at.below(axis).telling():
            found = tuple(dict.fromkeys(axis_value(axis, value, self.axes) for value in several(values)))
        if not found:
            raise at.below(axis).error("no value", "name at least one, or leave the axis out")
        return found

    def trained(self, at: Place) -> FinetuneConfig:
        """The fine-tuning's configuration, where there is one."""
        if self.finetune is None:
            raise at.error("nothing is fine-tuned and tested", "add finetune, or leave this out")
        return self.finetune

    def check_free(self, at: Place, option: str) -> None:
        """Refuse an option that a variant sets too: one of both would be for nothing."""
        fixed = [variant for variant, options in self.variants.items() if option in options]
        if fixed:
            raise at.error(f"variant {fixed[0]} sets {option} too", "leave it out of one of both")

    def metric(self, at: Place, name: Any) -> str:
        """A score of the task."""
        return at.one_of(name, load_task(self.trained(at).task.name).score_names)


def read_choose(at: Place, value: Any, names: Names) -> ChooseSpec:
    """`choose`: options, per, at, by."""
    values = at.mapping(value, ("options", "per", "at", "by"))
    config, here = names.trained(at), at.below("options")
    given = here.mapping(values.get("options", {}))
    options = {name: tuple(several(tried)) for name, tried in given.items()}
    if not options or not all(options.values()):
        raise here.error("nothing to choose from", "write options such as {optim.lr: [1.0e-3, 5.0e-4]}")
    for name, tried in options.items():
        with here.telling():
            for one in tried:
                with_options(config, {name: one})
        names.check_free(here, name)
    per = tuple(several(values.get("per") or []))
    for axis in per:
        with at.below("per").telling():
            check_axis(axis)
    where = at.below("at").mapping(values.get("at") or {})
    return ChooseSpec(
        options=options,
        per=per,
        at={axis: names.values(at.below("at"), axis, one) for axis, one in where.items()},
        by=names.metric(at.below("by"), values.get("by") or config.keep.best_by),
    )


def read_primary(at: Place, value: Any, names: Names) -> PrimarySpec:
    """`primary`: metric, axis, arms, where, smallest_effect."""
    values = at.mapping(value, ("metric", "axis", "arms", "where", "smallest_effect"))
    axis = str(values.get("axis", "init"))
    arms = names.values(at.below("arms"), axis, values.get("arms", []))
    if len(arms) != 2:
        raise at.below("arms").error(f"{len(arms)} arms", "name two: the second minus the first")
    where = at.below("where").mapping(values.get("where") or {})
    effect = values.get("smallest_effect")
    return PrimarySpec(
        metric=names.metric(at.below("metric"), values.get("metric")),
        axis=axis,
        arms=(arms[0], arms[1]),
        where={name: names.values(at.below("where"), name, one)[0] for name, one in where.items()},
        smallest_effect=None if effect is None else at.below("smallest_effect").number(effect),
    )


def read_search(at: Place, value: Any, names: Names) -> SearchSpec:
    """`search`: space, algorithm, trials, scheduler."""
    values = at.mapping(value, ("space", "algorithm", "trials", "scheduler"))
    config = names.trained(at)
    space: dict[str, dict[str, tuple[Any, ...]]] = {}
    for name, drawn in at.below("space").mapping(values.get("space", {})).items():
        here = at.below("space").below(name)
        if len(here.mapping(drawn, (*_BOUNDED, "choice"))) != 1:
            raise here.error("one distribution is expected", "write {loguniform: [1.0e-4, 1.0e-2]}")
        kind, given = next(iter(drawn.items()))
        found = several(given) if kind == "choice" else _bounds(here, kind, several(given))
        with here.telling():
            for one in found:
                with_options(config, {name: one})
        names.check_free(here, name)
        space[name] = {kind: tuple(found)}
    trials = values.get("trials", SearchSpec.trials)
    if not space or isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
        raise at.error("nothing to search", "name a space, and trials: 1 or more")
    return SearchSpec(
        space=space,
        algorithm=at.below("algorithm").one_of(values.get("algorithm", "random"), ("random", "optuna")),
        trials=trials,
        scheduler=at.below("scheduler").one_of(values.get("scheduler", "none"), ("none", "asha")),
    )


def _bounds(at: Place, kind: str, given: list[Any]) -> list[Any]:
    low, high = [at.number(one) for one in given] if len(given) == 2 else (1.0, 0.0)
    if not low < high or (kind == "loguniform" and low <= 0):
        raise at.error(f"{kind} of {given}", "give the lower and the upper bound")
    return [int(low), int(high)] if kind == "randint" else [low, high]


def check_questions(at: Place, spec: StudySpec) -> None:
    """Hold the questions against the grid: ConfigError where an arm is not in it, or a choice not clear."""
    points, choose, primary = spec.points(), spec.choose, spec.primary
    if choose is not None:
        unsaid = [axis for axis in spec.varying() if axis not in (*choose.per, *choose.at)]
        if unsaid:
            raise at.below("choose").error(
                f"says nothing of axis {unsaid[0]}, which has several values in the grid",
                "add it to per (a choice for each value) or to at (where it is made)",
            )
        if spec.test == "fold" and "fold" not in choose.per:
            raise at.below("choose.per").error(
                "without fold, a choice would learn from folds that its trials are tested on",
                "add fold to per",
            )
        if spec.search is not None:
            raise at.below("search").error("options are chosen already", "use choose or search")
    for arm in primary.arms if primary is not None else ():
        assert primary is not None
        where = {**primary.where, primary.axis: arm}
        if not any(all(point[axis] == value for axis, value in where.items()) for point in points):
            told = ", ".join(f"{axis} {value}" for axis, value in where.items())
            odd = next((a for a, v in where.items() if v not in {point[a] for point in points}), primary.axis)
            there = dict.fromkeys(point[odd] for point in points)
            raise at.below("primary").error(
                f"no trial in the grid has {told}", f"{odd}: {nearest(where[odd], there)}"
            )
