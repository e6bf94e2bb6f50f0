"""Made-up brains on the MNI grid: the ICBM152 2009 template warped, coloured and made noisy.

Everything random is a pure function of (seed, subject index, stream), so one subject can be made again
without the others. Maps are float32 tensors of shape (182, 218, 182) along the stored axes of UK Biobank's
grid (LAS, 1 mm).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import nibabel
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from brainfoundry.core.errors import DataError
from brainfoundry.core.rng import hash64_int, key_of, normal_torch, uniform

# FSL's MNI152 1 mm grid, which UK Biobank's *_to_MNI images have: LAS, 1 mm.
MNI_SHAPE = (182, 218, 182)
MNI_AFFINE = np.array([[-1, 0, 0, 90], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1]], dtype=np.float64)

Interval = tuple[float, float]

# Centres of the lateral ventricles' bodies, mm in MNI space, left and right; read off the template.
_VENTRICLES_MM = ((-13.0, -18.0, 20.0), (13.0, -18.0, 20.0))
_VENTRICLE_SIGMA_MM = 17.0


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """What a modality makes of the tissues. Intervals are drawn from uniformly, once a subject.

    Args:
        white: stored value of white matter.
        grey, fluid: relative to white matter.
        detail: how much of the template's own texture within tissues shows (thalamus, putamen); negative
            inverts it.
        bias: largest relative deviation of the receive field, roughly.
        noise: standard deviation of the complex noise, relative to white matter.
    """

    white: Interval
    grey: Interval
    fluid: Interval
    detail: Interval = (0.6, 1.0)
    bias: Interval = (0.05, 0.2)
    noise: Interval = (0.025, 0.045)


@dataclass(frozen=True)
class Anatomy:
    """One subject's tissues: fractions 0..1 of grey, white and fluid, the template's detail, the brain mask.

    All of one shape, (182, 218, 182) at a step of 1 mm; `brain` is bool, and every other map is 0 outside it.
    """

    grey: Tensor
    white: Tensor
    fluid: Tensor
    detail: Tensor
    brain: Tensor
    step: int = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        x, y, z = self.brain.shape
        return x, y, z


Box = tuple[slice, slice, slice]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One layer painted over the tissues.

    Args:
        box: the part of the volume it touches; `weight` and `grain` have that shape.
        weight: in 0..1: how much of a voxel it takes; the tissue shows through the rest.
        intensity: by modality, relative to white matter; a modality that is not named is left as it is.
        grain: relative deviation from the intensity, voxel by voxel.
    """

    box: Box
    weight: Tensor
    intensity: Mapping[str, float]
    grain: Tensor | float = 0.0


@dataclass(frozen=True, kw_only=True)
class Lesions:
    """What is painted over the tissues, first layer first, and the uint8 class map that goes with it."""

    parts: tuple[Part, ...]
    label: Tensor


@dataclass(frozen=True, kw_only=True)
class Swelling:
    """Tissue that takes more room than it should and pushes the rest away.

    Args:
        centre: voxel on the anatomy's 1 mm grid.
        sigma_mm: reach.
        growth: relative enlargement at the centre; at most about 0.6, beyond which tissue would fold.
    """

    centre: tuple[float, float, float]
    sigma_mm: float
    growth: float


@dataclass(frozen=True, kw_only=True)
class PhantomRanges:
    """How the brains of a cohort vary: one value of this class a kind of cohort.

    Args:
        contrasts: by modality.
        scale: size along each axis, relative to the template.
        shift_mm, tilt_deg: position and rotation that registration left over.
        warp_mm: standard deviation of the coarse displacement (knots 32 mm apart).
        fold_mm: standard deviation of the fine displacement (knots 9 mm apart), which moves gyri.
        ventricles: growth of the lateral ventricles at age 45 and at 82, give or take `ventricle_spread`.
        atrophy: how much of the cortex's grey matter turns to fluid, at age 45 and at age 82.
    """

    contrasts: Mapping[str, Contrast]
    scale: Interval = (0.94, 1.04)
    shift_mm: float = 1.0
    tilt_deg: float = 3.0
    warp_mm: float = 2.5
    fold_mm: float = 1.3
    ventricles: Interval = (-0.15, 0.4)
    ventricle_spread: float = 0.15
    atrophy: Interval = (0.0, 0.25)


