"""What the runs of a study start from: named configurations of the jobs, with a study's options on top."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from brainfoundry.core.config import parse
from brainfoundry.core.errors import ConfigError
from brainfoundry.experiments.axes import nearest
from brainfoundry.training import presets, presets_finetune, presets_stage2
from brainfoundry.training.config import PretrainConfig, TrainConfig
from brainfoundry.training.finetune_config import FinetuneConfig

PRETRAIN: Mapping[str, Mapping[str, PretrainConfig]] = {
    "ukb": presets.PRESETS,
    "brats": presets_stage2.BRATS,
    "atlas": presets_stage2.ATLAS,
}
FINETUNE: Mapping[str, Mapping[str, FinetuneConfig]] = {
    "brats": presets_finetune.BRATS,
    "atlas": presets_finetune.ATLAS,
}
"""Recipe -> preset -> configuration."""

_AXIS_OF = {
    "data.fold": "fold", "data.share": "share", "data.draw": "draw", "model.size": "size",
    "model.objective": "objective", "model.family": "family", "init.checkpoint": "init",
    "init.ct_weights": "init",
}  # fmt: skip
_PLANNED = (
    "name", "storage", "resume", "dry_run", "job", "preset", "data.shards", "data.guard", "tracking.parent",
    "tracking.tags", "tracking.experiment",
)  # fmt: skip
"""Fields that the plan and the driver fill in."""

C = TypeVar("C", bound=TrainConfig)


def recipe(kinds: Mapping[str, Mapping[str, C]], name: str, preset: str) -> C:
    """A named configuration.

    Raises:
        ConfigError: no such recipe or preset.
    """
    if name not in kinds:
        raise ConfigError(f"unknown recipe {name!r}", fix=nearest(name, kinds))
    if preset not in kinds[name]:
        raise ConfigError(f"recipe {name} has no preset {preset!r}", fix=nearest(preset, kinds[name]))
    return kinds[name][preset]


def with_options(config: C, options: Mapping[str, Any]) -> C:
    """The configuration with options by their dotted names, checked as on the command line.

    Raises:
        ConfigError: no such field, a value of the wrong type, or a field that the study decides.
    """
    argv: list[str] = []
    for name, value in options.items():
        if name in _AXIS_OF:
            raise ConfigError(
                f"{name} is not an option here", fix=f"use the axis {_AXIS_OF[name]} of the grid"
            )
        if name in _PLANNED:
            raise ConfigError(f"{name} is not an option here", fix="leave it out: the study fills it in")
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            head, dot, last = flag.rpartition(".")
            argv.append(f"--{head}{dot}{last if value else f'no-{last}'}")
        elif isinstance(value, list | tuple):
            argv += [f"--{flag}", *map(str, value)]
        else:
            argv += [f"--{flag}", str(value)]
    return parse(type(config), argv, presets={"": config}, default_preset="") if argv else config
