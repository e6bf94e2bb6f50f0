"""Augmentation of labelled crops: flips, rotation, intensity scale and shift, on the device, batch by batch.

Every crop has its own draws, pure functions of its seed (`core.rng`): a crop is augmented alike on any
device, in any batch, on any number of workers, and after any resume. `draw` gives the parameters;
`flip_source` and `rotation_grid` say where each voxel then comes from, for an image and its mask alike.

Order of the released BraTS fine-tuning: flips, intensity normalisation (here before all of it; flips do not
change it), scale, shift. Scale and shift act on every voxel, background included, as there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F

from brainfoundry.core.errors import ConfigError
from brainfoundry.core.rng import key_of, uniform_torch

_FLIP = key_of("tasks.augment.flip")
_ROTATE = key_of("tasks.augment.rotate")
_ANGLE = key_of("tasks.augment.angle")
_SCALE = key_of("tasks.augment.scale")
_SHIFT = key_of("tasks.augment.shift")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is done to a crop, and how strongly; the defaults are the released BraTS fine-tuning's.

    Raises:
        ConfigError: an impossible value.
    """

    flip: float = 0.5
    """Chance of a flip along each axis (released code: RandFlipd, 0.5 on each of three)."""
    rotate: float = 0.0
    """Chance of a rotation (released code: none)."""
    degrees: float = 15.0
    """A rotation's largest angle about each axis (ours: the paper rotates ATLAS and names no angle)."""
    scale: float = 0.1
    """Intensities are multiplied by 1 + f, f uniform between minus and plus this (released code:
    RandScaleIntensityd, 0.1, always; one f for all channels)."""
    shift: float = 0.1
    """Then o is added, uniform between minus and plus this (released code: RandShiftIntensityd, 0.1, always;
    one o for all channels)."""

    def __post_init__(self) -> None:
        for name, most in (("flip", 1.0), ("rotate", 1.0), ("degrees", 180.0), ("shift", math.inf)):
            value = getattr(self, name)
            if not (0 <= value <= most and math.isfinite(value)):
                limits = f"from 0 to {most:g}" if math.isfinite(most) else "0 or more"
                raise ConfigError(f"{name} is {value}", fix=f"give a finite number, {limits}")
        if not 0 <= self.scale < 1:
            raise ConfigError(f"scale is {self.scale}", fix="give a number from 0 to below 1")


RECIPES: Mapping[str, AugmentConfig] = {
    "brats": AugmentConfig(),
    # Paper: "random crop and rotation"; neither chance nor angle is given, and the released code has none.
    "atlas": AugmentConfig(flip=0.0, rotate=0.5, scale=0.0, shift=0.0),
}
"""By task, what its source did; the crop itself is the plan's."""


@dataclass(frozen=True)
class Draws:
    """One crop's parameters a row.

    Attributes:
        flip_N3: bool, along which axes.
        rotate_N: bool, whether at all.
        angle_N3: float32 radians about each axis.
        factor_N, offset_N: float32, of the intensities.
    """

    flip_N3: torch.Tensor
    rotate_N: torch.Tensor
    angle_N3: torch.Tensor
    factor_N: torch.Tensor
    offset_N: torch.Tensor


def draw(seeds_N: torch.Tensor, config: AugmentConfig) -> Draws:
    """The parameters of every crop, from its seed alone."""
    axes = torch.arange(3, device=seeds_N.device)
    seeds_N1 = seeds_N[:, None]

    def symmetric(u: torch.Tensor, most: float) -> torch.Tensor:
        return (2 * u - 1) * most

    return Draws(
        flip_N3=uniform_torch(seeds_N1, _FLIP, axes) < config.flip,
        rotate_N=uniform_torch(seeds_N, _ROTATE) < config.rotate,
        angle_N3=symmetric(uniform_torch(seeds_N1, _ANGLE, axes), math.radians(config.degrees)),
        factor_N=symmetric(uniform_torch(seeds_N, _SCALE), config.scale),
        offset_N=symmetric(uniform_torch(seeds_N, _SHIFT), config.shift),
    )


