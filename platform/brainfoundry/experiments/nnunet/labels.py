"""A task's labels in nnU-Net's numbers: consecutive, larger regions first; regions are sets of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from brainfoundry.cohorts.labels import clean_labels
from brainfoundry.core.errors import DataError
from brainfoundry.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Numbering:
    """Which number of nnU-Net's stands for which label.

    BraTS 2021 becomes what nnU-Net's own Dataset137 is: 2 -> 1, 1 -> 2, 4 -> 3, and the regions wt (1, 2, 3),
    tc (2, 3) and et (3).

    Args:
        labels: our label of nnU-Net's number i + 1. Labels of no region (the cavity of
            brats2024) are background.
        regions: name -> nnU-Net's numbers, largest region first.
    """

    labels: tuple[int, ...]
    regions: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, task: Task, scheme: str) -> Numbering:
        """The numbering of a task's regions.

        Raises:
            ConfigError: the task does not understand the scheme.
        """
        task.check_scheme(scheme)
        regions = sorted(task.regions, key=lambda region: -len(region.labels[scheme]))
        labels: list[int] = []
        for index, region in enumerate(regions):
            smaller = [other.labels[scheme] for other in regions[index + 1 :]]
            (label,) = set(region.labels[scheme]).difference(*smaller)
            labels.append(label)
        number = {label: index + 1 for index, label in enumerate(labels)}
        return cls(
            labels=tuple(labels),
            regions={r.name: tuple(sorted(number[label] for label in r.labels[scheme])) for r in regions},
        )

    def dataset_json(self) -> dict[str, Any]:
        """`labels` and, where there are several regions, `regions_class_order` of dataset.json.

        Their order counts: nnU-Net writes the regions one over the other as they stand.
        """
        if len(self.regions) == 1:  # plain labels: nnU-Net trains a softmax
            return {"labels": {"background": 0, **dict.fromkeys(self.regions, 1)}}
        return {
            "labels": {"background": 0, **{name: list(numbers) for name, numbers in self.regions.items()}},
            "regions_class_order": list(range(1, len(self.labels) + 1)),
        }

    def encode(self, labels_DHW: np.ndarray) -> np.ndarray:
        """Our label map (uint8) in nnU-Net's numbers."""
        table = np.zeros(256, np.uint8)
        table[list(self.labels)] = range(1, len(self.labels) + 1)
        found: np.ndarray = table[labels_DHW]
        return found

    def decode(self, numbers_DHW: np.ndarray, *, file: object, subject: str) -> np.ndarray:
        """nnU-Net's label map in our labels (uint8).

        Raises:
            DataError: a number that none of our labels has.
        """
        numbers = clean_labels(numbers_DHW, file=file, subject=subject)
        if numbers.size and numbers.max() > len(self.labels):
            raise DataError(
                f"prediction holds {int(numbers.max())}, nnU-Net's numbers here are 0 to {len(self.labels)}",
                file=file, subject=subject, fix="predict with the dataset.json of this export",
            )  # fmt: skip
        found: np.ndarray = np.array((0, *self.labels), np.uint8)[numbers]
        return found
