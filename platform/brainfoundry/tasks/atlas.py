"""Stroke lesions (ATLAS v2.0): one region, and the four metrics of the challenge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from brainfoundry.tasks.base import Region, Task
from brainfoundry.tasks.lesions import count_difference, lesion_f1
from brainfoundry.tasks.overlap import THRESHOLD, dice, volume_difference


class AtlasTask(Task):
    """Metrics `dice`, `volume_diff` (mm3), `lesion_count_diff`, `lesion_f1`, always defined.

    They equal those of the official code (npnl/atlas2_grand_challenge, `isles/scoring.py` at 55b9524) for the
    float masks of 0 and 1 at 1 mm that it is made for, and stay right where it does not: for bool, for 8-bit
    integers, and at other voxel sizes, where its volume difference counts voxels.
    """

    def measure(
        self,
        truth_RDHW: np.ndarray,
        prediction_RDHW: np.ndarray,
        spacing_mm: Sequence[float],
        *,
        lesionwise: bool,
    ) -> dict[str, float]:
        (truth,), (prediction,) = truth_RDHW, prediction_RDHW
        return {
            "dice": dice(truth, prediction),
            "volume_diff": volume_difference(truth, prediction, spacing_mm),
            "lesion_count_diff": float(count_difference(truth, prediction)),
            "lesion_f1": lesion_f1(truth, prediction),
        }

    def policies(self) -> Mapping[str, str]:
        return {
            "threshold": f"{THRESHOLD:g}",
            "empty_policy": "challenge: both empty Dice 1 and lesion F1 1, one empty Dice 0 and lesion F1 0",
            "volume_diff": "mm3: voxels times voxel volume (the official code counts voxels, of 1 mm3)",
            "lesion_f1": "lesions by face neighbours (6), hit by one shared voxel, no smallest size",
        }


TASK = AtlasTask(name="atlas", regions=(Region(name="lesion", labels={"binary": (1,)}),), connectivity=6)