# Tissue ratios of a 3 T MPRAGE and a 3 T 3D FLAIR, set by eye from healthy scans; not fitted to a cohort.
HEALTHY = PhantomRanges(
    contrasts={
        "T1w": Contrast(white=(650.0, 950.0), grey=(0.64, 0.74), fluid=(0.18, 0.28)),
        "FLAIR": Contrast(
            white=(250.0, 400.0),
            grey=(1.12, 1.28),
            fluid=(0.15, 0.3),
            detail=(-0.4, -0.1),
            noise=(0.04, 0.06),
        ),
    }
)


@dataclass(frozen=True)
class Draws:
    """Named random numbers of one subject: the same name always gives the same number."""

    seed: int
    subject: int
    visit: int = 0
    _keys: tuple[int, ...] = field(default=(), repr=False)

    def key(self, name: str, *, visit: bool = False) -> int:
        """64-bit key of a named stream; with `visit`, one that differs between visits."""
        return hash64_int(self.seed, self.subject, key_of(name), self.visit if visit else -1)

    def between(self, name: str, interval: Interval, *, visit: bool = False) -> float:
        """Uniform in the interval."""
        low, high = interval
        return low + (high - low) * float(uniform(self.key(name, visit=visit)))

    def normal(self, name: str, shape: tuple[int, ...], *, visit: bool = False) -> Tensor:
        """Standard normal float32 tensor."""
        count = torch.arange(int(np.prod(shape)), dtype=torch.int64)
        return normal_torch(self.key(name, visit=visit), count).reshape(shape)


@lru_cache(maxsize=1)
def template() -> dict[str, Tensor]:
    """The ICBM152 2009a symmetric maps "t1", "grey", "white" (0..1, float32) on UK Biobank's grid.

    They come with nilearn, whose files lie on the same 1 mm lattice; only flipping and cutting is needed.

    Raises:
        DataError: nilearn without its templates.
    """
    spec = importlib.util.find_spec(
        "nilearn"
    )  # its files are enough; importing it takes seconds in each process
    folder = Path((spec.submodule_search_locations or [""])[0] if spec else "") / "datasets" / "data"
    maps = {}
    for name, code in (("t1", "t1"), ("grey", "gm"), ("white", "wm")):
        path = folder / f"mni_icbm152_{code}_tal_nlin_sym_09a_converted.nii.gz"
        if not path.exists():
            raise DataError("nilearn does not bring its ICBM152 template", file=path, fix="reinstall nilearn")
        image = nibabel.Nifti1Image.from_filename(path)
        data = np.asarray(image.dataobj, dtype=np.float32)
        maps[name] = torch.from_numpy(_to_mni_grid(data, image.affine) / 255.0)
    return maps


