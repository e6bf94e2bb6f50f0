"""From a study and its cohorts to the runs it takes: each once, ancestors first. Pure: nothing is started.

Two trials share an ancestor that agrees in all it depends on: size, objective, modalities and
`pretrain_seed`; on the cohort of the fine-tuning also the fold, which it holds out as its trials do; with
`subset: labelled` also share and draw. It is guarded against the test sets of all trials that come of it.

A run's name ends in a hash of what decides its result (the options that are not at their default, its
cohort's manifest, its parents, the test set), so that a grid that is widened keeps the runs that are
finished. Where shards and runs lie, and what they run on, does not count.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any, Literal

from brainfoundry.core import files
from brainfoundry.core.config import to_dict
from brainfoundry.core.errors import ConfigError
from brainfoundry.core.rng import hash64_int, key_of
from brainfoundry.experiments.axes import ALL, DEFAULTS, Point, channels, matches, named, parse_only, safe
from brainfoundry.experiments.cohort import CohortInfo
from brainfoundry.experiments.given import Given, given_for
from brainfoundry.experiments.node import Node, TestSet, waves
from brainfoundry.experiments.recipes import FINETUNE, PRETRAIN, recipe, with_options
from brainfoundry.experiments.records import StudyFolder
from brainfoundry.experiments.study import CT, Options, RunSpec, StudySpec
from brainfoundry.tasks.segmentation import SWINUNETR
from brainfoundry.training.config import TrainConfig
from brainfoundry.training.finetune_config import FinetuneConfig
from brainfoundry.training.objectives import build_objective, network_of

# Of a configuration: where, what on and how loudly it runs; and what the hash knows by other names.
_NOT_RESULT = ("name", "storage", "resume", "dry_run", "job", "preset", "cluster", "tracking", "probe")
_NOT_RESULT_OF = {
    "data": ("shards", "guard", "allow_leak"),
    "init": ("checkpoint", "ct_weights"),
    "keep": ("keep_last", "log_every", "pictures", "validation"),
}
_DIGITS = 6
_ROLES = ("ancestor", "choice", "trial")

__all__ = ["Node", "TestSet", "plan_study"]


def plan_study(
    spec: StudySpec,
    cohorts: Mapping[str, CohortInfo],
    storage: str,
    *,
    weights: Mapping[str, str] | None = None,
    given: Mapping[str, Sequence[Given]] | None = None,
    only: Sequence[str] = (),
) -> tuple[Node, ...]:
    """The runs of a study, those that others wait for first.

    Args:
        cohorts: the study's names -> shard sets.
        storage: folder or URI of studies; this one lies in STORAGE/NAME.
        weights: files of the user's: `ct`, for `--init.ct-weights`. Without it such trials are external.
        given: stage -> checkpoints that take its place; what comes before it is not run either.
        only: `axis=value` texts: plan no other trials, and only the ancestors that these need.

    Raises:
        ConfigError: a cohort that is not named, or that lacks a fold, subset, split or modality; an option
            that no run can have.
    """
    planner = _Planner(spec, cohorts, storage, weights or {}, given or {})
    points = spec.points()
    wanted = parse_only(only, points)
    chosen = [point for point in points if matches(point, wanted)]
    if not chosen:
        raise ConfigError(
            f"no trial of study {spec.name} has all of --only {' '.join(only)}",
            fix="name fewer axes: a trial must have one of the values of every axis that is named",
        )
    for point in chosen:
        planner.trial(point)
    return planner.nodes()


class _Planner:
    """Makes nodes, each once."""

    def __init__(
        self,
        spec: StudySpec,
        cohorts: Mapping[str, CohortInfo],
        storage: str,
        weights: Mapping[str, str],
        given: Mapping[str, Sequence[Given]],
    ) -> None:
        self._spec, self._cohorts, self._weights, self._given = spec, cohorts, weights, given
        self._folder = StudyFolder(name=spec.name, uri=files.join(files.absolute(storage), spec.name))
        self._nodes: dict[str, Node] = {}
        self._tests: dict[str, TestSet] = {}
        self._configs: dict[str, Any] = {}
        self._shares = {point["share"] for point in spec.points()}

    def nodes(self) -> tuple[Node, ...]:
        """All of them by depth, pretraining guarded against the test sets of what comes of it."""
        guards: dict[str, dict[str, None]] = defaultdict(dict)
        for name, test in self._tests.items():
            waiting = list(self._nodes[name].parents)
            while waiting:
                parent = waiting.pop()
                guards[parent][test.guard] = None
                waiting += self._nodes[parent].parents
        for name, tests in guards.items():
            node = self._nodes[name]
            data = replace(node.config.data, guard=tuple(tests))
            self._nodes[name] = replace(node, config=replace(node.config, data=data))
        first = sorted(self._nodes.values(), key=lambda node: _ROLES.index(node.role))
        return tuple(node for wave in waves(first) for node in wave)

    def trial(self, point: Point) -> None:
        """A trial with everything that it needs."""
        if self._spec.finetune is None:
            last = self._pretrained(self._spec.stages_of(point), point)
            self._nodes[last] = replace(self._nodes[last], role="trial")
            return
        self._finetuned(point, "trial", chosen=self._choices(point))

    # --- pretraining

    def _pretrained(self, stages: Sequence[str], point: Point) -> str:
        """The node of the last of these stages, with those before it."""
        spec, name = self._spec, stages[-1]
        stage = spec.stages[name]
        chain = next((init for init, found in spec.inits.items() if found == tuple(stages)), "+".join(stages))
        if name in self._given:
            return self._given_for(name, chain, point)
        parents = (self._pretrained(stages[:-1], point),) if len(stages) > 1 else ()
        # Whatever a stage before depends on, this one does.
        own = {**DEFAULTS, "init": chain}
        for axis in ("size", "objective", "modalities", "pretrain_seed"):
            own[axis] = point[axis]
        for earlier in parents:
            own |= {axis: self._nodes[earlier].point[axis] for axis in ("fold", "share", "draw")}
        of_task = spec.finetune is not None and stage.cohort == spec.finetune.cohort
        if of_task:
            own["fold"] = point["fold"]
        labelled = stage.subset == "labelled" and point["share"] != 100
        if labelled:
            own |= {axis: point[axis] for axis in ("share", "draw")}
        info = self._cohort(stage, own["modalities"])
        fold = own["fold"] if of_task else None
        share, draw = (own["share"], own["draw"]) if labelled else (100, 0)
        info.check_fold(fold)
        info.check_share(share, draw, self._shares)
        config = self._config(PRETRAIN, stage, {})
        config = replace(
            config,
            data=_data(
                config.data, own, info, fold=fold, share=share, draw=draw, seeds=(own["pretrain_seed"],)
            ),
            model=replace(config.model, size=own["size"], objective=own["objective"]),
        )
        self._check(own, config, parents)
        build_objective(config.model.objective, config.model.objective_options).check_crop(config.data.crop)
        return self._add(
            named(own, safe(name)), info, kind="pretrain", role="ancestor", point=own, config=config,
            parents=parents, subjects=info.training(fold, share),
        )  # fmt: skip

    def _given_for(self, name: str, chain: str, point: Point) -> str:
        """The node of a checkpoint of the user's in a stage's place."""
        found = given_for(self._given[name], point)
        own = {**DEFAULTS, "init": chain} | {
            axis: point[axis] for axis in ("size", "objective", "modalities")
        }
        node = found.node(
            f"{named(own, safe(name))}-{found.digest[:_DIGITS]}",
            own,
            self._config(PRETRAIN, self._spec.stages[name], {}),
        )
        self._nodes[node.id] = node
        return node.id

    # --- fine-tuning

    def _finetuned(
        self,
        point: Point,
        role: Literal["choice", "trial"],
        *,
        chosen: Mapping[str, Options] | None = None,
        options: Options | None = None,
    ) -> str:
        """The node of a trial; or of a choice, with the options that it tries."""
        spec, run = self._spec, self._spec.finetune
        assert run is not None
        stages = spec.stages_of(point)
        parents = (self._pretrained(stages, point),) if stages else ()
        info = self._cohort(run, point["modalities"])
        info.check_task(spec.task)
        info.check_fold(point["fold"])
        info.check_share(point["share"], point["draw"], self._shares)
        test = TestSet(shards=info.uri, fold=point["fold"] if spec.test == "fold" else None)
        if test.fold is None:
            info.check_test()
        config = self._config(FINETUNE, run, {**spec.variants[point["variant"]], **(options or {})})
        family = point["family"]
        config = replace(
            config,
            data=_data(
                config.data, point, info, fold=point["fold"], share=point["share"], draw=point["draw"],
                seeds=(point["seed"], point["draw"]),
            ),
            model=replace(config.model, family=family)
            if family != SWINUNETR
            else replace(config.model, size=point["size"]),
        )  # fmt: skip
        ct = spec.inits[point["init"]] == (CT,)
        if ct and CT in self._weights:
            config = replace(config, init=replace(config.init, ct_weights=files.absolute(self._weights[CT])))
        self._check(point, config, parents, external=family in spec.externals)
        text = named(point)
        if options:
            tried = "-".join(f"{name.rpartition('.')[2]}{_brief(value)}" for name, value in options.items())
            text = safe(f"choice-{text.removeprefix('ft-')}-{tried}")
        name = self._add(
            text, info, kind="finetune", role=role, point=dict(point), config=config, parents=parents,
            chosen=dict(chosen or {}), chosen_by=spec.choose.by if spec.choose is not None and chosen else "",
            test=test if role == "trial" else None, subjects=info.training(point["fold"], point["share"]),
            marks={
                "ct": ct,
                "test": [test.split, test.fold],
                "search": asdict(spec.search) if spec.search is not None and role == "trial" else None,
            },
        )  # fmt: skip
        self._tests[name] = test
        command = self._command(point)
        if command:
            self._nodes[name] = self._external(self._nodes[name], command, test)
        return name

    def _command(self, point: Point) -> str:
        """What fills a trial that is not run here; "" of all others."""
        if self._spec.inits[point["init"]] == (CT,) and CT not in self._weights:
            return f"this study's own command with --weights {CT}=FILE, such as MONAI's model_swinvit.pt"
        return self._spec.externals.get(point["family"], "")

    def _external(self, node: Node, command: str, test: TestSet) -> Node:
        data = node.config.data
        values = {
            "id": node.id, "study": self._folder.uri, "shards": test.shards, "split": test.split,
            "fold": data.fold, "share": f"{data.share:g}", "draw": data.draw, "seed": data.seed,
            "steps": node.config.in_steps(node.subjects).optim.steps,
        }  # fmt: skip
        return replace(node, kind="external", command=command.format(**values))

    def _choices(self, point: Point) -> dict[str, Options]:
        """The choice nodes of a trial, and the options that each tries."""
        choose = self._spec.choose
        if choose is None or self._command(point):
            return {}
        found: dict[str, Options] = {}
        tried = [
            dict(zip(choose.options, values, strict=True)) for values in product(*choose.options.values())
        ]
        for options in tried:
            for values in product(*choose.at.values()):
                at = {**point, **dict(zip(choose.at, values, strict=True))}
                at |= {axis: point[axis] for axis in choose.per}
                at = self._spec.settled(at)
                self._check_choice(at)
                found[self._finetuned(at, "choice", options=options)] = options
        return found

    def _check_choice(self, point: Point) -> None:
        """Refuse to choose on a fold that is tested, or on nobody."""
        run = self._spec.finetune
        assert run is not None
        info = self._cohort(run, point["modalities"])
        held_out = point["fold"] is not None and self._spec.test == "test"
        if not held_out and not info.has_split("val", point["fold"]):
            raise ConfigError(
                f"study {self._spec.name} chooses options by validation, and nobody but the test set is held "
                "out",
                file=info.uri,
                fix=f"give the cohort a val split: {info.split_command(val='0.1')}; or leave choose out",
            )

    # --- what both need

    def _cohort(self, run: RunSpec, modalities: str) -> CohortInfo:
        if run.cohort not in self._cohorts:
            there = ", ".join(self._cohorts) or "none"
            raise ConfigError(
                f"study {self._spec.name} needs cohort {run.cohort}; named are: {there}",
                fix=f"add {run.cohort}=URI of its shard set to --cohorts (jobs/prepare_{run.recipe}.py makes "
                "one)",
            )
        info = self._cohorts[run.cohort]
        info.check_modalities(modalities)
        return info

    def _config(self, kinds: Mapping[str, Any], run: RunSpec, options: Options) -> Any:
        """Recipe, preset and options; each parsed once."""
        key = json.dumps([kinds is FINETUNE, run.recipe, run.preset, dict(run.options), dict(options)])
        if key not in self._configs:
            base = recipe(kinds, run.recipe, run.preset)
            self._configs[key] = with_options(with_options(base, run.options), options)
        return self._configs[key]

    def _check(
        self, point: Point, config: TrainConfig, parents: Sequence[str], *, external: bool = False
    ) -> None:
        """Refuse what could never run."""
        told = ", ".join(f"{axis} {value}" for axis, value in point.items() if value != DEFAULTS[axis])
        try:
            config.check()
            for merging in (self._nodes[name].config.model.merging for name in parents):
                if merging != config.model.merging:
                    raise ConfigError(
                        f"merging {merging} in the run it starts from, {config.model.merging} here",
                        fix="use presets that agree, or set model.merging in the options of both",
                    )
            if isinstance(config, FinetuneConfig) and not external:
                network_of(config).check_crop(config.data.crop)
        except ConfigError as error:
            whose = f"trials with {told or 'all axes at their default'}"
            raise ConfigError(f"{error.problem} ({whose})", fix=error.fix) from None

    def _add(
        self, text: str, info: CohortInfo, *, config: Any, marks: Mapping[str, Any] | None = None, **what: Any
    ) -> str:
        """Name the node, place its run and keep it; returns its id."""
        chosen = sorted(what.get("chosen", ()))
        decides = [what["kind"], _results(config), info.identity, what["parents"], chosen, marks]
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:_DIGITS]
        name = f"{text}-{digest}"
        if name not in self._nodes:
            init = config.init
            if what["parents"]:
                init = replace(init, checkpoint=self._weights_of(what["parents"][-1]))
            config = replace(config, name=name, storage=self._folder.runs, init=init)
            self._nodes[name] = Node(id=name, config=config, **what)
        return name

    def _weights_of(self, name: str) -> str:
        """Where a run finds the weights of its parent."""
        given = self._nodes[name].kind == "given"
        return str(self._nodes[name].config.init.checkpoint) if given else files.join(self._folder.runs, name)


def _data(
    data: Any,
    point: Point,
    info: CohortInfo,
    *,
    fold: int | None,
    share: float,
    draw: int,
    seeds: Sequence[int],
) -> Any:
    """Whose scans a run reads, in which channels and order.

    The draw of a few-shot subset is also one of the order, the crops and the weights that are not handed
    on, so that draws of all labels differ too; trials of one draw share them, whatever else they differ in.
    """
    seed = hash64_int(data.seed, key_of("study"), *seeds) >> 1 if any(seeds) else data.seed
    changed: dict[str, Any] = {}
    if point["modalities"] != ALL:
        changed["modalities"], changed["feed"] = channels(point["modalities"])
    return replace(data, shards=info.uri, fold=fold, share=float(share), draw=draw, seed=seed, **changed)


def _results(config: TrainConfig) -> dict[str, Any]:
    """The options that decide a run's result, as far as they are not at their default."""
    found: dict[str, Any] = {}
    defaults = to_dict(type(config)())
    for section, value in to_dict(config).items():
        if section in _NOT_RESULT:
            continue
        left_out = _NOT_RESULT_OF.get(section, ())
        found |= {
            f"{section}.{name}": one
            for name, one in value.items()
            if name not in left_out and one != defaults[section][name]
        }
    return found


def _brief(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
