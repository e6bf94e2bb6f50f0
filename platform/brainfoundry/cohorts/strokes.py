"""Made-up chronic strokes for an ATLAS-like cohort: dark on T1w, from 0.01 to 200 ml, often several.

The main lesion's volume is log-normal (median 5 ml, as ATLAS v2.0's; cut at 0.01 and 200 ml); four in ten
subjects have up to five more, smaller ones. Large ones are wedges with their base on the cortex, as
branches of an artery leave them; small ones mostly lie deep, some in cerebellum and brain stem. Borders are
graded (a gliotic rim). Sulci and ventricles are as dark as the lesions, so that no threshold finds them.

Ranges of `ATLAS` (each subject draws its own, uniformly): on T1w grey to white matter 0.54-0.63, fluid
0.1-0.17, bias +-15-35 %, noise 4.5-8 % of white matter. `HEALTHY` has 0.64-0.74, 0.18-0.28, 5-20 % and
2.5-4.5 %. Set by eye, not fitted to the data set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional as F

from brainfoundry.cohorts.painting import age_related_changes, around, box_noise, level, other_side, radius_mm
from brainfoundry.cohorts.phantom import (
    MNI_AFFINE,
    Anatomy,
    Contrast,
    Draws,
    Lesions,
    Part,
    PhantomRanges,
    make_anatomy,
    smooth_noise,
    voxel_of,
)

ATLAS = PhantomRanges(
    contrasts={
        "T1w": Contrast(
            white=(500.0, 2500.0), grey=(0.54, 0.63), fluid=(0.1, 0.17), detail=(0.4, 0.8),
            bias=(0.15, 0.35), noise=(0.045, 0.08),
        )
    },
    scale=(0.97, 1.02),
    shift_mm=0.7,
    tilt_deg=2.0,
    warp_mm=2.0,
    fold_mm=1.5,
    ventricles=(-0.1, 0.5),
    atrophy=(0.05, 0.35),
)  # fmt: skip

_MAIN_ML, _MAIN_LOG_SD, _FURTHER_ML, _FURTHER_LOG_SD = 5.0, 1.9, 0.4, 1.3
LIMITS_ML, _FURTHER_LIMITS = (0.01, 200.0), (0.01, 15.0)
_MORE = (0.6, 0.8, 0.9, 0.95, 0.98)  # cumulative share of subjects with at most 1, 2, ... 5 lesions
_SCALP_MM, _SKULL_MM = (4.0, 7.0), (5.0, 9.0)
# Behind and below it lies the cerebellum.
_TENTORIUM = voxel_of((0.0, -38.0, -18.0))


@dataclass(frozen=True, kw_only=True)
class Stroke:
    """One lesion, before it meets a brain.

    Args:
        kind: "cortical", "deep" or "below" (cerebellum and brain stem).
        share: which of the voxels where this kind starts, in 0..1.
        intensity: on T1w, relative to white matter.
    """

    name: str
    volume_ml: float
    kind: str
    share: float
    intensity: float


def strokes_of(seed: int, subject: int) -> list[Stroke]:
    """The lesions of one subject, largest mostly first: a pure function of the arguments."""
    draws = Draws(seed, subject)
    number = 1 + sum(draws.between("stroke number", (0.0, 1.0)) >= share for share in _MORE)
    found = []
    for i in range(number):
        median, sd, (low, high) = (
            (_MAIN_ML, _MAIN_LOG_SD, LIMITS_ML) if i == 0 else (_FURTHER_ML, _FURTHER_LOG_SD, _FURTHER_LIMITS)
        )
        deviation = float(draws.normal(f"stroke {i} volume", (1,))[0])
        volume = min(max(median * math.exp(sd * deviation), low), high)
        where = draws.between(f"stroke {i} kind", (0.0, 1.0))
        cortical = 0.2 if volume < 1.5 else 0.5 if volume < 15.0 else 0.95
        kind = "cortical" if where < cortical else "below" if where > 0.88 else "deep"
        # A quarter of all but the large ones are subtle: gliosis without a cavity.
        subtle = volume < 30.0 and draws.between(f"stroke {i} subtle", (0.0, 1.0)) < 0.25
        intensity = draws.between(f"stroke {i} intensity", (0.42, 0.6) if subtle else (0.15, 0.42))
        share = draws.between(f"stroke {i} place", (0.0, 1.0))
        found.append(
            Stroke(name=f"stroke {i}", volume_ml=volume, kind=kind, share=share, intensity=intensity)
        )
    return found


def make_case(seed: int, subject: int, age: float, *, step: int = 1) -> tuple[Anatomy, Lesions]:
    """One subject's brain, and its lesions with their 0/1 mask.

    Args:
        age: years.
        step: mm between voxels.
    """
    anatomy = make_anatomy(ATLAS, seed, subject, age, step=step)
    draws = Draws(seed, subject)
    label = torch.zeros(anatomy.shape, dtype=torch.uint8)
    parts = [age_related_changes(anatomy, draws, age, {"T1w": draws.between("ageing T1w", (0.6, 0.8))})]
    for stroke in strokes_of(seed, subject):
        parts.append(paint(anatomy, stroke, draws, label))
    return anatomy, Lesions(parts=tuple(parts), label=label)


def paint(anatomy: Anatomy, stroke: Stroke, draws: Draws, label: Tensor) -> Part:
    """One lesion's layer; marks the lesion in the label map."""
    start = _start(anatomy, stroke)
    radius = radius_mm(stroke.volume_ml)
    box, offsets = around(anatomy, start, 3.0 * radius + 6.0)
    brain, fluid = anatomy.brain[box], anatomy.fluid[box]
    x, y, z = offsets[0][:, None, None], offsets[1][None, :, None], offsets[2][None, None, :]
    if stroke.kind == "cortical":
        field = _wedge(x, y, z, _inward(start), radius)
        # Arteries of a hemisphere end at the midline, and at the tentorium.
        below = (y < _TENTORIUM[1] - start[1]) & (z < _TENTORIUM[2] - start[2])
        field = field + 2.0 * radius * (below | (other_side(offsets, start) > 0))
    else:
        field = (x**2 + (0.8 * y) ** 2 + z**2).sqrt()
    ragged = 0.22 * box_noise(draws, f"{stroke.name} lobes", offsets, max(1.2 * radius, 4.0))
    ragged += 0.12 * box_noise(draws, f"{stroke.name} ragged", offsets, max(0.4 * radius, 3.0))
    # A little softened at its centre, or the noise would punch holes where the field is near 0.
    field = (field + 0.3 * radius) * torch.exp(ragged) * (1.0 + 1.5 * fluid)
    field = field / level(field, brain, stroke.volume_ml, anatomy.step)
    label[box][(field <= 1.0) & brain] = 1
    weight = torch.sigmoid((1.0 - field) / 0.07 + 0.5) * brain
    grain = 0.25 * box_noise(draws, f"{stroke.name} grain", offsets, 5.0)
    return Part(box=box, weight=weight, intensity={"T1w": stroke.intensity}, grain=grain.clamp_(-0.6, 0.6))


