"""A study from its YAML file, checked whole: each mistake is told with file, key and what would do.

spec = load_study("table9", preset="reference")        # one of ours, or the path of a user's own
len(spec.points()), spec.hash
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from string import Formatter
from typing import Any, Literal, TypeVar

import yaml

from brainfoundry.core.errors import ConfigError
from brainfoundry.experiments.axes import BASE, SCRATCH, nearest
from brainfoundry.experiments.questions import Names, check_questions, read_choose, read_primary, read_search
from brainfoundry.experiments.recipes import FINETUNE, PRETRAIN, recipe, with_options
from brainfoundry.experiments.study import (
    COMMAND_FIELDS,
    CT,
    TABLES,
    VERSION,
    Options,
    RunSpec,
    StageSpec,
    StudySpec,
)
from brainfoundry.experiments.study_file import Place, several, study_names, study_text, with_preset
from brainfoundry.models.families import family_names
from brainfoundry.pretext.base import available
from brainfoundry.tasks.segmentation import SWINUNETR
from brainfoundry.training.config import PretrainConfig, TrainConfig
from brainfoundry.training.finetune_config import FinetuneConfig
from brainfoundry.training.objectives import build_objective

__all__ = ["StudySpec", "load_study", "read_study", "study_names"]

_KEYS = (
    "version", "name", "title", "task", "tables", "notes", "stages", "finetune", "inits", "variants",
    "externals", "test", "grid", "choose", "primary", "search", "presets",
)  # fmt: skip
_PRETRAINING_AXES = ("size", "init", "objective", "modalities", "pretrain_seed")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]*")

_RESERVED = (CT, SCRATCH, "ft", "choice")

T = TypeVar("T")
R = TypeVar("R", bound=RunSpec)
C = TypeVar("C", bound=TrainConfig)
Recipes = Mapping[str, Mapping[str, C]]


class _Strict(yaml.SafeLoader):
    """YAML in which a key that stands twice is a mistake, not the loss of the first."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def load_study(name_or_path: str, preset: str = "") -> StudySpec:
    """A study by its name, or from a YAML file of the user's own.

    Args:
        preset: one of the file's `presets`, which replaces the keys it names.

    Raises:
        ConfigError: no such study, or something in its file that cannot be.
    """
    where, text = study_text(name_or_path)
    try:
        content = yaml.load(text, _Strict)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the study: {error}", file=where, fix="write it as YAML") from error
    return read_study(content, file=where, preset=preset)


def read_study(content: Any, *, file: str = "", preset: str = "") -> StudySpec:
    """A study from the plain values of its file, or of `StudySpec.to_dict`.

    Raises:
        ConfigError: something in it that cannot be.
    """
    at = Place(file or None)
    body = with_preset(at, at.mapping(content, _KEYS), preset, _KEYS)
    if body.get("version") != VERSION:
        raise at.error(f"version is {body.get('version')!r}", f"this program reads version {VERSION}")
    name = str(body.get("name", ""))
    if not _NAME.fullmatch(name):
        raise at.below("name").error(f"{name!r} cannot name a folder", "use letters, digits, - and _")
    return _Reader(at, body).study(name)


