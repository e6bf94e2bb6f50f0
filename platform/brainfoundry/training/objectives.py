"""From `name=value` options to an objective, whatever its options: a new one touches nothing here."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

import yaml

from brainfoundry.core.config import to_dict
from brainfoundry.core.errors import ConfigError
from brainfoundry.models.families import load_family
from brainfoundry.pretext.base import Objective, load_objective
from brainfoundry.tasks import segmentation
from brainfoundry.training.config import TrainConfig
from brainfoundry.training.finetune_config import FinetuneConfig


def objective_of(config: TrainConfig, scheme: str = "") -> Any:
    """What a run asks of its network.

    Args:
        scheme: label scheme of the masks, for a fine-tuning run.

    Returns:
        A `pretext.base.Objective`, or `tasks.segmentation.Objective`, whose loss also takes labels.

    Raises:
        ConfigError: unknown objective or option, or a scheme that the task cannot read.
    """
    if isinstance(config, FinetuneConfig):
        task = config.task
        settings = segmentation.SegmentationConfig(
            task=task.name, scheme=scheme, loss=task.loss, squared=task.squared, **to_dict(config.augment)
        )
        return segmentation.Objective(settings, network_of(config))
    return build_objective(config.model.objective, config.model.objective_options)


def network_of(config: FinetuneConfig) -> segmentation.NetworkSpec:
    """The network of a fine-tuning run, all its options settled.

    Raises:
        ConfigError: unknown family or option, or a value it refuses.
    """
    model = config.model
    options = {}
    if model.family != segmentation.SWINUNETR:
        options = load_family(model.family).settle(_values(model.family_options))
    return segmentation.NetworkSpec(family=model.family, options=options, crop=config.data.crop)


def _values(options: Sequence[str]) -> dict[str, Any]:
    """`name=value` texts as names and values."""
    values = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals:
            raise ConfigError(f"option {option!r} is not name=value", fix="write it as name=value")
        values[name] = yaml.safe_load(text)
    return values


def build_objective(name: str, options: Sequence[str] = ()) -> Objective:
    """The objective with its options.

    Args:
        name: file of brainfoundry.pretext.
        options: such as `("temperature=0.1", "contrast_scope=global")`; the rest keep their defaults.

    Raises:
        ConfigError: unknown objective, unknown option, or a value it refuses.
    """
    kind = load_objective(name)
    known = {field.name: field for field in dataclasses.fields(kind.Config)}
    values = _values(options)
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            raise ConfigError(
                f"{name} has no option {key!r}",
                fix=f"did you mean {close[0]}=...?" if close else f"options are {', '.join(known)}",
            )
        default = known[key].default
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            values[key] = value = float(value)
        if default is not dataclasses.MISSING and not isinstance(value, type(default)):
            raise ConfigError(f"{name}.{key} is {value!r}", fix=f"give a value like {default!r}")
    return kind(kind.Config(**values))


def options_of(objective: Objective) -> dict[str, Any]:
    """All options of an objective, for the card."""
    return dataclasses.asdict(objective.config)
