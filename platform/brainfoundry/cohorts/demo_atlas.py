"""The ATLAS-like demo cohort: made-up chronic strokes in ATLAS v2.0's own folders, names and grid.

Subjects are `sub-r901s001` and on, at sites R901 to R904: outside the real sites' numbers. As in ATLAS, and
unlike the other demo cohorts, heads keep skull and scalp (a plain shell: no face, no neck).

How hard it is (generator 1, seed 2024, 12 subjects to tune on, 6 others): calling lesion all brain below the
best threshold on T1w, divided by the median of the subject's brain (it is 0.65), scores a mean Dice of 0.07
on the former and 0.13 (0.01 to 0.43) on the latter.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from brainfoundry.cohorts.demo_files import CohortSummary, complete, nifti_bytes, on_grid
from brainfoundry.cohorts.phantom import Draws, render
from brainfoundry.cohorts.strokes import ATLAS, add_head, make_case
from brainfoundry.core import files, paths
from brainfoundry.core.errors import ConfigError

# Raised whenever the same spec would give other voxels or files, so that nobody reuses an older cohort.
GENERATOR = 1
MAX_SUBJECTS = 999
METADATA = "metadata.csv"
DESCRIPTION = "dataset_description.json"

GRID = (197, 233, 189)
# MNI152NLin2009aSym: RAS, 1 mm, the grid of the ICBM152 2009a template itself.
AFFINE = np.array([[1, 0, 0, -98], [0, 1, 0, -134], [0, 0, 1, -72], [0, 0, 0, 1]], dtype=np.float64)
# Where the anatomy's grid (LAS, 182 x 218 x 182) lies on it: left to right turned, then -91 mm is voxel 7.
_FIRST, _FLIP = (7, 8, 0), (True, False, False)

_IMAGE, _MASK = "T1w", "label-L_desc-T1lesion_mask"
_SITES = (901, 902, 903, 904)
_AGES = (28.0, 86.0)


@dataclass(frozen=True, kw_only=True)
class AtlasSpec:
    """How many subjects of each kind.

    Args:
        n_subjects: with a mask.
        n_no_mask: further ones whose mask was not delivered.
        seed: of everything random.

    Raises:
        ConfigError: negative or impossible numbers.
    """

    n_subjects: int = 12
    n_no_mask: int = 1
    seed: int = 2024

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name.startswith("n_") and value < 0:
                raise ConfigError(f"{name} is {value}", fix="give 0 or more")
        if not 0 < self.n_subjects + self.n_no_mask <= MAX_SUBJECTS:
            n = self.n_subjects + self.n_no_mask
            raise ConfigError(f"{n} ATLAS subjects", fix=f"ask for 1 to {MAX_SUBJECTS:,}")

    def subjects(self) -> Iterator[AtlasSubject]:
        """Every subject, in order of its number."""
        for index in range(self.n_subjects + self.n_no_mask):
            yield AtlasSubject.of(self.seed, index, "whole" if index < self.n_subjects else "no_mask")


@dataclass(frozen=True, kw_only=True)
class AtlasSubject:
    """One made-up subject: a pure function of (seed, index), save for the files that are left out.

    Args:
        index: place in the cohort; the number in the id is index + 1.
        kind: "whole" or "no_mask".
        age: years.
    """

    index: int
    name: str
    kind: str
    site: str
    age: float
    sex: str

    @staticmethod
    def of(seed: int, index: int, kind: str) -> AtlasSubject:
        """The subject."""
        draws = Draws(seed, index)
        site = _SITES[draws.key("site") % len(_SITES)]
        return AtlasSubject(
            index=index,
            name=f"sub-r{site}s{index + 1:03d}",
            kind=kind,
            site=f"R{site}",
            age=round(draws.between("age", _AGES), 1),
            sex="FM"[draws.key("sex") % 2],
        )

    def paths(self) -> list[str]:
        """Where its files lie, relative to the cohort's folder."""
        return [self.path(_IMAGE)] + ([self.path(_MASK)] if self.kind == "whole" else [])

    def path(self, kind: str) -> str:
        """Of one file, by what follows the space in its name."""
        anat = f"{self.site}/{self.name}/ses-1/anat"
        return f"{anat}/{self.name}_ses-1_space-MNI152NLin2009aSym_{kind}.nii.gz"


def default_root() -> str:
    """Where the demo cohort lies when nobody says otherwise."""
    return str(paths.home() / "demo" / "atlas")


def make_atlas_cohort(
    root: str, spec: AtlasSpec | None = None, *, workers: int | None = None
) -> CohortSummary:
    """Make the cohort, or what is missing of it; a finished one of the same spec is reused.

    Args:
        root: folder on any storage, its own: empty, missing, or an earlier demo cohort.
        workers: processes, about 1.3 GB each; default one a core, at most 8.

    Raises:
        DataError: the folder holds another cohort or other files, or cannot be written.
    """
    spec, root = spec or AtlasSpec(), files.absolute(root)
    subjects = list(spec.subjects())
    done = complete(
        root,
        {"cohort": "atlas", "generator": GENERATOR, "spec": asdict(spec)},
        subjects,
        _write_subject,
        seed=spec.seed,
        extra={METADATA: lambda: _metadata(subjects), DESCRIPTION: _description},
        noun="subjects",
        workers=workers,
    )
    kinds = {"with mask": spec.n_subjects, "without mask": spec.n_no_mask}
    return CohortSummary(root=root, kinds=kinds, files=done.files, made=done.made, bytes=done.bytes)


def _metadata(subjects: list[AtlasSubject]) -> bytes:
    rows = [f"{s.name},1,{s.site},{s.age},{s.sex}" for s in subjects]
    return ("\n".join(["Subject ID,Session,Site,Age,Sex", *rows]) + "\n").encode()


def _description() -> bytes:
    value = {
        "Name": "BrainFoundry demo cohort in the layout of ATLAS v2.0 (made up, nobody's scans)",
        "BIDSVersion": "1.6.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "brainfoundry.cohorts.demo_atlas", "Version": str(GENERATOR)}],
    }
    return (json.dumps(value, indent=1) + "\n").encode()


def _write_subject(root: str, seed: int, subject: AtlasSubject, missing: set[str]) -> None:
    """Write those of a subject's files that are missing."""
    anatomy, lesions = make_case(seed, subject.index, subject.age)
    if subject.path(_IMAGE) in missing:
        image = render(anatomy, ATLAS, "T1w", seed, subject.index, lesions=lesions)
        _write(root, subject.path(_IMAGE), add_head(image, anatomy.brain.numpy(), seed, subject.index))
    if subject.path(_MASK) in missing:
        _write(root, subject.path(_MASK), lesions.label.numpy())


def _write(root: str, path: str, volume: np.ndarray) -> None:
    image = nifti_bytes(on_grid(volume, _FIRST, _FLIP, GRID), AFFINE)
    files.write_bytes(files.join(root, path), gzip.compress(image, compresslevel=6, mtime=0))
