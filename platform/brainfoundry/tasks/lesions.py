"""Lesions as connected components: how many were found, how well each, and a table of them.

Two rules of matching, of two challenges:

- ATLAS v2.0 (`count_difference`, `lesion_f1`; npnl/atlas2_grand_challenge, `isles/scoring.py` at 55b9524):
  face neighbours make a lesion, one shared voxel makes a hit, nothing is too small.
- BraTS 2023 (`lesionwise`; rachitsaluja/BraTS-2023-Metrics): near lesions of the truth are one, small ones
  have no say, and a miss or a false lesion costs as much as the worst hit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
from scipy import ndimage

from brainfoundry.tasks.overlap import WORST_HD95_MM, as_mask, dice, hd95, union_box

Connectivity = Literal[6, 18, 26]
"""Neighbours of a voxel: those sharing a face; or an edge too; or a corner too."""

_RANK: dict[int, int] = {6: 1, 18: 2, 26: 3}


class Lesion(TypedDict):
    """One row of a lesion table."""

    region: str
    lesion: int
    """1 is the largest of its region."""
    voxels: int
    volume_mm3: float
    centroid_mm: tuple[float, float, float]
    """x, y, z in the world of the affine (NIfTI: RAS, mm)."""


def components(mask: np.ndarray, connectivity: Connectivity) -> tuple[np.ndarray, int]:
    """The connected components numbered from 1 (background 0), and how many there are."""
    return ndimage.label(as_mask(mask), ndimage.generate_binary_structure(3, _RANK[connectivity]))


def _touched(numbered: np.ndarray, count: int, where: np.ndarray) -> np.ndarray:
    """For each component 1..count: does it have a voxel in `where`?"""
    found = np.zeros(count + 1, bool)
    found[numbered[where]] = True
    return found[1:]


def count_difference(truth: np.ndarray, prediction: np.ndarray) -> int:
    """|lesions of T - lesions of P|, lesions by face neighbours, wherever they lie."""
    return abs(components(truth, 6)[1] - components(prediction, 6)[1])


def lesion_f1(truth: np.ndarray, prediction: np.ndarray) -> float:
    """tp / (tp + (fp + fn) / 2) of lesions by face neighbours; 1 where both masks are empty.

    tp and fn are lesions of the truth with and without a predicted voxel, fp are predicted ones without a
    voxel of the truth. So one prediction across two lesions finds both, and fragments in one are one hit.
    """
    truth, prediction = as_mask(truth), as_mask(prediction)
    found = _touched(*components(truth, 6), prediction)
    right = _touched(*components(prediction, 6), truth)
    tp, fn, fp = int(found.sum()), int((~found).sum()), int((~right).sum())
    return tp / (tp + (fp + fn) / 2) if tp + fp + fn else 1.0


@dataclass(frozen=True, kw_only=True)
class LesionRule:
    """What BraTS 2023 varies from tumour to tumour; the defaults are for glioma.

    Args:
        dilations: of the truth by the 3x3x3 cube without its corners, one after another.
        min_volume_mm3: lesions of the truth up to this volume are not scored.
    """

    dilations: int = 3
    min_volume_mm3: float = 50.0


GLIOMA = LesionRule()


@dataclass(frozen=True, kw_only=True)
class LesionwiseScores:
    """Means over the lesions of the truth and the false ones of the prediction.

    Args:
        dice: 1 where there is neither.
        hd95: in mm; 0 where there is neither.
        lesions: lesions of the truth that were large enough to be scored.
        false: predicted lesions that belong to none of the truth.
    """

    dice: float
    hd95: float
    lesions: int
    false: int


def lesionwise(
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float],
    rule: LesionRule = GLIOMA,
) -> LesionwiseScores:
    """Dice and HD95 lesion by lesion, as BraTS 2023 and later define them.

    1. The truth is dilated; voxels of the truth in one 26-connected component of the dilated mask are one
       lesion. Predicted lesions are the 26-connected components of the prediction as it is.
    2. A predicted lesion belongs to every lesion whose own dilation it touches. A lesion is compared with all
       predicted lesions that belong to it, whole. With none its Dice is 0 and its HD95 `WORST_HD95_MM`.
    3. Lesions of at most `rule.min_volume_mm3` are not scored, but what belongs to them is not false either.
    4. A predicted lesion that belongs to none, however small, is false: Dice 0 and HD95 `WORST_HD95_MM`.
    5. The score is the mean over scored and false lesions.

    Source: `get_LesionWiseScores` and `get_LesionWiseResults` of rachitsaluja/BraTS-2023-Metrics. HD95 is
    this package's (`overlap.hd95`), not its area-weighted one.
    """
    dilations = rule.dilations
    box = union_box(truth, prediction)
    truth, prediction = as_mask(truth)[box], as_mask(prediction)[box]
    predicted, n_predicted = components(prediction, 26)
    lesions = np.where(truth, components(_dilated(truth, dilations), 26)[0], 0)
    belongs = np.zeros(n_predicted, bool)
    scores = []
    for number, place in enumerate(ndimage.find_objects(lesions), 1):
        around = tuple(slice(max(0, axis.start - dilations), axis.stop + dilations) for axis in place)
        near = _dilated(lesions[around] == number, dilations)
        own = _touched(predicted[around], n_predicted, near)
        belongs |= own
        lesion = lesions == number
        if np.count_nonzero(lesion) * math.prod(map(float, spacing_mm)) <= rule.min_volume_mm3:
            continue
        match = np.concatenate([[False], own])[predicted]
        scores.append((dice(lesion, match), hd95(lesion, match, spacing_mm)))
    false = int((~belongs).sum())
    if not scores and not false:
        return LesionwiseScores(dice=1.0, hd95=0.0, lesions=0, false=0)
    dices, distances = np.array(scores + [(0.0, WORST_HD95_MM)] * false).T
    return LesionwiseScores(
        dice=float(dices.mean()), hd95=float(distances.mean()), lesions=len(scores), false=false
    )


def _dilated(mask: np.ndarray, times: int) -> np.ndarray:
    if not times:  # SciPy reads 0 as "until nothing changes"
        return mask
    return ndimage.binary_dilation(mask, ndimage.generate_binary_structure(3, 2), iterations=times)


def lesion_table(
    mask_DHW: np.ndarray, affine: np.ndarray, region: str = "lesion", *, connectivity: Connectivity = 6
) -> list[Lesion]:
    """The lesions of one mask, largest first; equally large ones in the order of their first voxel.

    Args:
        affine: of the mask's grid, voxel to world (4 x 4).
        region: name of what is marked.
        connectivity: 6 counts as ATLAS does, 26 as BraTS.
    """
    box = union_box(mask_DHW, mask_DHW)
    numbered, count = components(as_mask(mask_DHW)[box], connectivity)
    at = np.nonzero(numbered)
    which = numbered[at]
    voxels = np.bincount(which, minlength=count + 1)[1:]
    sums = [np.bincount(which, weights=axis, minlength=count + 1)[1:] for axis in at]
    corner = [axis.start for axis in box]
    centres = np.stack(sums, axis=1) / voxels[:, None] + corner
    world = centres @ affine[:3, :3].T + affine[:3, 3]
    voxel_mm3 = abs(float(np.linalg.det(affine[:3, :3])))
    return [
        Lesion(
            region=region,
            lesion=rank,
            voxels=int(voxels[index]),
            volume_mm3=float(voxels[index] * voxel_mm3),
            centroid_mm=(float(world[index, 0]), float(world[index, 1]), float(world[index, 2])),
        )
        for rank, index in enumerate(np.argsort(-voxels, kind="stable"), 1)
    ]