class _Reader:
    """Reads the parts of a study in the order in which they need each other."""

    def __init__(self, at: Place, body: Mapping[str, Any]) -> None:
        self._at, self._body = at, body
        self._finetune, self._config = self._read_finetune()
        self._task = self._read_task()
        self._pretraining: dict[str, PretrainConfig] = {}
        self._stages = self._read_stages()
        self._inits = self._read_inits()
        self._variants = self._read_variants()
        self._externals = self._read_externals()
        axes: Mapping[str, Collection[str]] = {
            "init": self._inits,
            "variant": self._variants,
            "objective": available(),
            "family": dict.fromkeys((*family_names(), *self._externals)),
        }
        self._names = Names(axes=axes, finetune=self._config, variants=self._variants)

    def study(self, name: str) -> StudySpec:
        """The study."""
        at_tables, tables = self._part("tables", [])
        spec = StudySpec(
            name=name,
            title=str(self._body.get("title") or name),
            task=self._task,
            tables=tuple(at_tables.one_of(table, TABLES) for table in several(tables)),
            notes=tuple(map(str, several(self._part("notes", [])[1]))),
            stages=self._stages,
            finetune=self._finetune,
            inits=self._inits,
            variants=self._variants,
            externals=self._externals,
            test=self._read_test(),
            grid=self._read_grid(),
            choose=self._asked("choose", read_choose),
            primary=self._asked("primary", read_primary),
            search=self._asked("search", read_search),
        )
        self._check(spec)
        return spec

    def _part(self, key: str, default: Any) -> tuple[Place, Any]:
        value = self._body.get(key)
        return self._at.below(key), default if value is None else value

    def _asked(self, key: str, read: Callable[[Place, Any, Names], T]) -> T | None:
        at, value = self._part(key, None)
        return None if value is None else read(at, value, self._names)

    def _run(self, at: Place, value: Any, kind: type[R], kinds: Recipes[C]) -> tuple[R, C]:
        values = at.mapping(value, [field.name for field in fields(kind)])
        for key in ("cohort", "recipe", "preset"):
            if not isinstance(values.get(key, "" if key == "preset" else None), str):
                raise at.error(f"no {key}", f"add {key}: NAME")
        run = kind(**values)
        with at.telling():
            config = recipe(kinds, run.recipe, run.preset)
        with at.below("options").telling():
            return run, with_options(config, at.below("options").mapping(run.options))

    def _read_finetune(self) -> tuple[RunSpec | None, FinetuneConfig | None]:
        at, value = self._part("finetune", None)
        return (None, None) if value is None else self._run(at, value, RunSpec, FINETUNE)

    def _read_task(self) -> str:
        trained = self._config.task.name if self._config is not None else ""
        at, task = self._part("task", trained)
        if task != trained:
            raise at.error(f"{task!r}, but finetune is of task {trained or 'none'}", "use one task in both")
        return str(task)

    def _read_stages(self) -> dict[str, StageSpec]:
        at, values = self._part("stages", {})
        stages: dict[str, StageSpec] = {}
        for name, value in at.mapping(values).items():
            here = at.below(name)
            if not _NAME.fullmatch(name) or name in _RESERVED:
                raise here.error(f"{name!r} cannot name a stage", "use other letters, digits, - and _")
            stage, self._pretraining[name] = self._run(here, value, StageSpec, PRETRAIN)
            here.below("subset").one_of(stage.subset, ("training", "labelled"))
            if stage.subset == "labelled" and stage.cohort != getattr(self._finetune, "cohort", None):
                raise here.below("subset").error(
                    f"labelled, but cohort {stage.cohort} is not that of finetune", "use subset: training"
                )
            stages[name] = stage
        return stages

    def _read_inits(self) -> dict[str, tuple[str, ...]]:
        at, values = self._part("inits", {})
        inits: dict[str, tuple[str, ...]] = {SCRATCH: ()}
        for name, chain in at.mapping(values).items():
            here, stages = at.below(name), tuple(several(chain))
            if stages != (CT,):
                for stage in stages:
                    here.one_of(stage, tuple(self._stages))
            if len(set(stages)) < len(stages) or (name == SCRATCH and stages):
                raise here.error(f"{list(stages)} is no chain", "name each stage once; scratch has none")
            inits[name] = stages
        return inits

    def _read_variants(self) -> dict[str, Options]:
        at, values = self._part("variants", {})
        variants: dict[str, Options] = {BASE: {}}
        for name, options in at.mapping(values).items():
            here = at.below(name)
            variants[name] = here.mapping(options or {})
            if not variants[name]:
                continue
            if self._config is None or name == BASE:
                raise here.error("has options", "variants are of finetune, and base is finetune as it is")
            with here.telling():
                with_options(self._config, variants[name])
        return variants

    def _read_externals(self) -> dict[str, str]:
        at, values = self._part("externals", {})
        for name, command in at.mapping(values).items():
            if name == SWINUNETR:
                raise at.error(f"{name} is trained here", "name another family")
            here = at.below(name)
            try:
                keys = [key for _, key, _, _ in Formatter().parse(str(command)) if key is not None]
            except ValueError as error:
                raise here.error(f"{error}", "write a brace of the command itself twice: {{ or }}") from None
            for key in keys:
                if key not in COMMAND_FIELDS:
                    fix = nearest(key, COMMAND_FIELDS)
                    raise here.error(
                        f"unknown value {key!r}", f"{fix} A brace of the command itself: {{{{ or }}}}"
                    )
        return {name: str(command) for name, command in values.items()}

    def _read_test(self) -> Literal["test", "fold"]:
        at, value = self._part("test", {})
        # YAML 1.1 reads the key `on` as true.
        if isinstance(value, dict):
            value = {"on" if key is True else key: one for key, one in value.items()}
        return at.one_of(at.mapping(value, ("on",)).get("on", "test"), ("test", "fold"))

    def _read_grid(self) -> tuple[dict[str, tuple[Any, ...]], ...]:
        at, blocks = self._part("grid", [])
        if not isinstance(blocks, list) or not blocks:
            raise at.error("no trials", "write blocks such as `- {init: [scratch, stage1], share: [5, 100]}`")
        grid = []
        for number, block in enumerate(blocks, 1):
            here = at.below(number)
            read = {axis: self._names.values(here, axis, one) for axis, one in here.mapping(block).items()}
            self._check_block(here, read)
            grid.append(read)
        return tuple(grid)

    def _check_block(self, at: Place, block: Mapping[str, tuple[Any, ...]]) -> None:
        inits = block.get("init", (SCRATCH,))
        others = [family for family in block.get("family", ()) if family != SWINUNETR]
        pretrained = [init for init in inits if self._inits[init] and self._inits[init] != (CT,)]
        if others and any(self._inits[init] for init in inits):
            raise at.error(
                f"family {others[0]} cannot start from an encoder of ours, as init {inits[-1]} has it",
                "put other families than swinunetr into a block of their own, with init scratch",
            )
        odd = [axis for axis in block if axis not in _PRETRAINING_AXES]
        if self._finetune is None and (odd or len(pretrained) < len(inits)):
            raise at.error(
                f"axis {odd[0]}, and no finetune" if odd else "trials without a stage, and no finetune",
                f"add finetune, or use the axes {', '.join(_PRETRAINING_AXES)} and inits of stages alone",
            )

    def _check(self, spec: StudySpec) -> None:
        """What only the parts together show."""
        for point in spec.points():
            if spec.test == "fold" and point["fold"] is None:
                raise self._at.below("test").error(
                    "on fold, but the grid has trials without one", "add fold: [0, 1, 2, 3, 4] to its blocks"
                )
            for stage in spec.stages_of(point):
                with self._at.below(f"stages.{stage}").telling():
                    options = self._pretraining[stage].model.objective_options
                    build_objective(point["objective"], options)
        check_questions(self._at, spec)