def _to_mni_grid(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Cut and flip a volume that lies on the lattice of whole millimetres to `MNI_SHAPE`."""
    step = np.linalg.inv(affine) @ MNI_AFFINE  # voxel of the MNI grid -> voxel of the data
    if not np.allclose(np.abs(step[:3, :3]), np.eye(3)) or not np.allclose(step, np.round(step)):
        raise ValueError("template does not lie on the 1 mm MNI lattice")
    indices = [
        (np.arange(n) * step[axis, axis] + step[axis, 3]).round().astype(int)
        for axis, n in enumerate(MNI_SHAPE)
    ]
    return np.ascontiguousarray(data[np.ix_(*indices)])


def make_anatomy(
    ranges: PhantomRanges,
    seed: int,
    subject: int,
    age: float,
    *,
    step: int = 1,
    swellings: Sequence[Swelling] = (),
) -> Anatomy:
    """The tissues of one subject.

    Args:
        age: years; older brains have larger ventricles and less cortex.
        step: mm between voxels: the same brain on a coarser grid (every step-th voxel, nearly), for tests.
        swellings: mass effect.
    """
    draws = Draws(seed, subject)
    maps = template()
    points_123 = _sampling_points(ranges, draws, age, step, swellings)
    stack_1CDHW = torch.stack([maps["t1"], maps["grey"], maps["white"]])[None]
    warped = F.grid_sample(
        stack_1CDHW, points_123[None], mode="bilinear", padding_mode="zeros", align_corners=True
    )
    t1, grey, white = warped[0]
    brain = t1 > 0.2
    fluid = (1.0 - grey - white).clamp_(0.0, 1.0)
    # The average of many brains is blurred; squaring the fractions gives one brain's sharper borders.
    parts = torch.stack([grey, white, fluid]).square_()
    parts /= parts.sum(0).clamp_(min=1e-6)
    grey, white, fluid = parts * brain
    youth, old = ranges.atrophy
    loss = youth + (old - youth) * _aging(age)
    lost = grey * fluid.gt(0.02) * loss
    grey, fluid = grey - lost, fluid + lost
    # What the template shows beyond a mixture of three tissues (their means in it: 0.76, 0.93, 0.4).
    detail = (t1 - (0.76 * grey + 0.93 * white + 0.4 * fluid)).clamp_(-0.15, 0.15) * brain
    return Anatomy(grey=grey, white=white, fluid=fluid, detail=detail, brain=brain, step=step)


def _aging(age: float) -> float:
    """0 at 45 years, 1 at 82: the ages at which UK Biobank images (showcase field 21003, instance 2)."""
    return min(max((age - 45.0) / 37.0, 0.0), 1.0)


def _sampling_points(
    ranges: PhantomRanges, draws: Draws, age: float, step: int, swellings: Sequence[Swelling]
) -> Tensor:
    """Where in the template each voxel takes its tissue from: (182, 218, 182, 3), in grid_sample's units."""
    axes = [torch.arange(0, n, step, dtype=torch.float32) for n in MNI_SHAPE]
    shape = (len(axes[0]), len(axes[1]), len(axes[2]))
    middle = (torch.tensor(MNI_SHAPE) - 1) / 2.0
    linear, shift = _residual_affine(ranges, draws)
    offsets = [axis - middle[i] for i, axis in enumerate(axes)]
    points = []
    for i in range(3):
        row = linear[i]
        point = (row[0] * offsets[0])[:, None, None] + (row[1] * offsets[1])[None, :, None]
        points.append(point + (row[2] * offsets[2])[None, None, :] + middle[i] + shift[i])
    growth = ranges.ventricles[0] + (ranges.ventricles[1] - ranges.ventricles[0]) * _aging(age)
    growth += draws.between("ventricles", (-ranges.ventricle_spread, ranges.ventricle_spread))
    ventricles = [
        Swelling(centre=voxel_of(centre_mm), sigma_mm=_VENTRICLE_SIGMA_MM, growth=growth)
        for centre_mm in _VENTRICLES_MM
    ]
    for swelling in (*ventricles, *swellings):
        centre = swelling.centre
        bells = [
            torch.exp(-0.5 * ((a - c) / swelling.sigma_mm) ** 2) for a, c in zip(axes, centre, strict=True)
        ]
        bell = swelling.growth * bells[0][:, None, None] * bells[1][None, :, None] * bells[2][None, None, :]
        for i in range(3):
            shape_i = [1, 1, 1]
            shape_i[i] = -1
            # Sampling nearer to the centre than one stands enlarges what is there.
            points[i] -= bell * (axes[i] - centre[i]).reshape(shape_i)
    for i in range(3):
        points[i] += smooth_noise(draws, f"warp{i}", (7, 8, 7), shape) * ranges.warp_mm
        points[i] += smooth_noise(draws, f"fold{i}", (21, 25, 21), shape) * ranges.fold_mm
        points[i] *= 2.0 / (MNI_SHAPE[i] - 1)
        points[i] -= 1.0
    return torch.stack(points[::-1], dim=-1)  # grid_sample names the last axis first


def _residual_affine(ranges: PhantomRanges, draws: Draws) -> tuple[Tensor, list[float]]:
    """3 x 3 matrix and shift (voxels) about the middle of the grid, from subject to template."""
    matrix = torch.eye(3, dtype=torch.float64)
    for i, (a, b) in enumerate(((1, 2), (0, 2), (0, 1))):
        angle = np.deg2rad(draws.between(f"tilt{i}", (-ranges.tilt_deg, ranges.tilt_deg)))
        turn = torch.eye(3, dtype=torch.float64)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    sizes = [draws.between(f"scale{i}", ranges.scale) for i in range(3)]
    matrix = matrix / torch.tensor(sizes, dtype=torch.float64)
    shift = [draws.between(f"shift{i}", (-ranges.shift_mm, ranges.shift_mm)) for i in range(3)]
    return matrix.to(torch.float32), shift


def place(
    ranges: PhantomRanges, seed: int, subject: int, voxel: Sequence[float]
) -> tuple[float, float, float]:
    """Where in a subject a voxel of the template comes to lie, give or take the displacements of the warp."""
    middle = (np.array(MNI_SHAPE) - 1) / 2.0
    linear, shift = _residual_affine(ranges, Draws(seed, subject))
    x, y, z = np.linalg.solve(linear.double().numpy(), np.asarray(voxel) - middle - shift) + middle
    return float(x), float(y), float(z)


def voxel_of(point_mm: Sequence[float]) -> tuple[float, float, float]:
    """The voxel of the template, not rounded, at a point in MNI space."""
    x, y, z = np.linalg.solve(MNI_AFFINE, [*point_mm, 1.0])[:3]
    return float(x), float(y), float(z)


def smooth_noise(
    draws: Draws,
    name: str,
    knots: tuple[int, int, int],
    shape: tuple[int, int, int] = MNI_SHAPE,
    *,
    visit: bool = False,
) -> Tensor:
    """Unit normal noise on a lattice of knots, interpolated to a volume."""
    lattice = draws.normal(name, knots, visit=visit)[None, None]
    # Twice the knots and a blur first: straight interpolation between few knots leaves visible creases.
    size = [2 * n - 1 for n in knots]
    lattice = F.interpolate(lattice, size=size, mode="trilinear", align_corners=True)
    lattice = F.avg_pool3d(lattice, 3, stride=1, padding=1, count_include_pad=False)
    lattice = lattice / lattice.std()
    return F.interpolate(lattice, size=shape, mode="trilinear", align_corners=True)[0, 0]


def render(
    anatomy: Anatomy,
    ranges: PhantomRanges,
    modality: str,
    seed: int,
    subject: int,
    visit: int = 0,
    *,
    lesions: Lesions | None = None,
) -> np.ndarray:
    """A skull-stripped int16 image of the anatomy, of its shape; exactly 0 outside the brain.

    Args:
        visit: another visit has other noise, bias field and receiver gain, but the same contrast.
        lesions: painted over the tissues.
    """
    contrast = ranges.contrasts[modality]
    draws = Draws(seed, subject, visit)

    def draw(name: str, interval: Interval, *, visit: bool = False) -> float:
        return draws.between(f"{modality} {name}", interval, visit=visit)

    signal = (
        anatomy.white
        + draw("grey", contrast.grey) * anatomy.grey
        + draw("fluid", contrast.fluid) * anatomy.fluid
    )
    signal += draw("detail", contrast.detail) * anatomy.detail
    for part in lesions.parts if lesions else ():
        if modality in part.intensity:
            seen = signal[part.box]
            seen += part.weight * (part.intensity[modality] * (1.0 + part.grain) - seen)
    field_ = smooth_noise(draws, f"{modality} bias", (4, 4, 4), anatomy.shape, visit=True)
    signal *= torch.exp(field_ * (0.5 * draw("bias", contrast.bias, visit=True)))
    inside = torch.nonzero(anatomy.brain.reshape(-1))[:, 0]
    sigma = draw("noise", contrast.noise, visit=True)
    values = signal.reshape(-1)[inside]
    # Magnitude of a complex signal with equal noise in both parts: Rician (Gudbjartsson and Patz 1995).
    real = normal_torch(draws.key(f"{modality} real", visit=True), inside) * sigma + values
    imaginary = normal_torch(draws.key(f"{modality} imaginary", visit=True), inside) * sigma
    white = draw("white", contrast.white) * draw("gain", (0.95, 1.05), visit=True)
    stored = torch.hypot(real, imaginary) * white
    image = torch.zeros(anatomy.brain.numel(), dtype=torch.int16)
    image[inside] = stored.round_().clamp_(1, 32767).to(torch.int16)  # 0 is for what lies outside the brain
    return image.reshape(anatomy.shape).numpy()
