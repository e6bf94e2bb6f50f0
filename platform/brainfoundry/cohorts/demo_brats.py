"""The BraTS-like demo cohort: made-up gliomas in BraTS 2021's own folders, grid, axes and labels.

Case numbers begin at 90,001. Real ones lie between 00000 and 01666, so that no demo file can be taken for a
patient's. Every eighth case has no enhancing part.

How hard it is (generator 1, seed 2024, 12 cases to tune on, 6 others): the best threshold on FLAIR divided
by the median of the subject's brain (it is 1.35) scores a mean whole-tumour Dice of 0.62 on the former and
0.58 (0.49 to 0.71) on the latter.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from brainfoundry.cohorts.demo_files import CohortSummary, complete, nifti_bytes, on_grid
from brainfoundry.cohorts.phantom import Draws, render
from brainfoundry.cohorts.tumours import BRATS, make_case
from brainfoundry.core import files, paths
from brainfoundry.core.errors import ConfigError

# Raised whenever the same spec would give other voxels or files, so that nobody reuses an older cohort.
GENERATOR = 1
FIRST_CASE = 90_001
MAX_CASES = 9_999

GRID = (240, 240, 155)
# As BraTS has it: LPS, 1 mm, origin at the corner.
AFFINE = np.array([[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=np.float64)
# Where the anatomy's voxel 0 (LAS, 182 x 218 x 182) lies on it, front to back turned.
_FIRST, _FLIP = (29, 22, 0), (False, True, False)

SUFFIX = {"T1w": "t1", "T1ce": "t1ce", "T2w": "t2", "FLAIR": "flair"}
_LABEL = "seg"
_AGES = (22.0, 82.0)
_NO_ENHANCING_EVERY = 8


@dataclass(frozen=True, kw_only=True)
class BratsSpec:
    """How many cases of each kind.

    Args:
        n_cases: whole ones.
        n_no_t1ce: further ones without the T1ce.
        seed: of everything random.

    Raises:
        ConfigError: negative or impossible numbers.
    """

    n_cases: int = 12
    n_no_t1ce: int = 1
    seed: int = 2024

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name.startswith("n_") and value < 0:
                raise ConfigError(f"{name} is {value}", fix="give 0 or more")
        if not 0 < self.n_cases + self.n_no_t1ce <= MAX_CASES:
            n = self.n_cases + self.n_no_t1ce
            raise ConfigError(f"{n} BraTS cases", fix=f"ask for 1 to {MAX_CASES:,}")

    def cases(self) -> Iterator[BratsCase]:
        """Every case, in order of its number."""
        for index in range(self.n_cases + self.n_no_t1ce):
            yield BratsCase.of(self.seed, index, "whole" if index < self.n_cases else "no_t1ce")


@dataclass(frozen=True, kw_only=True)
class BratsCase:
    """One made-up case: a pure function of (seed, index), save for the files that are left out.

    Args:
        index: place in the cohort; the case's number is `FIRST_CASE` + index.
        kind: "whole" or "no_t1ce".
        enhancing: has a part of label 4.
        age: years; shows in ventricles, cortex and white matter.
    """

    index: int
    name: str
    kind: str
    enhancing: bool
    age: float

    @staticmethod
    def of(seed: int, index: int, kind: str) -> BratsCase:
        """The case."""
        return BratsCase(
            index=index,
            name=f"BraTS2021_{FIRST_CASE + index:05d}",
            kind=kind,
            enhancing=index % _NO_ENHANCING_EVERY != 3,
            age=round(Draws(seed, index).between("age", _AGES), 1),
        )

    def paths(self) -> list[str]:
        """Where its files lie, relative to the cohort's folder."""
        kinds = [SUFFIX[m] for m in SUFFIX if not (self.kind == "no_t1ce" and m == "T1ce")]
        return [self.path(kind) for kind in (*kinds, _LABEL)]

    def path(self, kind: str) -> str:
        """Of one file: "t1", "t1ce", "t2", "flair" or "seg"."""
        return f"{self.name}/{self.name}_{kind}.nii.gz"


def default_root() -> str:
    """Where the demo cohort lies when nobody says otherwise."""
    return str(paths.home() / "demo" / "brats")


def make_brats_cohort(
    root: str, spec: BratsSpec | None = None, *, workers: int | None = None
) -> CohortSummary:
    """Make the cohort, or what is missing of it; a finished one of the same spec is reused.

    Args:
        root: folder on any storage, its own: empty, missing, or an earlier demo cohort.
        workers: processes, about 1.5 GB each; default one a core, at most 8.

    Raises:
        DataError: the folder holds another cohort or other files, or cannot be written.
    """
    spec, root = spec or BratsSpec(), files.absolute(root)
    cases = list(spec.cases())
    record = {"cohort": "brats", "generator": GENERATOR, "spec": asdict(spec)}
    done = complete(root, record, cases, _write_case, seed=spec.seed, extra={}, noun="cases", workers=workers)
    kinds = {
        "enhancing": sum(c.enhancing and c.kind == "whole" for c in cases),
        "without enhancing part": sum(not c.enhancing and c.kind == "whole" for c in cases),
        "without T1ce": spec.n_no_t1ce,
    }
    return CohortSummary(root=root, kinds=kinds, files=done.files, made=done.made, bytes=done.bytes)


def _write_case(root: str, seed: int, case: BratsCase, missing: set[str]) -> None:
    """Write those of a case's files that are missing."""
    anatomy, lesions = make_case(seed, case.index, case.age, enhancing=case.enhancing)
    for modality, suffix in SUFFIX.items():
        if case.path(suffix) in missing:
            image = render(anatomy, BRATS, modality, seed, case.index, lesions=lesions)
            _write(root, case.path(suffix), image)
    if case.path(_LABEL) in missing:
        _write(root, case.path(_LABEL), lesions.label.numpy())


def _write(root: str, path: str, volume: np.ndarray) -> None:
    image = nifti_bytes(on_grid(volume, _FIRST, _FLIP, GRID), AFFINE, code=1)
    files.write_bytes(files.join(root, path), gzip.compress(image, compresslevel=6, mtime=0))
