"""Inner cutout: blocks of a crop replaced by noise, then blocks replaced by another crop's voxels.

The algorithm has the statistics of the released code, which draws blocks one at a time until their volumes
reach a random budget, writes min-max rescaled Gaussian noise into each, and in a second such pass copies
voxels from another crop of the batch as it stands at that moment (earlier crops already augmented, later ones
not yet). There it is a loop on the host, unbounded, with a kernel launch or more a block. Here all blocks of
all crops are drawn at once, and:

- The blocks kept are those before the cumulative volume reaches the budget. Enough are drawn that the budget
  is reached but for a chance below 1e-8 a crop; should it not be, all of them are used: the time is bounded.
- A later block overwrites an earlier one. A voxel's last block is the highest set bit of a word whose bit k
  says that block k holds the voxel, and that word is the bitwise AND of three words, one of each coordinate.
- A block's noise is rescaled to run from 0 to 1 over the voxels where it can be seen. The released code
  rescales before later blocks overwrite parts of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from brainfoundry.core.errors import ConfigError
from brainfoundry.core.rng import key_of, normal_torch, uniform_torch

_NOISE_PASS = key_of("pretext.cutout.noise")
_PASTE_PASS = key_of("pretext.cutout.paste")
_BUDGET = key_of("pretext.cutout.budget")
_BLOCKS = key_of("pretext.cutout.blocks")
_FIELD = key_of("pretext.cutout.field")
_LENDER = key_of("pretext.cutout.lender")

_BITS = 52
"""Blocks a word: a float64 holds integers of 52 bits exactly, and its exponent is the highest set bit."""

_SPARE_BINS = 1024
"""Bins over which voxels outside all blocks are spread when the blocks' extremes are found."""

_VOXELS_AT_ONCE = 2**22
"""Bounds the memory of temporary tensors (32 MiB of int64): larger batches are cut out in parts, which also
keeps the CPU's allocator from returning and faulting in its pages at every operation."""


@dataclass(frozen=True, kw_only=True)
class CutoutSpec:
    """Parameters of one pass (defaults: released code).

    Attributes:
        max_drop: largest budget, as a share of the crop's voxels; the budget is uniform from 0 to it.
        max_block: a block's sides end below this share of the crop's sides.
        tolerance: they begin at this share, and no block starts in the last such share of an axis.
    """

    max_drop: float = 0.3
    max_block: float = 0.25
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 1:
            raise ConfigError(f"max_drop is {self.max_drop}", fix="give a share from 0 to 1")
        if not 0 < self.tolerance < self.max_block <= 1:
            raise ConfigError(
                f"tolerance is {self.tolerance} and max_block is {self.max_block}",
                fix="give shares with 0 < tolerance < max_block <= 1",
            )

    def sides(self, length: int) -> tuple[int, int]:
        """A block's side along an axis of `length` voxels: at least the first, below the second."""
        return int(self.tolerance * length), int(self.max_block * length)

    def check_crop(self, crop: tuple[int, int, int]) -> None:
        """Raise `ConfigError` for a crop in which blocks could be empty: by default, a side below 20."""
        for side in crop:
            if not self._fits(side):
                least = next((n for n in range(side + 1, 100_000) if self._fits(n)), None)
                raise ConfigError(
                    f"crop side {side} is too small for cutout blocks with sides of {self.tolerance:g} to "
                    f"{self.max_block:g} of it",
                    fix=f"use sides of at least {least} voxels" if least else "raise cutout's tolerance",
                )

    def _fits(self, length: int) -> bool:
        least, below = self.sides(length)
        return 1 <= least < below


@lru_cache(maxsize=64)
def blocks_to_draw(crop: tuple[int, int, int], spec: CutoutSpec) -> int:
    """Blocks a pass such that their volumes fall short of the largest budget with a chance below 1e-8.

    From the exact mean and variance of a block's clipped volume, by the normal approximation at 6 standard
    deviations; the blocks are independent and bounded, and there are dozens of them.
    """
    mean = square = 1.0
    for length in crop:
        least, below = spec.sides(length)
        starts = length - least
        clipped = [min(size, length - start) for start in range(starts) for size in range(least, below)]
        mean *= sum(clipped) / len(clipped)
        square *= sum(c * c for c in clipped) / len(clipped)
    sd = math.sqrt(max(square - mean * mean, 0.0))
    budget = spec.max_drop * math.prod(crop)
    # budget = K mean - 6 sd sqrt(K), solved for sqrt(K)
    root = (6 * sd + math.sqrt(36 * sd * sd + 4 * mean * budget)) / (2 * mean)
    return max(math.ceil(root * root), 1)


