"""The rotation task: every crop turned by a random number of quarter turns about its first spatial axis.

The method paper (Tang et al. 2022) speaks of the z axis; the released code turns the second and third axes,
which of a RAS volume is about the right-left axis. We do as the code does, because the released weights
learnt it.
"""

from __future__ import annotations

import torch

from brainfoundry.core.rng import hash64_torch, key_of

_STREAM = key_of("pretext.rotation")


def draw_turns(seeds_N: torch.Tensor) -> torch.Tensor:
    """Quarter turns 0..3, uniform, one a seed: int64 (N,)."""
    return hash64_torch(seeds_N, _STREAM) & 3


def rotate(x_NCDHW: torch.Tensor, turns_N: torch.Tensor) -> torch.Tensor:
    """Each crop by its own number of quarter turns in the (H, W) plane, H to W: a new tensor of the same
    shape.

    One turn takes voxel (1, 0, 2) of a 4^3 crop to (1, 1, 0), as `torch.rot90(x, 1, (3, 4))` does. H must
    equal W (`models.check_crop(..., square=True)`).
    """
    side = x_NCDHW.shape[-1]
    if x_NCDHW.shape[-2] != side:
        raise ValueError(f"rotation needs equal last two sides, got {tuple(x_NCDHW.shape)}")
    turns = turns_N[:, None, None]
    i = torch.arange(side, device=x_NCDHW.device)[:, None]
    j = i.T
    odd, half = (turns & 1).bool(), (turns & 2).bool()
    # Where each voxel comes from: a quarter turn reads (j, last - i), a half turn mirrors both coordinates.
    row, column = torch.where(odd, j, i), torch.where(odd, side - 1 - i, j)
    row, column = torch.where(half, side - 1 - row, row), torch.where(half, side - 1 - column, column)
    source = (row * side + column).view(-1, 1, 1, side * side)
    planes = x_NCDHW.flatten(3)
    return planes.gather(3, source.expand_as(planes)).view_as(x_NCDHW)
