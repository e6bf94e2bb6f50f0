"""The released code's augmentation, written plainly and slowly with NumPy, as the yardstick of ours.

One block after the other, until the blocks' volumes (overlaps counted twice) reach the budget.
"""

from __future__ import annotations

import numpy as np


def cut(volume: np.ndarray, draw: np.random.Generator, lender: np.ndarray | None) -> list[tuple[slice, ...]]:
    """One pass over `volume` (C, D, H, W), in place: noise, or the lender's voxels. Returns the blocks."""
    sides = volume.shape[1:]
    budget = draw.uniform(0, 0.3) * np.prod(sides)
    blocks: list[tuple[slice, ...]] = []
    spent = 0
    while spent < budget:
        block = []
        for side in sides:
            least, below = int(0.05 * side), int(0.25 * side)
            start = int(draw.integers(0, side - least))
            stop = min(start + int(draw.integers(least, below)), side)
            block.append(slice(start, stop))
        inside = (slice(None), *block)
        if lender is None:
            noise = draw.standard_normal(volume[inside].shape)
            volume[inside] = (noise - noise.min()) / (noise.max() - noise.min())
        else:
            volume[inside] = lender[inside]
        spent += int(np.prod([s.stop - s.start for s in block]))
        blocks.append(tuple(block))
    return blocks


def augment(crops: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Both passes over a group (n, C, D, H, W): a new array."""
    out = crops.copy()
    for slot in range(len(out)):
        cut(out[slot], draw, None)
        lender = int(draw.integers(0, len(out)))
        if lender != slot:
            cut(out[slot], draw, out[lender])
    return out
