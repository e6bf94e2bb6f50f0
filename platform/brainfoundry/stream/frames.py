"""Where crops may lie: the frame of a volume, in voxels of its RAS grid, and crop corners drawn in it.

`reference` is what the released BrainSegFounder transforms make of a volume: pad to the crop, then
`CropForeground(k_divisible=crop)` on the windowed image, whose background is 0.5 after
ScaleIntensityRange(-1000..1000 -> 0..1) and so counts as foreground: the whole volume is kept and
padded, centred, to multiples of the crop (182x218x182 -> 192x288x192 for 96^3).
`box` is the foreground box, padded symmetrically to at least the crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from brainfoundry.core.errors import ConfigError
from brainfoundry.core.rng import key_of, uniform

Frame = Literal["box", "reference"]
FRAMES: tuple[str, ...] = get_args(Frame)

_CORNER = key_of("stream.corner")


def frame_bounds(
    frame: str, shape_N3: np.ndarray, box_lo_N3: np.ndarray, box_hi_N3: np.ndarray, crop: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Lower (inclusive) and upper (exclusive) corner of each volume's frame, (N, 3) int64 voxels.

    Padding puts `total // 2` voxels below and the rest above, as MONAI's SpatialPad and
    CropForeground do; corners may be negative or past the volume's end.
    """
    size = np.asarray(crop, np.int64)
    if frame == "reference":
        lo, hi = np.zeros_like(shape_N3, np.int64), np.asarray(shape_N3, np.int64)
        wanted = -(-hi // size) * size
    elif frame == "box":
        lo, hi = np.asarray(box_lo_N3, np.int64), np.asarray(box_hi_N3, np.int64)
        wanted = np.maximum(hi - lo, size)
    else:
        raise ConfigError(f"unknown frame {frame!r}", fix=f"choose one of {', '.join(FRAMES)}")
    lo = lo - (wanted - (hi - lo)) // 2
    return lo, lo + wanted


def draw_corners(
    seeds_N: np.ndarray, lo_N3: np.ndarray, hi_N3: np.ndarray, crop: Sequence[int]
) -> np.ndarray:
    """Lowest voxel of a crop, uniform over the places where it fits its frame: (N, 3) int32."""
    places = hi_N3 - lo_N3 - np.asarray(crop, np.int64) + 1
    u_N3 = uniform(seeds_N[:, None], _CORNER, np.arange(3)[None])
    return (lo_N3 + np.floor(u_N3 * places).astype(np.int64)).astype(np.int32)


def inside_volume(
    corner_N3: np.ndarray, shape_N3: np.ndarray, crop: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The part of each crop that lies in the scanned volume, in crop voxels: (N, 3) int32 lo and hi.

    lo <= hi always; a crop wholly outside (none is drawn from a frame) has lo == hi on some axis.
    """
    size = np.asarray(crop, np.int64)
    lo = np.clip(-corner_N3.astype(np.int64), 0, size)
    hi = np.maximum(np.clip(shape_N3 - corner_N3.astype(np.int64), 0, size), lo)
    return lo.astype(np.int32), hi.astype(np.int32)
