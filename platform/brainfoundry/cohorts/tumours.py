"""Made-up gliomas for a BraTS-like cohort, and what its scanners make of tissue and tumour.

A tumour is a core of a drawn volume, dead in the middle with an enhancing shell of uneven thickness, in an
oedema that spreads along white matter. The oedema's weight fades outward and goes on, weaker, past its
label: where it ends is a matter of opinion, as it is to raters. Age-related white matter changes are as
bright as oedema and carry no label.

Ranges of `BRATS` (each subject draws its own, uniformly): grey to white matter 0.76-0.88 on T1w and 1.3-1.5
on FLAIR, bias +-10-30 %, noise 3-9 % of white matter. `HEALTHY` has 0.64-0.74, 1.12-1.28, 5-20 % and
2.5-6 %. Ratios were set by eye beside a real low-grade case in BraTS space; they are not fitted to the
challenge's data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from brainfoundry.cohorts.painting import age_related_changes, around, box_noise, level, other_side, radius_mm
from brainfoundry.cohorts.phantom import (
    MNI_AFFINE,
    Anatomy,
    Box,
    Contrast,
    Draws,
    Interval,
    Lesions,
    Part,
    PhantomRanges,
    Swelling,
    make_anatomy,
    place,
    template,
)

# Size relative to ICBM152: BraTS lies in SRI24 space, whose brain is smaller (129 x 162 x 131 mm measured in
# a real case, 144 x 180 x 154 mm in the template).
BRATS = PhantomRanges(
    contrasts={
        "T1w": Contrast(
            white=(250.0, 1100.0), grey=(0.76, 0.88), fluid=(0.3, 0.45), bias=(0.1, 0.3), noise=(0.03, 0.07)
        ),
        "T1ce": Contrast(
            white=(250.0, 1100.0), grey=(0.8, 0.94), fluid=(0.3, 0.45), bias=(0.1, 0.3), noise=(0.03, 0.07)
        ),
        "T2w": Contrast(
            white=(200.0, 700.0), grey=(1.25, 1.5), fluid=(2.2, 3.0), detail=(-0.9, -0.4),
            bias=(0.1, 0.3), noise=(0.03, 0.08),
        ),
        "FLAIR": Contrast(
            white=(120.0, 500.0), grey=(1.28, 1.42), fluid=(0.35, 0.55), detail=(-0.5, -0.2),
            bias=(0.1, 0.3), noise=(0.06, 0.09),
        ),
    },
    scale=(0.86, 0.92),
    warp_mm=3.0,
    fold_mm=1.6,
    ventricles=(-0.2, 0.35),
)  # fmt: skip

NECROSIS, OEDEMA, ENHANCING = 1, 2, 4  # BraTS 2021's label values

# Volumes in ml: the core log-normal, and the whole tumour as a multiple of it.
_CORE_ML, _CORE_LOG_SD, _CORE_LIMITS = 20.0, 0.75, (2.0, 80.0)
_WHOLE_PER_CORE, _WHOLE_LIMIT = (2.0, 5.0), 200.0

# Intensities relative to white matter.
_INTENSITY: dict[str, dict[str, Interval]] = {
    "necrosis": {"T1w": (0.4, 0.6), "T1ce": (0.35, 0.55), "T2w": (1.9, 2.8), "FLAIR": (0.7, 1.6)},
    "solid": {"T1w": (0.55, 0.75), "T1ce": (0.55, 0.8), "T2w": (1.7, 2.4), "FLAIR": (1.4, 1.9)},
    "enhancing": {"T1w": (0.7, 0.95), "T1ce": (1.5, 2.4), "T2w": (1.4, 2.0), "FLAIR": (1.4, 1.9)},
    "oedema": {"T1w": (0.6, 0.8), "T1ce": (0.6, 0.8), "T2w": (1.8, 2.5), "FLAIR": (2.1, 2.9)},
    "ageing": {"T1w": (0.7, 0.85), "T1ce": (0.7, 0.85), "T2w": (1.5, 2.0), "FLAIR": (1.6, 2.2)},
}
_NOISE_KNOT_MM = {"coarse": 16.0, "middle": 8.0, "fine": 4.0}


@dataclass(frozen=True, kw_only=True)
class Tumour:
    """What one tumour is like, before it meets a brain.

    Args:
        centre: voxel on the anatomy's 1 mm grid.
        core_ml, whole_ml: volumes.
        enhancing: with an enhancing shell.
        dead_share: radius of the dead middle, relative to the core's.
        strength: weight of the oedema where it is strongest.
        push: growth of the tissue under it (mass effect).
    """

    centre: tuple[float, float, float]
    core_ml: float
    whole_ml: float
    enhancing: bool
    dead_share: float
    strength: float
    push: float

    @staticmethod
    def of(seed: int, subject: int, *, enhancing: bool) -> Tumour:
        """The tumour of one subject, a pure function of the arguments."""
        draws = Draws(seed, subject)
        deviation = float(draws.normal("tumour core", (1,))[0])
        low, high = _CORE_LIMITS
        core = min(max(_CORE_ML * math.exp(_CORE_LOG_SD * deviation), low), high)
        whole = min(core * draws.between("tumour whole", _WHOLE_PER_CORE), _WHOLE_LIMIT)
        return Tumour(
            centre=place(BRATS, seed, subject, _template_voxel(draws.between("tumour place", (0.0, 1.0)))),
            core_ml=core,
            whole_ml=whole,
            enhancing=enhancing,
            dead_share=draws.between("tumour dead", (0.25, 0.9)),
            strength=draws.between("tumour strength", (0.65, 1.0)),
            push=draws.between("tumour push", (0.0, 0.35)),
        )

    def swelling(self) -> Swelling:
        """The mass effect, for `make_anatomy`."""
        return Swelling(centre=self.centre, sigma_mm=1.6 * radius_mm(self.core_ml), growth=self.push)


def make_case(
    seed: int, subject: int, age: float, *, enhancing: bool = True, step: int = 1
) -> tuple[Anatomy, Lesions]:
    """One subject's brain, pushed aside by its tumour, and the tumour with its label map.

    Args:
        age: years.
        enhancing: with an enhancing part; without, the core is one solid mass of label 1.
        step: mm between voxels.
    """
    tumour = Tumour.of(seed, subject, enhancing=enhancing)
    anatomy = make_anatomy(BRATS, seed, subject, age, step=step, swellings=(tumour.swelling(),))
    draws = Draws(seed, subject)
    lesions = paint(anatomy, tumour, draws)
    ageing = age_related_changes(anatomy, draws, age, intensities(draws, "ageing"))
    return anatomy, Lesions(parts=(ageing, *lesions.parts), label=lesions.label)


def paint(anatomy: Anatomy, tumour: Tumour, draws: Draws) -> Lesions:
    """The tumour's layers and labels in a brain."""
    step = anatomy.step
    box, offsets = around(anatomy, tumour.centre, 2.4 * radius_mm(tumour.whole_ml) + 8.0)
    grey, fluid, brain = (m[box] for m in (anatomy.grey, anatomy.fluid, anatomy.brain))

    def noise(name: str, kind: str) -> Tensor:
        return box_noise(draws, f"tumour {name}", offsets, _NOISE_KNOT_MM[kind])

    distance = _stretched(offsets, draws)
    ragged = noise("ragged", "middle")
    # The core grows where it grows, cortex or white matter; the ventricles and sulci stay free.
    core_field = distance * torch.exp(0.28 * noise("lobes", "coarse") + 0.1 * ragged) * (1.0 + 2.0 * fluid)
    edge = level(core_field, brain, tumour.core_ml, step)
    core = core_field / edge  # 1 at the border
    # Oedema follows white matter, which lets water through more readily than cortex does.
    wet_field = distance * torch.exp(0.24 * noise("spread", "coarse") + 0.12 * ragged)
    wet_field *= 1.0 + 1.1 * grey + 3.0 * fluid + other_side(offsets, tumour.centre)
    in_core = (core < 1.0) & brain
    wet_field.masked_fill_(in_core, 0.0)
    wet = wet_field / level(wet_field, brain, tumour.whole_ml, step)

    fine = noise("fine", "fine")
    grain = 0.12 * fine + 0.1 * ragged
    infiltration = torch.sigmoid((1.0 - wet) / 0.13) * torch.exp(0.15 * fine).clamp(max=1.3)
    weight = (tumour.strength * infiltration).clamp_(max=1.0) * brain * (1.0 - fluid)
    parts = [_part(box, weight, draws, "oedema", grain)]
    inside = torch.sigmoid((1.0 - core) / 0.05) * brain
    label = torch.zeros(anatomy.shape, dtype=torch.uint8)
    marked = label[box]
    marked[(wet < 1.0) & brain] = OEDEMA
    marked[in_core] = NECROSIS
    if tumour.enhancing:
        # Thickness varies, to nothing in places: shells of real tumours are rarely closed.
        shell = core - tumour.dead_share * torch.exp(0.25 * noise("shell", "coarse") + 0.1 * fine)
        parts.append(_part(box, inside, draws, "necrosis", grain))
        parts.append(_part(box, inside * torch.sigmoid(shell / 0.04), draws, "enhancing", 1.5 * grain))
        marked[in_core & (shell > 0.0)] = ENHANCING
    else:
        parts.append(_part(box, inside, draws, "solid", grain))
    return Lesions(parts=tuple(parts), label=label)