def _start(anatomy: Anatomy, stroke: Stroke) -> tuple[float, float, float]:
    """Where a lesion begins, as a voxel of the 1 mm grid."""
    x, y, z = (
        MNI_AFFINE[i, 3] + MNI_AFFINE[i, i] * anatomy.step * torch.arange(n)
        for i, n in enumerate(anatomy.shape)
    )
    x, y, z = x[:, None, None], y[None, :, None], z[None, None, :]
    if stroke.kind == "cortical":
        # Cortex on the outside of the hemispheres: a lesion's base faces the skull.
        outer = (x / 60.0) ** 2 + ((y + 18.0) / 75.0) ** 2 + ((z - 10.0) / 55.0) ** 2 > 0.75
        place = (anatomy.grey > 0.5) & (z > -15) & (x.abs() > 20) & outer
    elif stroke.kind == "deep":  # basal ganglia, thalamus, capsules, corona radiata
        place = (anatomy.fluid < 0.2) & (x.abs() > 8) & (x.abs() < 36) & (y > -38) & (y < 28)
        place = place & (z > -6) & (z < 30)
    else:
        cerebellum = (y < -42) & (z < -22)
        pons = (x.abs() < 13) & (y > -40) & (y < -16) & (z > -46) & (z < -16)
        place = (anatomy.fluid < 0.3) & (cerebellum | pons)
    voxels = torch.nonzero(place & anatomy.brain)
    i, j, k = (voxels[int(stroke.share * len(voxels))] * anatomy.step).tolist()
    return float(i), float(j), float(k)


