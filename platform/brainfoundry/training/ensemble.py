"""Fine-tuned networks whose probabilities can be averaged: found, and held against each other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from brainfoundry.core.errors import CheckpointError, ConfigError
from brainfoundry.models.families import load_family
from brainfoundry.tasks.segmentation import SWINUNETR
from brainfoundry.training.card import Card
from brainfoundry.training.checkpoint import read_card
from brainfoundry.training.initialise import find_checkpoint

_ALIKE = ("task", "modalities", "feeds", "intensity", "spacing_mm", "orientation", "space", "skull_stripped")
"""Fields of the cards that networks of one ensemble share, in the order in which a difference is named."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A fine-tuned checkpoint.

    Args:
        sha256: of its card, which holds the checksums of all its files. Its validation scores are left out:
            a run may add them later.
    """

    uri: str
    card: Card
    sha256: str

    def about(self) -> dict[str, Any]:
        """What a mask's file says of it."""
        return {
            "uri": self.uri, "card_sha256": self.sha256, "run": self.card.run, "step": self.card.step,
            "size": self.card.label, "git_commit": self.card.git_commit,
        }  # fmt: skip


def find_models(uris: Sequence[str]) -> tuple[Model, ...]:
    """The checkpoints that runs or checkpoint folders mean, fit to be averaged.

    Raises:
        ConfigError: none was named, or one twice.
        CheckpointError: no checkpoint, none of a segmentation network, or two that do not go together.
    """
    if not uris:
        raise ConfigError("no checkpoint was named", fix="give a fine-tuned run with --checkpoint")
    models = tuple(_read(find_checkpoint(uri)) for uri in uris)
    if len({model.sha256 for model in models}) < len(models):
        raise ConfigError("a checkpoint was named twice", fix="name each once")
    first = models[0]
    for model in models[1:]:
        for name in _ALIKE:
            mine, other = getattr(model.card, name), getattr(first.card, name)
            if mine != other:
                raise CheckpointError(
                    f"checkpoints cannot be averaged: {name} is {mine!r} here and {other!r} in {first.uri}",
                    file=model.uri,
                    fix="use each on its own",
                )
    return models


def window_of(models: Sequence[Model], asked: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """The window: as asked, else the crop that all were trained on.

    Raises:
        ConfigError: they were trained on different ones, or one of them cannot take it.
    """
    crops = {model.card.crop for model in models}
    if asked is None and len(crops) > 1:
        shown = " and ".join(sorted("x".join(map(str, crop)) for crop in crops))
        raise ConfigError(f"the checkpoints were trained on crops of {shown}", fix="choose one with --window")
    window = asked or models[0].card.crop
    for card in (model.card for model in models if model.card.family != SWINUNETR):
        family = load_family(card.family)
        family.check_crop(window)
        if family.fixed_crop and window != card.crop:
            shown = "x".join(map(str, card.crop))
            raise ConfigError(
                f"{family.name} was trained on crops of {shown} and takes no other", fix=f"--window {shown}"
            )
    return window


def _read(uri: str) -> Model:
    card = read_card(uri)
    if not card.task:
        raise CheckpointError(
            f"a checkpoint of stage {card.stage}, which has learnt no masks", file=uri,
            fix="fine-tune it first (jobs/finetune_brats.py), and name that run",
        )  # fmt: skip
    return Model(uri=uri, card=card, sha256=hashlib.sha256(replace(card, metrics={}).to_json()).hexdigest())
