"""What verification needs to know of a scan, in a few hundred bytes: rules are judged on these alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.ndimage import binary_fill_holes

from brainfoundry.cohorts.fingerprint import background_of, fingerprint
from brainfoundry.quality import template

_LATTICE_MM = 3.0  # foreground is measured on every third millimetre: 0.1 % of a brain's volume either way
_DARK = 0.1  # of the brightness of tissue; noise in air lies below, cerebrospinal fluid mostly above


@dataclass(frozen=True, kw_only=True)
class ScanFacts:
    """One scan, as the cohort's checks see it.

    Args:
        file: where it is.
        shape, spacing, orientation: of the stored axes.
        sha256: of the decompressed file; "" where it was not read from one.
        finite: no NaN and no infinity.
        distinct: False where all voxels are equal.
        mean, sd, p1, median, p99: of the foreground, after scaling.
        foreground_ml: volume of what is brighter than background, holes filled.
        background_share: voxels that are exactly the background value.
        slices: axial slices with a non-zero voxel.
        dice: overlap of the foreground with the ICBM152 brain, where the header says it lies; 0 to 1.
        cover: share of the ICBM152 brain that the foreground covers.
        print: fingerprint, hexadecimal.
    """

    subject: str
    session: str
    modality: str
    file: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    sha256: str
    finite: bool
    distinct: bool
    mean: float
    sd: float
    p1: float
    median: float
    p99: float
    foreground_ml: float
    background_share: float
    slices: int
    dice: float
    cover: float
    print: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"shape": list(self.shape), "spacing": list(self.spacing)}

    @staticmethod
    def from_dict(value: dict[str, Any]) -> ScanFacts:
        """The inverse of `to_dict`."""
        return ScanFacts(**{**value, "shape": tuple(value["shape"]), "spacing": tuple(value["spacing"])})


def measure(values_XYZ: np.ndarray, affine: np.ndarray) -> dict[str, Any]:
    """The facts that come from voxels.

    Args:
        values_XYZ: RAS axis order, any dtype and scaling.
        affine: 4 x 4, voxel index to mm.
    """
    finite = values_XYZ.dtype.kind != "f" or bool(np.isfinite(values_XYZ).all())
    values = values_XYZ if finite else np.nan_to_num(values_XYZ, nan=0.0, posinf=0.0, neginf=0.0)
    background = float(background_of(values))
    shown = values != 0
    found: dict[str, Any] = {
        "finite": finite,
        "distinct": bool((values != values.flat[0]).any()),
        "slices": int(np.count_nonzero(shown.any(axis=(0, 1)))),
        "background_share": float((values == background).mean()),
        "print": fingerprint(values).hex(),
    }
    steps = [max(1, round(_LATTICE_MM / mm)) for mm in np.linalg.norm(affine[:3, :3], axis=0)]
    sparse = values[:: steps[0], :: steps[1], :: steps[2]].astype(np.float64)
    above = np.abs(sparse - background)
    mask = above > _DARK * _tissue(above)
    inside = sparse[mask] if mask.any() else sparse.ravel()
    p1, median, p99 = np.percentile(inside, (1, 50, 99))
    found |= {"mean": float(inside.mean()), "sd": float(inside.std())}
    found |= {"p1": float(p1), "median": float(median), "p99": float(p99)}
    return found | _overlap(np.asarray(binary_fill_holes(mask)), affine, np.array(steps))


def _tissue(above: np.ndarray) -> float:
    """Brightness of tissue, whatever share of the volume is background and however bright a few spikes."""
    if not above.any():
        return 0.0
    capped = np.minimum(above, np.percentile(above[above > 0], 98))
    # The mean weighted by itself: background adds nothing to it.
    first = float((capped**2).sum() / capped.sum())
    return float(np.median(above[above >= _DARK * first]))


def _overlap(mask: np.ndarray, affine: np.ndarray, steps: np.ndarray) -> dict[str, float]:
    """Volume of a mask of every `steps`-th voxel, and how it lies on the template brain."""
    ml = abs(float(np.linalg.det(affine[:3, :3]))) * float(steps.prod()) / 1000
    points = (np.argwhere(mask) * steps) @ affine[:3, :3].T + affine[:3, 3]
    brain = template.brain()
    common = float(brain.contains(points).sum()) * ml
    volume = float(mask.sum()) * ml
    return {"foreground_ml": volume, "dice": 2 * common / (volume + brain.ml), "cover": common / brain.ml}
