"""Statistics of a scan's non-zero voxels, kept with it so that intensity rules need no second pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PERCENTILES = (0.5, 1.0, 99.0, 99.5)


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """In the file's units (after scl_slope), over voxels whose code is not that of value 0.

    Args:
        sd: population standard deviation.
        p0_5, p1, p99, p99_5: percentiles, interpolated linearly between voxels.
        nonzero: how many voxels.
    """

    mean: float
    sd: float
    min: float
    max: float
    p0_5: float
    p1: float
    p99: float
    p99_5: float
    nonzero: int


NOTHING = Statistics(mean=0.0, sd=0.0, min=0.0, max=0.0, p0_5=0.0, p1=0.0, p99=0.0, p99_5=0.0, nonzero=0)
"""Of a mask without a lesion."""


def statistics(codes: np.ndarray, zero_code: float, slope: float, inter: float) -> Statistics:
    """Statistics of `codes * slope + inter` where `codes != zero_code`.

    Raises:
        ValueError: there is no such voxel.
    """
    if codes.dtype == np.int16:
        counts = np.bincount(codes.ravel().view(np.uint16), minlength=65_536)
        counts = np.concatenate([counts[32_768:], counts[:32_768]])  # from -32768 up
        counts[int(zero_code) + 32_768] = 0
        present = np.flatnonzero(counts)
        values, weights = (present - 32_768.0) * slope + inter, counts[present]
    else:
        values = np.sort(codes[codes != codes.dtype.type(zero_code)].astype(np.float64) * slope + inter)
        weights = np.ones(values.size, np.int64)
    if not values.size:
        raise ValueError("no voxel but background")
    if values[0] > values[-1]:  # a negative slope
        values, weights = values[::-1], weights[::-1]
    total = int(weights.sum())
    mean = float((values * weights).sum() / total)
    p0_5, p1, p99, p99_5 = _percentiles(values, weights, total)
    return Statistics(
        mean=mean,
        sd=float(np.sqrt(((values - mean) ** 2 * weights).sum() / total)),
        min=float(values[0]),
        max=float(values[-1]),
        p0_5=p0_5,
        p1=p1,
        p99=p99,
        p99_5=p99_5,
        nonzero=total,
    )


def _percentiles(values: np.ndarray, weights: np.ndarray, total: int) -> list[float]:
    """Of ascending values with multiplicities, as `numpy.percentile` gives them for the expanded list."""
    last = np.cumsum(weights) - 1  # rank of the last copy of each value
    positions = np.array(PERCENTILES) / 100 * (total - 1)
    below = np.floor(positions)
    low = values[np.searchsorted(last, below)]
    high = values[np.searchsorted(last, np.minimum(below + 1, total - 1))]
    return [float(v) for v in low + (high - low) * (positions - below)]