def augment(
    x_NCDHW: torch.Tensor,
    labels_NDHW: torch.Tensor,
    seeds_N: torch.Tensor,
    config: AugmentConfig,
    *,
    present_NC: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops and their masks, augmented; both are left as they were. Nothing waits for the device.

    Args:
        x_NCDHW: normalised crops.
        labels_NDHW: label numbers of any dtype that float32 holds exactly; they keep it.
        seeds_N: int64, one seed a crop.
        config: what is done.
        present_NC: bool, False for modalities that stay exactly 0; None: all are there.
    """
    draws = draw(seeds_N, config)
    x, labels_N1DHW = x_NCDHW, labels_NDHW[:, None]
    if config.flip:
        source = flip_source(draws.flip_N3, x.shape[2:])
        x, labels_N1DHW = flip(x, source), flip(labels_N1DHW, source)
    if config.rotate:
        grid = rotation_grid(draws.angle_N3, x.shape[2:])
        chosen = draws.rotate_N.view(-1, 1, 1, 1, 1)
        x = torch.where(chosen, rotate(x, grid, "bilinear"), x)
        labels_N1DHW = torch.where(chosen, rotate(labels_N1DHW, grid, "nearest"), labels_N1DHW)
    if config.scale:
        x = x * (1 + draws.factor_N).view(-1, 1, 1, 1, 1)
    if config.shift:
        offset_NC = draws.offset_N[:, None]
        if present_NC is not None:
            offset_NC = offset_NC * present_NC
        x = x + offset_NC[:, :, None, None, None]
    return x, labels_N1DHW[:, 0]


def flip_source(flip_N3: torch.Tensor, sides: torch.Size) -> torch.Tensor:
    """Where each voxel of a flipped crop comes from, counted in storage order: int64 (N, D, H, W)."""
    source = torch.zeros((), dtype=torch.int64, device=flip_N3.device)
    for axis, side in enumerate(sides):
        at = torch.arange(side, device=flip_N3.device)
        source = source * side + _along(torch.where(flip_N3[:, axis, None], side - 1 - at, at), axis)
    return source


def flip(x_NCDHW: torch.Tensor, source_NDHW: torch.Tensor) -> torch.Tensor:
    """Each crop with its voxels taken from `flip_source`: a new tensor of the same dtype."""
    voxels = x_NCDHW.flatten(2)
    return voxels.gather(2, source_NDHW.flatten(1)[:, None].expand_as(voxels)).view_as(x_NCDHW)


def rotation_grid(angle_N3: torch.Tensor, sides: torch.Size) -> torch.Tensor:
    """Where each voxel of a rotated crop comes from, as `F.grid_sample` wants it: float32 (N, D, H, W, 3).

    The rotation is about the crop's centre and in voxels, whatever the sides: about the first axis, then
    about the second and the third as turned by those before (MONAI's `Affine`, rotate order XYZ). Sums of
    products instead of `F.affine_grid`: that one multiplies matrices, which autocast would do in 16 bits.
    """
    (sx, sy, sz), (cx, cy, cz) = angle_N3.sin().unbind(1), angle_N3.cos().unbind(1)
    rows = (
        (cy * cz, -cy * sz, sy),
        (cx * sz + sx * sy * cz, cx * cz - sx * sy * sz, -sx * cy),
        (sx * sz - cx * sy * cz, sx * cz + cx * sy * sz, cx * cy),
    )
    centred = [torch.arange(side, device=angle_N3.device) - (side - 1) / 2 for side in sides]
    coordinates = []
    for row, side in zip(rows, sides, strict=True):
        # grid_sample calls a crop's outer faces -1 and 1.
        d, h, w = (
            _along(factor_N[:, None] * (2 / side) * at, axis)
            for axis, (factor_N, at) in enumerate(zip(row, centred, strict=True))
        )
        coordinates.append(d + h + w)
    return torch.stack(coordinates[::-1], dim=-1)  # it names the last axis first


def _along(line_NL: torch.Tensor, axis: int) -> torch.Tensor:
    """Each crop's line along an axis of it: (N, L, 1, 1), (N, 1, L, 1) or (N, 1, 1, L)."""
    return line_NL.view(len(line_NL), *(-1 if a == axis else 1 for a in range(3)))


def rotate(
    x_NCDHW: torch.Tensor, grid_NDHW3: torch.Tensor, mode: Literal["bilinear", "nearest"]
) -> torch.Tensor:
    """Crops sampled at a grid, 0 from outside: trilinear for images, nearest for masks; the dtype is kept."""
    sampled = F.grid_sample(x_NCDHW.float(), grid_NDHW3, mode=mode, padding_mode="zeros", align_corners=False)
    return sampled.to(x_NCDHW.dtype)