def _inward(start: tuple[float, float, float]) -> Tensor:
    """Direction from the cortex to the middle of the hemisphere's white matter."""
    side = math.copysign(20.0, MNI_AFFINE[0, 3] - start[0])
    middle = voxel_of((side, -15.0, 18.0))
    way = torch.tensor([m - s for m, s in zip(middle, start, strict=True)])
    return way / way.norm().clamp(min=1e-3)


def _wedge(x: Tensor, y: Tensor, z: Tensor, inward: Tensor, radius: float) -> Tensor:
    """A distance whose level sets are wedges: wide at the cortex, narrow inward."""
    depth = inward[0] * x + inward[1] * y + inward[2] * z
    across = (x**2 + y**2 + z**2 - depth**2).clamp_(min=0.0).sqrt()
    width = (1.0 - 0.35 * depth / radius).clamp_(0.35, 1.3)
    return ((across / width) ** 2 + (0.75 * depth) ** 2).sqrt()


def add_head(image: np.ndarray, brain: np.ndarray, seed: int, subject: int, step: int = 1) -> np.ndarray:
    """The image with a dark skull and a bright scalp around the brain, and air (0) beyond.

    A shell at a drawn distance from the brain, no anatomy: no face, no neck. Its only purpose is that the
    cohort is not skull-stripped.
    """
    draws = Draws(seed, subject)
    coarse = max(3 // step, 1)  # the shell is smooth: a third of the resolution, a thirtieth of the time
    small = brain[::coarse, ::coarse, ::coarse]
    distance = torch.from_numpy(distance_transform_edt(~small).astype(np.float32)) * (coarse * step)
    shape = (brain.shape[0], brain.shape[1], brain.shape[2])
    distance = F.interpolate(distance[None, None], size=shape, mode="trilinear")[0, 0]
    distance += 1.2 * smooth_noise(draws, "skull", (8, 9, 8), shape)
    skull = draws.between("skull mm", _SKULL_MM)
    end = skull + draws.between("scalp mm", _SCALP_MM)
    white = float(np.percentile(image[brain], 85))
    bright = draws.between("scalp", (0.7, 1.3))
    # Fluid and bone are dark, marrow a little less, fat bright.
    value = 0.12 + 0.3 * torch.exp(-0.5 * ((distance - 0.55 * skull) / 1.2) ** 2)
    value = torch.where(distance > skull, torch.tensor(bright), value)
    shell = torch.nonzero((torch.from_numpy(~brain) & (distance < end)).reshape(-1))[:, 0]
    sigma = draws.between("head noise", (0.04, 0.07))
    real = value.reshape(-1)[shell] + sigma * draws.normal("head real", (len(shell),))
    imaginary = sigma * draws.normal("head imaginary", (len(shell),))
    made = image.reshape(-1).copy()
    made[shell.numpy()] = (
        (torch.hypot(real, imaginary) * white).round().clamp(1, 32767).to(torch.int16).numpy()
    )
    return made.reshape(shape)