def intensities(draws: Draws, kind: str) -> dict[str, float]:
    """By modality, relative to white matter: this subject's draw from the ranges of a kind of tissue."""
    return {m: draws.between(f"{kind} {m}", interval) for m, interval in _INTENSITY[kind].items()}


def _stretched(offsets: list[Tensor], draws: Draws) -> Tensor:
    """Distance from the centre in a space stretched by up to a third along turned axes."""
    directions, _ = torch.linalg.qr(draws.normal("tumour axes", (3, 3)))
    x, y, z = offsets[0][:, None, None], offsets[1][None, :, None], offsets[2][None, None, :]
    total = torch.zeros(())
    for i, d in enumerate(directions):
        size = draws.between(f"tumour axis {i}", (0.75, 1.35))
        total = total + ((d[0] * x + d[1] * y + d[2] * z) / size) ** 2
    return total.sqrt()


def _part(box: Box, weight: Tensor, draws: Draws, kind: str, grain: Tensor) -> Part:
    return Part(box=box, weight=weight, intensity=intensities(draws, kind), grain=grain)


def _template_voxel(share: float) -> tuple[int, int, int]:
    """A voxel of the template's cerebral white matter, away from the midline: the share-th of them."""
    deep = template()["white"] > 0.85
    x = MNI_AFFINE[0, 3] - torch.arange(deep.shape[0])
    z = MNI_AFFINE[2, 3] + torch.arange(deep.shape[2])
    deep &= (x.abs() > 12)[:, None, None] & (z > -10)[None, None, :]
    voxels = torch.nonzero(deep)
    i, j, k = voxels[int(share * len(voxels))].tolist()
    return i, j, k
