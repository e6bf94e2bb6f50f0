"""The lesion mask of a session: decoded, its labels checked, on the grid of the images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brainfoundry.cohorts.exclusions import ScanError
from brainfoundry.cohorts.labels import clean_labels, label_values
from brainfoundry.store.volume import Volume


class LabelGridMismatch(ScanError):
    """A mask on another grid than the images."""

    reason = "label_grid_mismatch"


@dataclass(frozen=True, kw_only=True)
class Mask:
    """One mask.

    Args:
        volume: as the file has it.
        labels_XYZ: uint8, RAS axes.
        values: the labels in it, ascending, without 0.
        file: where it came from, for messages.
    """

    volume: Volume
    labels_XYZ: np.ndarray
    values: tuple[int, ...]
    file: str


def read_mask(volume: Volume, *, file: str, subject: str) -> Mask:
    """The mask in a decoded volume; which scheme its labels belong to is not looked at here.

    Raises:
        LabelValues: numbers that are not within 1e-3 of a whole number from 0 to 255.
    """
    header = volume.header
    numbers = volume.raw_XYZ
    if (header.slope, header.inter) != (1.0, 0.0):
        numbers = numbers.astype(np.float64) * header.slope + header.inter
    labels = clean_labels(numbers, file=file, subject=subject)
    values = label_values(labels[labels != 0])  # counting few voxels, not nine million zeros
    return Mask(volume=volume, labels_XYZ=labels, values=values, file=file)
