"""Made-up batches: smooth random volumes in int16 codes, as the stream would deliver them."""

import torch

from brainfoundry.core.rng import hash64_torch, normal_torch
from brainfoundry.stream.batch import CropBatch


def make_batch(
    step: int, groups: int = 2, *, channels: int = 2, crop: tuple[int, int, int] = (64, 32, 32)
) -> CropBatch:
    """A batch of `groups` groups of 2 subjects x 2 crops that depends on the step alone."""
    n = groups * 4
    size = (n, channels, *(side // 8 for side in crop))
    count = int(torch.tensor(size).prod())
    coarse = normal_torch(torch.arange(count) + step * count, 11).reshape(size)
    smooth = torch.nn.functional.interpolate(coarse, size=crop, mode="trilinear")
    codes = (smooth * 200 + 800).clamp(1, 2000)
    codes[:, :, :, :4] = 0  # some background
    ones = torch.ones(n, channels)
    return CropBatch(
        step=step,
        crops_per_group=4,
        codes_NCDHW=codes.to(torch.int16),
        slope_NC=ones,
        inter_NC=ones * 0,
        zero_code_NC=ones * 0,
        mean_NC=ones * 800,
        sd_NC=ones * 150,
        present_NC=torch.ones(n, channels, dtype=torch.bool),
        inside_lo_N3=torch.zeros(n, 3, dtype=torch.int32),
        inside_hi_N3=torch.tensor(crop, dtype=torch.int32).repeat(n, 1),
        seeds_N=hash64_torch(torch.arange(n), step),
        subjects=[f"s{i // 2}" for i in range(n)],
    )
