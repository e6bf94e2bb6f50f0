"""Foreground crops: which crops of a plan are centred on a lesion, and on which of its voxels.

As nnU-Net oversamples foreground: the label is drawn first, uniformly over those that the session's mask
holds, then a voxel uniformly over that label's, so that a small label is met as often as a large one. There a
fixed part of each batch is such; here each crop is by chance of its own. All draws are hashes of the crop's
seed, so they are the same on any number of workers and after a resume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from brainfoundry.core.rng import key_of, uniform

_FOREGROUND = key_of("stream.foreground")


def foreground_draws(seeds_N: np.ndarray) -> np.ndarray:
    """(N, 3) in [0, 1): whether a crop is a foreground crop (below the share), its label, its voxel."""
    return uniform(seeds_N[:, None], _FOREGROUND, np.arange(3)[None])


def pick_voxel(voxels: Mapping[int, np.ndarray], u_label: float, u_voxel: float) -> np.ndarray:
    """One voxel (3,) of a mask, by two numbers in [0, 1).

    Args:
        voxels: label -> (n, 3), n at least 1 (`ShardSet.mask_voxels`); at least one label.
    """
    label = sorted(voxels)[int(u_label * len(voxels))]
    return voxels[label][int(u_voxel * len(voxels[label]))]


def corner_around(voxel: np.ndarray, lo: np.ndarray, hi: np.ndarray, crop: Sequence[int]) -> np.ndarray:
    """Corner (3,) of the crop with a voxel at its centre (size // 2), moved to where it fits its frame.

    A voxel of the frame [lo, hi) stays inside the crop.
    """
    size = np.asarray(crop, np.int64)
    return np.clip(voxel - size // 2, lo, hi - size)
