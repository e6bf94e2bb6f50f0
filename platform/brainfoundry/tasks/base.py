"""What a task is, and how one is found by name: regions out of labels, labels out of regions, scores."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from brainfoundry.cohorts import labels
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.core.plugins import Plugins
from brainfoundry.tasks.lesions import Connectivity, Lesion, lesion_table
from brainfoundry.tasks.overlap import as_mask, union_box


@dataclass(frozen=True, kw_only=True)
class Region:
    """A part of the anatomy that a network marks in a channel of its own.

    Args:
        name: as it ends the names of metrics, such as "et".
        labels: scheme -> the labels whose voxels together are the region.
    """

    name: str
    labels: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Regions of one kind of cohort, and how they are scored.

    An implementation is a file `brainfoundry/tasks/<name>.py` with an instance as its attribute `TASK`.

    Args:
        name: of the file.
        regions: in the order of the network's output channels; each knows every scheme.
        connectivity: neighbours through which two voxels belong to one lesion: 6, 18 or 26.
    """

    name: str
    regions: tuple[Region, ...]
    connectivity: Connectivity

    @property
    def schemes(self) -> tuple[str, ...]:
        """Label schemes (`cohorts/labels.py`) whose masks the task understands."""
        return tuple(self.regions[0].labels)

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the metrics that `score` always gives: those it gives of nothing."""
        nothing = np.zeros((len(self.regions), 1, 1, 1), bool)
        return tuple(self.measure(nothing, nothing, (1.0, 1.0, 1.0), lesionwise=False))

    def check_scheme(self, scheme: str) -> None:
        """Refuse a label scheme that the task does not understand: a `ConfigError` naming those it does."""
        labels.check_scheme(scheme)
        if scheme not in self.schemes:
            problem = f"task '{self.name}' does not understand masks of the label scheme {scheme!r}"
            raise ConfigError(problem, fix=f"use a cohort labelled as {' or '.join(self.schemes)}")

    def to_regions(self, labels_NDHW: torch.Tensor, scheme: str) -> torch.Tensor:
        """The training target: float32 (N, R, D, H, W), on the labels' device.

        A label outside the scheme counts as background: on a device, looking for one would make every step
        wait. Conversion (`store/`) and `score` hold masks against the scheme.
        """
        self.check_scheme(scheme)
        masks = (
            functools.reduce(torch.logical_or, (labels_NDHW == label for label in region.labels[scheme]))
            for region in self.regions
        )
        return torch.stack(list(masks), dim=1).float()

    def region_masks(
        self, labels_DHW: np.ndarray, scheme: str, *, file: object = None, subject: str | None = None
    ) -> np.ndarray:
        """The regions of one label map: bool (R, D, H, W).

        Raises:
            LabelValues: a value that is no label of the scheme; it names file and subject.
        """
        self.check_scheme(scheme)
        return self._masks(labels.clean_labels(labels_DHW, scheme, file=file, subject=subject), scheme)

    def _masks(self, clean_DHW: np.ndarray, scheme: str) -> np.ndarray:
        return np.stack([np.isin(clean_DHW, region.labels[scheme]) for region in self.regions])

    def to_labels(self, regions_RDHW: np.ndarray, scheme: str) -> np.ndarray:
        """The label map of marked regions (bool, or probabilities at 0.5): uint8 (D, H, W).

        Larger regions are written first and smaller ones over them, each as the label that no smaller one
        has: for tumours WT as 2, then TC as 1, then ET as 4 (3 from 2023 on), the order of the released code.
        A voxel of ET outside the predicted TC and WT is enhancing tumour all the same.
        """
        self.check_scheme(scheme)
        if len(regions_RDHW) != len(self.regions):
            names = ", ".join(region.name for region in self.regions)
            raise ValueError(f"{len(regions_RDHW)} channels for the regions {names}")
        written_DHW = np.zeros(regions_RDHW.shape[1:], np.uint8)
        sizes = [len(region.labels[scheme]) for region in self.regions]
        for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
            smaller = [
                r.labels[scheme] for r, size in zip(self.regions, sizes, strict=True) if size < sizes[index]
            ]
            (label,) = set(self.regions[index].labels[scheme]).difference(*smaller)
            written_DHW[as_mask(regions_RDHW[index])] = label
        return written_DHW

    def score(
        self,
        truth_DHW: np.ndarray,
        prediction_DHW: np.ndarray,
        spacing_mm: Sequence[float],
        scheme: str,
        *,
        lesionwise: bool = False,
        subject: str | None = None,
    ) -> dict[str, float]:
        """The metrics of one subject, by name. The inputs are not changed.

        Args:
            truth_DHW: label map of any dtype.
            prediction_DHW: the same of the model (`to_labels`), on the same grid.
            spacing_mm: size of a voxel along D, H and W.
            scheme: of both maps.
            lesionwise: also the metrics lesion by lesion, where the task has them.
            subject: whom an error names.

        Raises:
            DataError: maps on different grids, a spacing that is none, or a label outside the scheme.
        """
        self.check_scheme(scheme)
        if truth_DHW.ndim != 3 or truth_DHW.shape != prediction_DHW.shape:
            problem = f"truth has the shape {truth_DHW.shape}, prediction {prediction_DHW.shape}"
            raise DataError(problem, subject=subject, fix="bring the prediction onto the grid of the scan")
        spacing = [float(size) for size in spacing_mm]
        if len(spacing) != 3 or not all(math.isfinite(size) and size > 0 for size in spacing):
            problem = f"spacing {spacing} is not three positive numbers of mm"
            raise DataError(problem, subject=subject, fix="take it from the header of the scan")
        truth = labels.clean_labels(truth_DHW, scheme, file="the truth", subject=subject)
        prediction = labels.clean_labels(prediction_DHW, scheme, file="the prediction", subject=subject)
        # Nothing that is measured lies outside the box, so that cutting to it changes no score.
        box = union_box(truth, prediction)
        truth_RDHW, prediction_RDHW = self._masks(truth[box], scheme), self._masks(prediction[box], scheme)
        return self.measure(truth_RDHW, prediction_RDHW, spacing, lesionwise=lesionwise)

    @abstractmethod
    def measure(
        self,
        truth_RDHW: np.ndarray,
        prediction_RDHW: np.ndarray,
        spacing_mm: Sequence[float],
        *,
        lesionwise: bool,
    ) -> dict[str, float]:
        """What `score` returns, from the regions as bool masks."""

    @abstractmethod
    def policies(self) -> Mapping[str, str]:
        """What every table of scores states: `threshold`, `empty_policy`, and definitions of metrics."""

    def lesion_table(self, labels_DHW: np.ndarray, affine: np.ndarray, scheme: str) -> list[Lesion]:
        """The lesions of every region of a label map; see `lesions.lesion_table`."""
        masks_RDHW = self.region_masks(labels_DHW, scheme)
        return [
            lesion
            for region, mask_DHW in zip(self.regions, masks_RDHW, strict=True)
            for lesion in lesion_table(mask_DHW, affine, region.name, connectivity=self.connectivity)
        ]


_TASKS = Plugins[Task](
    package="brainfoundry.tasks", attribute="TASK", what="task",
    accepts=lambda found: isinstance(found, Task),
)  # fmt: skip


def available() -> list[str]:
    """Names of the tasks that are there."""
    return _TASKS.names()


def load_task(name: str) -> Task:
    """The `TASK` of the file `brainfoundry/tasks/<name>.py`.

    Raises:
        ConfigError: there is no such file, or no task in it; the message lists those that are there.
    """
    return _TASKS.load(name)


def readers_of(scheme: str) -> list[str]:
    """Names of the tasks that understand masks of a label scheme."""
    return [name for name in available() if scheme in load_task(name).schemes]