@dataclass(frozen=True)
class Blocks:
    """Drawn blocks: corners [lo, hi) (N, K, 3), volumes (N, K), int64 voxels; which to keep, bool (N, K)."""

    lo_NK3: torch.Tensor
    hi_NK3: torch.Tensor
    volume_NK: torch.Tensor
    keep_NK: torch.Tensor

    def __getitem__(self, crops: slice) -> Blocks:
        return Blocks(self.lo_NK3[crops], self.hi_NK3[crops], self.volume_NK[crops], self.keep_NK[crops])


def _parts(crops: int, voxels: int) -> Iterator[slice]:
    """Slices of a batch of `crops` crops of `voxels` voxels each, small enough to be worked on at once."""
    step = max(_VOXELS_AT_ONCE // voxels, 1)
    return (slice(first, first + step) for first in range(0, crops, step))


def draw_blocks(seeds_N: torch.Tensor, stream: int, crop: tuple[int, int, int], spec: CutoutSpec) -> Blocks:
    """The blocks of one pass over each crop, in the order in which they are written."""
    count = blocks_to_draw(crop, spec)
    number = torch.arange(count * 6, device=seeds_N.device).view(count, 2, 3)
    u_NK23 = uniform_torch(seeds_N.view(-1, 1, 1, 1), stream, _BLOCKS, number)
    starts, stops = [], []
    # The sides stay Python numbers: a tensor made of them on a GPU would make the host wait for it.
    for axis, length in enumerate(crop):
        least, below = spec.sides(length)
        start = (u_NK23[:, :, 0, axis] * (length - least)).long()
        starts.append(start)
        stops.append((start + least + (u_NK23[:, :, 1, axis] * (below - least)).long()).clamp_(max=length))
    lo, hi = torch.stack(starts, dim=2), torch.stack(stops, dim=2)
    volume = (hi - lo).prod(dim=2)
    budget = uniform_torch(seeds_N, stream, _BUDGET) * (spec.max_drop * math.prod(crop))
    before = volume.cumsum(dim=1) - volume
    return Blocks(lo_NK3=lo, hi_NK3=hi, volume_NK=volume, keep_NK=before < budget[:, None])


def _words(blocks: Blocks, crop: tuple[int, int, int]) -> Iterator[tuple[int, torch.Tensor]]:
    """Runs of blocks: the number of the first, and int64 (N, *crop), bit k set where block first + k is."""
    device = blocks.keep_NK.device
    for first in range(0, blocks.keep_NK.shape[1], _BITS):
        run = slice(first, first + _BITS)
        keep = blocks.keep_NK[:, run].long()
        bits_NK1 = (keep << torch.arange(keep.shape[1], device=device))[..., None]
        lines = []
        for axis, side in enumerate(crop):
            at = torch.arange(side, device=device)
            lo, hi = blocks.lo_NK3[:, run, axis, None], blocks.hi_NK3[:, run, axis, None]
            line = (bits_NK1 * ((at >= lo) & (at < hi))).sum(dim=1)
            lines.append(line.view(-1, *(side if a == axis else 1 for a in range(3))))
        yield first, lines[0] & lines[1] & lines[2]


def covered(blocks: Blocks, crop: tuple[int, int, int]) -> torch.Tensor:
    """Whether any kept block holds the voxel: bool (N, *crop)."""
    anywhere = torch.zeros((len(blocks.keep_NK), *crop), dtype=torch.bool, device=blocks.keep_NK.device)
    for part in _parts(len(anywhere), math.prod(crop)):
        for _, word in _words(blocks[part], crop):
            anywhere[part] |= word != 0
    return anywhere


def last_block(blocks: Blocks, crop: tuple[int, int, int]) -> torch.Tensor:
    """The number of the last kept block that holds the voxel, -1 where none does: int64 (N, *crop)."""
    last = torch.full((len(blocks.keep_NK), *crop), -1, dtype=torch.int64, device=blocks.keep_NK.device)
    for first, word in _words(blocks, crop):
        # A positive float64 holds its exponent plus 1023 in the bits from 52 up.
        highest = (word.double().view(torch.int64) >> 52).add_(first - 1023)
        last = torch.where(word != 0, highest, last)
    return last


def _rescaled(field_NCDHW: torch.Tensor, last_NDHW: torch.Tensor, count: int) -> torch.Tensor:
    """The field min-max rescaled to [0, 1] over each of `count` blocks, all channels together.

    Outside the blocks the values mean nothing.
    """
    n, channels = field_NCDHW.shape[:2]
    last = last_NDHW.view(n, 1, -1)
    # Voxels outside are spread over bins of their own: a single one would be a queue of atomic operations.
    outside = torch.arange(last.shape[2], device=last.device) % _SPARE_BINS + count
    bins = torch.where(last >= 0, last, outside).expand(-1, channels, -1).reshape(n, -1)
    field = field_NCDHW.reshape(n, -1)
    empty = field.new_zeros((n, count + _SPARE_BINS))
    low = empty.scatter_reduce(1, bins, field, "amin", include_self=False)
    high = empty.scatter_reduce(1, bins, field, "amax", include_self=False)
    span = high - low
    # A block seen at one voxel only has no range.
    scaled = (field - low.gather(1, bins)) / torch.where(span > 0, span, 1.0).gather(1, bins)
    return scaled.view_as(field_NCDHW)


def noise_pass(x_NCDHW: torch.Tensor, seeds_N: torch.Tensor, spec: CutoutSpec) -> torch.Tensor:
    """The crops with blocks of noise in [0, 1] written into them: a new tensor."""
    parts = _parts(len(x_NCDHW), x_NCDHW[0].numel())
    return torch.cat([_noise_part(x_NCDHW[part], seeds_N[part], spec) for part in parts])


def _noise_part(x_NCDHW: torch.Tensor, seeds_N: torch.Tensor, spec: CutoutSpec) -> torch.Tensor:
    channels = x_NCDHW.shape[1]
    crop = (x_NCDHW.shape[2], x_NCDHW.shape[3], x_NCDHW.shape[4])
    blocks = draw_blocks(seeds_N, _NOISE_PASS, crop, spec)
    last = last_block(blocks, crop)
    number = torch.arange(channels * math.prod(crop), device=x_NCDHW.device).view(1, channels, *crop)
    field = normal_torch(seeds_N.view(-1, 1, 1, 1, 1), _NOISE_PASS, _FIELD, number)
    noise = _rescaled(field, last, blocks.keep_NK.shape[1]).to(x_NCDHW.dtype)
    return torch.where(last[:, None] >= 0, noise, x_NCDHW)


def draw_lenders(seeds_N: torch.Tensor, crops_per_group: int) -> torch.Tensor:
    """For each crop the slot, uniform within its group, of the crop that lends it voxels: int64 (N,).

    A crop that draws its own slot gets no paste, so the chance of one is (n - 1) / n.
    """
    return (uniform_torch(seeds_N, _PASTE_PASS, _LENDER) * crops_per_group).long()


def cut_out(
    x_NCDHW: torch.Tensor, seeds_N: torch.Tensor, crops_per_group: int, spec: CutoutSpec
) -> torch.Tensor:
    """Both passes over crops whose groups are whole and in order: a new tensor of the same shape.

    Voxels are pasted only between crops of one group, and all draws come from the crops' own seeds, so a
    group comes out the same whatever else is in the batch.
    """
    total = x_NCDHW.shape[0]
    if total % crops_per_group:
        raise ValueError(f"{total} crops are not whole groups of {crops_per_group}")
    groups, crop = total // crops_per_group, (x_NCDHW.shape[2], x_NCDHW.shape[3], x_NCDHW.shape[4])
    per_group = (groups, crops_per_group)
    noised = noise_pass(x_NCDHW, seeds_N, spec).view(*per_group, *x_NCDHW.shape[1:])
    if crops_per_group == 1:
        return noised.view_as(x_NCDHW)
    lender_Gn = draw_lenders(seeds_N, crops_per_group).view(per_group)
    mask = covered(draw_blocks(seeds_N, _PASTE_PASS, crop, spec), crop).view(*per_group, 1, *crop)
    own = torch.arange(crops_per_group, device=x_NCDHW.device)
    mask &= (lender_Gn != own).view(*per_group, 1, 1, 1, 1)
    every_group = torch.arange(groups, device=x_NCDHW.device)
    state = x_NCDHW.clone().view(*per_group, *x_NCDHW.shape[1:])
    for slot in range(crops_per_group):
        lent = state[every_group, lender_Gn[:, slot]]
        state[:, slot] = torch.where(mask[:, slot], lent, noised[:, slot])
    return state.view_as(x_NCDHW)
