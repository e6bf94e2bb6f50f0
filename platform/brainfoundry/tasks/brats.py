"""Brain tumours (BraTS): tumour core, whole tumour, enhancing tumour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from brainfoundry.tasks.base import Region, Task
from brainfoundry.tasks.lesions import GLIOMA
from brainfoundry.tasks.lesions import lesionwise as measure_lesions
from brainfoundry.tasks.overlap import THRESHOLD, WORST_HD95_MM, region_metrics


class BratsTask(Task):
    """Metrics `dice_*`, `hd95_*` and, on demand, `lesion_dice_*`, `lesion_hd95_*`; * is tc, wt, et or mean.

    Each comes twice: NaN where it is excluded, and as the challenge counts it (`*_challenge`). `mean` is over
    the regions that are not NaN, and NaN where all are.
    """

    def measure(
        self,
        truth_RDHW: np.ndarray,
        prediction_RDHW: np.ndarray,
        spacing_mm: Sequence[float],
        *,
        lesionwise: bool,
    ) -> dict[str, float]:
        by_region = []
        for truth_DHW, prediction_DHW in zip(truth_RDHW, prediction_RDHW, strict=True):
            found = region_metrics(truth_DHW, prediction_DHW, spacing_mm)
            if lesionwise:
                scores = measure_lesions(truth_DHW, prediction_DHW, spacing_mm)
                counted = scores.lesions + scores.false > 0
                for name, value in (("lesion_dice", scores.dice), ("lesion_hd95", scores.hd95)):
                    found[name] = value if counted else math.nan
                    found[f"{name}_challenge"] = value
            by_region.append(found)
        named: dict[str, float] = {}
        for metric in by_region[0]:
            values = [found[metric] for found in by_region]
            defined = [value for value in values if not math.isnan(value)]
            mean = math.fsum(defined) / len(defined) if defined else math.nan
            stem, challenge, _ = metric.partition("_challenge")
            for region, value in zip([*(r.name for r in self.regions), "mean"], [*values, mean], strict=True):
                named[f"{stem}_{region}{challenge}"] = value
        return named

    def policies(self) -> Mapping[str, str]:
        return {
            "threshold": f"{THRESHOLD:g}",
            "empty_policy": "excluded: a region empty in the truth has no Dice, one empty in truth or "
            "prediction no HD95, one with neither a lesion to score nor a false one no lesion-wise score; "
            f"*_challenge: both empty Dice 1 and HD95 0, one empty Dice 0 and HD95 {WORST_HD95_MM:g} mm",
            "hd95": "95th percentile of distances between centres of surface voxels, mm; the larger of both "
            "directions",
            "lesionwise": f"BraTS 2023: truth dilated {GLIOMA.dilations} times, lesions of at most "
            f"{GLIOMA.min_volume_mm3:g} mm3 not scored, missed or false lesion Dice 0 and HD95 "
            f"{WORST_HD95_MM:g} mm",
        }


# The order of channels of MONAI's ConvertToMultiChannelBasedOnBratsClassesd and of the published networks.
# brats2024 is meant as for glioma (GLI), where label 4 is the resection cavity: no part of the tumour.
# Cohorts that number their tissues otherwise (paediatric: 1 is enhancing) need a scheme of their own.
TASK = BratsTask(
    name="brats",
    regions=(
        Region(name="tc", labels={"brats2021": (1, 4), "brats2023": (1, 3), "brats2024": (1, 3)}),
        Region(name="wt", labels={"brats2021": (1, 2, 4), "brats2023": (1, 2, 3), "brats2024": (1, 2, 3)}),
        Region(name="et", labels={"brats2021": (4,), "brats2023": (3,), "brats2024": (3,)}),
    ),
    connectivity=26,
)
