"""The ICBM152 brain that nilearn ships, as a mask in millimetres to hold scans against."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel
import numpy as np
from scipy.ndimage import binary_fill_holes

from brainfoundry.core.errors import DataError

_FILE = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
_BRAIN = 0.2  # of the brightest value; the file is skull-stripped
SPACES = ("MNI152", "MNI152NLin2009aSym", "MNI152NLin2009cAsym", "MNI152NLin6Asym")
"""Template spaces whose brains lie where this one lies, to a few millimetres."""


@dataclass(frozen=True)
class Template:
    """A brain mask with its place in the world.

    Args:
        inside_XYZ: bool.
        to_voxel: 4 x 4, mm to voxel.
        ml: its volume.
    """

    inside_XYZ: np.ndarray
    to_voxel: np.ndarray
    ml: float

    def contains(self, points_mm_N3: np.ndarray) -> np.ndarray:
        """(N,) bool: which points lie in the brain."""
        voxel = np.rint(points_mm_N3 @ self.to_voxel[:3, :3].T + self.to_voxel[:3, 3]).astype(np.intp)
        known = ((voxel >= 0) & (voxel < self.inside_XYZ.shape)).all(axis=1)
        found = np.zeros(len(voxel), bool)
        found[known] = self.inside_XYZ[tuple(voxel[known].T)]
        return found


@lru_cache(maxsize=1)
def brain() -> Template:
    """The mask, read once a process.

    Raises:
        DataError: nilearn without its templates.
    """
    spec = importlib.util.find_spec("nilearn")  # its files are enough; importing it takes seconds
    path = Path((spec.submodule_search_locations or [""])[0] if spec else "") / "datasets" / "data" / _FILE
    if not path.exists():
        raise DataError("nilearn does not bring its ICBM152 template", file=path, fix="reinstall nilearn")
    image = nibabel.Nifti1Image.from_filename(path)
    data = np.asarray(image.dataobj)
    inside = binary_fill_holes(data > _BRAIN * data.max())
    ml = float(inside.sum()) * abs(float(np.linalg.det(image.affine[:3, :3]))) / 1000
    return Template(np.asarray(inside), np.linalg.inv(image.affine), ml)
