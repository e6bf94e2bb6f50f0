"""What painters of lesions share: boxes around a point, ragged noise, level sets of a given volume."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from brainfoundry.cohorts.phantom import MNI_AFFINE, Anatomy, Box, Draws, Part, smooth_noise


def around(anatomy: Anatomy, centre: tuple[float, float, float], reach_mm: float) -> tuple[Box, list[Tensor]]:
    """The part of a volume within reach of a point, and offsets from the point along each axis, in mm.

    Args:
        centre: voxel on the anatomy's 1 mm grid.
    """
    spans, offsets = [], []
    for c, n in zip(centre, anatomy.shape, strict=True):
        low = min(max(math.floor((c - reach_mm) / anatomy.step), 0), n - 1)
        high = max(min(math.ceil((c + reach_mm) / anatomy.step) + 1, n), low + 1)
        spans.append(slice(low, high))
        offsets.append(torch.arange(low, high, dtype=torch.float32) * anatomy.step - c)
    return (spans[0], spans[1], spans[2]), offsets


def box_noise(draws: Draws, name: str, offsets: list[Tensor], knot_mm: float) -> Tensor:
    """Unit normal noise in a box, smooth over `knot_mm`; near enough the same for any voxel size."""
    spans = [float(o[-1] - o[0]) for o in offsets]
    knots = [max(round(span / knot_mm), 1) + 1 for span in spans]
    shape = (len(offsets[0]), len(offsets[1]), len(offsets[2]))
    return smooth_noise(draws, name, (knots[0], knots[1], knots[2]), shape)


def level(field: Tensor, brain: Tensor, volume_ml: float, step: int) -> float:
    """The value below which the field encloses a volume of brain."""
    values = field[brain]
    count = min(max(round(volume_ml * 1000.0 / step**3), 1), values.numel())
    return max(float(values.kthvalue(count).values), 1e-6)


def radius_mm(volume_ml: float) -> float:
    """Of a ball of that volume."""
    return float((volume_ml * 1000.0 * 0.75 / math.pi) ** (1.0 / 3.0))


def other_side(offsets: list[Tensor], centre: tuple[float, float, float]) -> Tensor:
    """1 beyond the midline, seen from a lesion, else 0: the falx and the arteries keep the sides apart."""
    middle = MNI_AFFINE[0, 3] - centre[0]
    x = offsets[0][:, None, None]
    return ((x - middle) * math.copysign(1.0, middle) > 0).float()


def age_related_changes(anatomy: Anatomy, draws: Draws, age: float, intensity: dict[str, float]) -> Part:
    """White matter changes of ageing: patches near the ventricles, more with the years; unlabelled."""
    knots = tuple(max(n * anatomy.step // 9, 2) for n in anatomy.shape)
    noise = smooth_noise(draws, "ageing", (knots[0], knots[1], knots[2]), anatomy.shape)
    axes = [torch.arange(n, dtype=torch.float32) * anatomy.step for n in anatomy.shape]
    # Mostly in the white matter around the ventricles (within some 30 mm of the middle of the brain).
    x, y, z = ((a - c) / r for a, c, r in zip(axes, (90.0, 108.0, 98.0), (38.0, 52.0, 28.0), strict=True))
    near = torch.exp(-0.5 * (x[:, None, None] ** 2 + y[None, :, None] ** 2 + z[None, None, :] ** 2))
    cut = 2.4 - 0.8 * min(max((age - 40.0) / 40.0, 0.0), 1.0)
    weight = torch.sigmoid((noise * near.sqrt() - cut) / 0.15) * anatomy.white
    return Part(box=(slice(None),) * 3, weight=weight, intensity=intensity)
