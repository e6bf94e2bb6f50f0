"""Which crop sizes the network can take.

The patch embedding and the four mergings each halve the grid, so the bottleneck has one token for 32^3
voxels. A side that is no multiple of 32 is padded on the way down, and the reconstruction would come back
larger than the crop. The self-supervised heads read the bottleneck tokens 0 and 1, so at least two are needed
in all; the rotation by 90 degrees needs the last two sides equal.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from brainfoundry.core.errors import ConfigError

STRIDE = 32
"""Voxels of an axis to one bottleneck token: patch 2, then four mergings of 2."""


def check_crop(crop: Sequence[int], *, min_tokens: int = 1, square: bool = False) -> tuple[int, int, int]:
    """The crop as a tuple, if the network can take it.

    Args:
        crop: sides in voxels, in axis order.
        min_tokens: bottleneck tokens needed in all (the self-supervised heads: 2).
        square: whether the last two sides must be equal (rotation about the first axis).

    Raises:
        ConfigError: naming the nearest sizes that would do.
    """
    if len(crop) != 3 or any(isinstance(side, bool) or not isinstance(side, int) for side in crop):
        raise ConfigError(
            f"crop {list(crop)} is not three whole numbers", fix="give three sides in voxels, as 96 96 96"
        )
    sides = (crop[0], crop[1], crop[2])
    problem = _problem(sides, min_tokens, square)
    if problem:
        nearest = " or ".join("x".join(map(str, c)) for c in _nearest(sides, min_tokens, square))
        raise ConfigError(
            f"crop {'x'.join(map(str, sides))}: {problem}", fix=f"the nearest valid sizes are {nearest}"
        )
    return sides


def _tokens(crop: tuple[int, int, int]) -> int:
    return (crop[0] // STRIDE) * (crop[1] // STRIDE) * (crop[2] // STRIDE)


def _problem(crop: tuple[int, int, int], min_tokens: int, square: bool) -> str:
    if any(side < STRIDE or side % STRIDE for side in crop):
        return f"every side must be a multiple of {STRIDE} voxels"
    if square and crop[1] != crop[2]:
        return "the last two sides must be equal, because the crop is rotated by 90 degrees in their plane"
    if _tokens(crop) < min_tokens:
        return f"it leaves {_tokens(crop)} bottleneck token where the network needs {min_tokens}"
    return ""


def _nearest(crop: tuple[int, int, int], min_tokens: int, square: bool) -> list[tuple[int, int, int]]:
    def around(side: int) -> list[int]:
        below = max(side // STRIDE, 1)
        return [STRIDE * (below + step) for step in range(max(min_tokens, 2) + 1)]

    # Two unequal last sides may have to meet at either of them.
    plane = sorted({*around(crop[1]), *around(crop[2])})
    candidates = itertools.product(around(crop[0]), plane, plane)
    valid = [c for c in candidates if not _problem(c, min_tokens, square)]
    return sorted(valid, key=lambda c: (sum(abs(a - b) for a, b in zip(c, crop, strict=True)), c))[:2]
