"""A small cohort that verification finds nothing wrong with: brains of the template's shape, 4 mm voxels."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from scipy.ndimage import gaussian_filter

from brainfoundry.cohorts.manifest import Manifest, ManifestMeta, Row, Scan, read_manifest, write_manifest
from brainfoundry.cohorts.nifti_header import parse_header
from brainfoundry.quality.template import brain as template

MM = 4.0
SHAPE = (46, 55, 46)
AFFINE = np.array([[MM, 0, 0, -90], [0, MM, 0, -126], [0, 0, MM, -72], [0, 0, 0, 1]])
SLICES = 36
"""Axial slices the brain fills here: 38; the rule of these cohorts asks for 36."""


def inside(affine: np.ndarray = AFFINE, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Bool: which voxels lie in the template brain."""
    return _inside(tuple(affine.ravel()), shape)


@lru_cache
def _inside(numbers: tuple[float, ...], shape: tuple[int, int, int]) -> np.ndarray:
    affine = np.array(numbers).reshape(4, 4)
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3)
    return template().contains(points @ affine[:3, :3].T + affine[:3, 3]).reshape(shape)


@lru_cache
def _texture(modality: str, seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    rng = np.random.default_rng((seed, sum(modality.encode())))
    soft = gaussian_filter(rng.normal(size=shape), 2.5)
    level = {"T1w": 700, "FLAIR": 400}.get(modality, 500) * rng.uniform(0.9, 1.1)
    return level * (1 + 0.12 * soft / soft.std() + 0.08 * rng.normal(size=shape))


def brain(
    seed: int, modality: str = "T1w", affine: np.ndarray = AFFINE, shape: tuple[int, int, int] = SHAPE
) -> np.ndarray:
    """int16 brain of one person, 0 around it."""
    return (_texture(modality, seed, shape).clip(20) * inside(affine, shape)).astype(np.int16)


def lesion(seed: int, affine: np.ndarray = AFFINE, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """uint8 mask with one ball of label 1 in the left or right white matter."""
    mm = np.array([(-1) ** seed * 28.0, -20.0, 25.0])
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    return (np.linalg.norm(grid - mm, axis=-1) < 10).astype(np.uint8)


@dataclass
class Image:
    """A file in the making: what a fault may change before it is written."""

    data: np.ndarray
    affine: np.ndarray = field(default_factory=AFFINE.copy)
    slope: float | None = None

    def nifti(self) -> bytes:
        """Decompressed bytes."""
        image = nibabel.Nifti1Image(self.data, self.affine)
        raw = bytearray(image.to_bytes())
        if self.slope is not None:
            raw[112:116] = np.float32(self.slope).tobytes()  # scl_slope
        return bytes(raw)


@dataclass
class Session:
    """A session: images by modality ("label" is the mask), and what the manifest will say of it."""

    subject: str
    session: str
    images: dict[str, Image]
    row: dict[str, Any] = field(default_factory=dict)
    scans: dict[str, dict[str, Any]] = field(default_factory=dict)
    after: Callable[[Mapping[str, Path]], None] | None = None
    """What happens to the files once the intake has seen them."""


def session(number: int, *, visit: str = "1", labelled: bool = True) -> Session:
    """A session without fault."""
    images = {name: Image(brain(number, name)) for name in ("T1w", "FLAIR")}
    if labelled:
        images["label"] = Image(lesion(number))
    return Session(f"s{number:03d}", visit, images)


def cohort(folder: Path, sessions: list[Session], **meta: Any) -> Manifest:
    """Files and the intake manifest of the sessions."""
    rows = [_write(folder, s) for s in sorted(sessions, key=lambda s: (s.subject, s.session))]
    given: dict[str, Any] = {
        "cohort": "small", "modalities": ("T1w", "FLAIR"), "template_space": "MNI152",
        "skull_stripped": True, "source": str(folder), "rules": {"min_slices": SLICES}, "labels": "binary",
    }  # fmt: skip
    write_manifest(str(folder / "manifest.parquet"), rows, ManifestMeta(**given | meta))
    return read_manifest(str(folder / "manifest.parquet"))


def _write(folder: Path, one: Session) -> Row:
    scans, paths = {}, {}
    for modality, image in one.images.items():
        path = folder / one.subject / f"{one.subject}_{one.session}_{modality}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = image.nifti()
        path.write_bytes(gzip.compress(raw, 1, mtime=0))
        paths[modality] = path
        try:
            header = parse_header(raw, file=path)
            known = {
                "shape": header.shape, "spacing": header.spacing, "orientation": header.orientation,
                "dtype": header.dtype,
            }  # fmt: skip
        except Exception:  # a fault that an intake would have seen: the manifest says what should be there
            known = {"shape": SHAPE, "spacing": (MM,) * 3, "orientation": "RAS", "dtype": "int16"}
        scan = Scan(modality=modality, uri=str(path), size=path.stat().st_size, **known)
        scans[modality] = replace(scan, **one.scans.get(modality, {}))
    if one.after is not None:
        one.after(paths)
    label = scans.pop("label", None)
    row = Row(
        subject=one.subject, session=one.session, cohort="small", scans=tuple(scans.values()), label=label
    )
    return replace(row, **one.row)
