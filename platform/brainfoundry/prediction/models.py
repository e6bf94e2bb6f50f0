"""The networks of a prediction: loaded once before workers do, and what they demand of a volume."""

from __future__ import annotations

from collections.abc import Sequence

from brainfoundry.inference.geometry import Space
from brainfoundry.training.card import Card
from brainfoundry.training.ensemble import Model, find_models, window_of
from brainfoundry.training.volumes import load_segmenter

__all__ = ["Model", "find_models", "load_check", "space_of", "window_of"]


def load_check(models: Sequence[Model]) -> None:
    """Load every network once and let it go: a damaged file is told here in one line, not by every worker.

    Raises:
        CheckpointError: which one, and why.
    """
    for model in models:
        load_segmenter(model.uri)


def space_of(card: Card) -> Space:
    """What a card demands of a volume."""
    # A whole volume is one crop: the statistics of its non-zero voxels are the scan's own.
    intensity = "zscore_nonzero" if card.intensity == "zscore_crop" else card.intensity
    return Space(
        modalities=card.modalities, feeds=card.feeds, intensity=intensity, spacing_mm=card.spacing_mm,
        template=card.space, skull_stripped=card.skull_stripped,
    )  # fmt: skip
