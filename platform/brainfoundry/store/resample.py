"""Volumes at another voxel size: smoothed against aliasing, interpolated linearly, background kept at 0."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from brainfoundry.store.volume import Volume


def resample(volume: Volume, spacing_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """The raw numbers of `volume` on an isotropic grid over the same field of view, and that grid's affine.

    Axes that get coarser by k are first smoothed with a Gaussian of sigma = sqrt((k^2 - 1) / (8 ln 2)) source
    voxels, the difference between the point spreads of the two grids (Cardoso et al. 2015, "Scale
    factor point spread function matching"). The result is 0 where less than half of the interpolated
    foreground lies, so that skull-stripped brains keep a sharp edge and an exactly empty background.

    Returns:
        (numbers, affine): int16 (rounded) for sources whose numbers are integers that fit it, else float32;
        4 x 4, voxel index to mm.
    """
    raw = volume.raw_XYZ
    step, offset, shape = _grid(volume, spacing_mm)
    header = volume.header
    zero = np.float32(-header.inter / header.slope)
    numbers = raw.astype(np.float32) - zero
    mask = (numbers != 0).astype(np.float32)
    sigma = np.sqrt(np.maximum(step**2 - 1, 0) / (8 * np.log(2)))
    options = {"output_shape": shape, "order": 1, "mode": "nearest", "prefilter": False}
    values = ndimage.affine_transform(
        ndimage.gaussian_filter(numbers, sigma, mode="nearest"), step, offset, **options
    )
    inside = ndimage.affine_transform(
        ndimage.gaussian_filter(mask, sigma, mode="nearest"), step, offset, **options
    )
    values[inside < 0.5] = 0
    values += zero
    affine = _affine(volume, step, offset)
    whole = raw.dtype.kind in "iu" and raw.min() >= -32768 and raw.max() <= 32767
    return (np.rint(values).astype(np.int16) if whole else values), affine


def resample_labels(volume: Volume, labels: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Labels on the grid that `resample` gives a volume: each voxel takes the nearest one's label.

    Args:
        volume: whose grid `labels` lie on.
    """
    step, offset, shape = _grid(volume, spacing_mm)
    return ndimage.affine_transform(
        labels, step, offset, output_shape=shape, order=0, mode="nearest", prefilter=False
    )


def _grid(volume: Volume, spacing_mm: float) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Of the isotropic grid over the same field of view: source voxels a new voxel, first voxel, shape."""
    size = volume.raw_XYZ.shape
    step = spacing_mm / np.array(volume.spacing)
    shape = tuple(max(1, round(n / s)) for n, s in zip(size, step, strict=True))
    return step, (np.array(size) - 1) / 2 - (np.array(shape) - 1) / 2 * step, shape  # same centre


def _affine(volume: Volume, step: np.ndarray, offset: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag(step)
    matrix[:3, 3] = offset
    return volume.affine @ matrix
