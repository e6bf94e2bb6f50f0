"""How well two masks of one region agree: Dice, 95 % Hausdorff distance, difference in volume.

A mask is an array of any dtype; its foreground is what lies above `THRESHOLD`. Counts are Python integers,
so that no dtype can overflow, and no input is changed. Empty masks get a number too, by the challenges'
rules; `region_metrics` has beside it the value under the rule that excludes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

THRESHOLD = 0.5
"""Above it a value is foreground: the sigmoid threshold of the released inference code (`test.py`)."""

WORST_HD95_MM = 374.0
"""HD95 of a region or lesion that only one of the masks has: the penalty of the BraTS 2023 metrics
(rachitsaluja/BraTS-2023-Metrics), just above the diagonal of its 240 x 240 x 155 mm grid (373.1 mm)."""

_MANY_SURFACE_VOXELS = 200_000
# On 240 x 240 x 155 a distance transform takes 1.6 s, whatever the masks. Trees take 0.04 s for two compact
# tumours with a stray voxel far off, but 12 s for the noise of an untrained network.


def as_mask(values: np.ndarray) -> np.ndarray:
    """The foreground as bool; an array of bool as it is."""
    values = np.asarray(values)
    return values if values.dtype == bool else values > THRESHOLD


def union_box(a: np.ndarray, b: np.ndarray) -> tuple[slice, ...]:
    """The smallest box around the foreground of both; a single voxel where there is none."""
    found = ndimage.find_objects((as_mask(a) | as_mask(b)).view(np.uint8))
    return found[0] if found else (slice(0, 1),) * np.ndim(a)


def dice(truth: np.ndarray, prediction: np.ndarray) -> float:
    """2 |T and P| / (|T| + |P|); 1 where both are empty."""
    truth, prediction = as_mask(truth), as_mask(prediction)
    total = int(np.count_nonzero(truth)) + int(np.count_nonzero(prediction))
    return 2 * int(np.count_nonzero(truth & prediction)) / total if total else 1.0


def volume_difference(truth: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """|volume of T - volume of P| in mm3: voxels times the volume of one."""
    voxels = int(np.count_nonzero(as_mask(truth))) - int(np.count_nonzero(as_mask(prediction)))
    return abs(voxels) * math.prod(map(float, spacing_mm))


def hd95(truth: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """95 % Hausdorff distance in mm: 0 where both are empty, `WORST_HD95_MM` where one is.

    The surface of a mask is its voxels with a face neighbour outside it, or at the edge of the volume. From
    every surface voxel of one mask the distance to the nearest of the other is taken between centres; of
    these the 95th percentile (interpolated linearly); of the two directions the larger. So defines it
    `monai.metrics.compute_hausdorff_distance(percentile=95)`, which is not called because it always goes by
    trees (see above). The BraTS 2023 code weighs surface elements by their area instead, which moves the
    result by a fraction of a voxel.
    """
    truth, prediction = as_mask(truth), as_mask(prediction)
    empty = not truth.any(), not prediction.any()
    if any(empty):
        return 0.0 if all(empty) else WORST_HD95_MM
    box = union_box(truth, prediction)
    surfaces = [mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (truth, prediction)]
    return max(float(np.percentile(_distances(a, b, spacing_mm), 95)) for a, b in (surfaces, surfaces[::-1]))


def _distances(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """From every voxel of `a` to the nearest of `b`."""
    if np.count_nonzero(a) + np.count_nonzero(b) > _MANY_SURFACE_VOXELS:
        return ndimage.distance_transform_edt(~b, sampling=spacing_mm)[a]
    from_mm, to_mm = (np.argwhere(mask) * np.asarray(spacing_mm, np.float64) for mask in (a, b))
    return KDTree(to_mm).query(from_mm)[0]


def region_metrics(
    truth: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]
) -> dict[str, float]:
    """`dice`, `hd95` with NaN where they are excluded, and `dice_challenge`, `hd95_challenge`.

    Excluded are: Dice of a region that the truth does not have (MONAI's `DiceMetric(ignore_empty=True)`),
    HD95 where either mask is empty. The challenge counts both: Dice 1 and HD95 0 where both are empty, Dice 0
    and HD95 `WORST_HD95_MM` where one is.
    """
    truth, prediction = as_mask(truth), as_mask(prediction)
    there, found = bool(truth.any()), bool(prediction.any())
    overlap, distance = dice(truth, prediction), hd95(truth, prediction, spacing_mm)
    return {
        "dice": overlap if there else math.nan,
        "dice_challenge": overlap,
        "hd95": distance if there and found else math.nan,
        "hd95_challenge": distance,
    }
