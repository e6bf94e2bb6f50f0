"""The BraTS-like demo cohort: BraTS 2021's folders, grid, axes and labels; made once, at full size."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from brainfoundry.cohorts import demo_brats
from brainfoundry.cohorts.brats import read_brats
from brainfoundry.cohorts.demo_brats import AFFINE, GRID, BratsCase, BratsSpec, make_brats_cohort
from brainfoundry.cohorts.demo_files import on_grid
from brainfoundry.cohorts.phantom import make_anatomy
from brainfoundry.cohorts.tumours import BRATS
from brainfoundry.core.errors import ConfigError, DataError

SPEC = BratsSpec(n_cases=1, n_no_t1ce=1)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "brats"
    made = make_brats_cohort(str(root), SPEC, workers=1)
    assert (made.files, made.made) == (9, 9)
    assert made.kinds == {"enhancing": 1, "without enhancing part": 0, "without T1ce": 1}
    return root


def load(root: Path, case: int, kind: str) -> nibabel.Nifti1Image:
    return nibabel.load(root / f"BraTS2021_{case}" / f"BraTS2021_{case}_{kind}.nii.gz")


def test_layout_is_brats_2021s(cohort) -> None:
    assert {str(p.relative_to(cohort)) for p in cohort.rglob("*.nii.gz")} == {
        f"BraTS2021_{case}/BraTS2021_{case}_{kind}.nii.gz"
        for case in (90001, 90002)
        for kind in ("t1", "t1ce", "t2", "flair", "seg")
        if (case, kind) != (90002, "t1ce")
    }


def test_the_reader_finds_each_case(cohort, tmp_path) -> None:
    manifest = read_brats(str(cohort), str(tmp_path / "m.parquet"))
    verdicts = {row.subject: row.reason for row in manifest.rows()}
    assert verdicts == {"BraTS2021_90001": "", "BraTS2021_90002": "missing_modality"}
    assert manifest.meta.labels == "brats2021"


def test_grid_axes_and_types(cohort) -> None:
    for kind in ("t1", "t1ce", "t2", "flair", "seg"):
        image = load(cohort, 90001, kind)
        assert image.shape == GRID == (240, 240, 155)
        assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
        np.testing.assert_array_equal(image.affine, AFFINE)
        assert image.get_data_dtype() == (np.uint8 if kind == "seg" else np.int16)


def test_skull_stripped_together_and_labelled(cohort) -> None:
    volumes = {k: np.asarray(load(cohort, 90001, k).dataobj) for k in ("t1", "t1ce", "t2", "flair", "seg")}
    seg = volumes.pop("seg")
    inside = volumes["t1"] > 0
    assert all(np.array_equal(v > 0, inside) and v.min() == 0 for v in volumes.values())
    assert 0.9e6 < np.count_nonzero(inside) < 1.7e6
    assert set(np.unique(seg)) == {0, 1, 2, 4} and not seg[~inside].any()
    # Front and top: the brain's foot (cerebellum) lies low and, in LPS, at high second index.
    low = np.argwhere(inside[:, :, 15:30])
    assert low[:, 1].mean() > np.argwhere(inside)[:, 1].mean() + 10
    for axis in range(3):  # nothing is cut off at a face of the grid
        faces = np.take(inside, [0, -1], axis)
        assert not faces.any()


def test_left_is_left() -> None:
    # The template is symmetric, so only a mark can tell: one on the left of the anatomy's grid (LAS).
    mark = np.zeros((182, 218, 182), np.int16)
    mark[150, 200, 100] = 1  # left, front
    moved = on_grid(mark, demo_brats._FIRST, demo_brats._FLIP, GRID)
    canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(moved, AFFINE))
    x, y, z = np.argwhere(np.asarray(canonical.dataobj))[0]
    assert x < 120 < y and z == 100


def test_every_brain_fits_the_grid() -> None:
    for index in range(4):
        anatomy = make_anatomy(BRATS, 2024, index, 50.0, step=2)
        slices = torch.nonzero(anatomy.brain.any(0).any(0))[:, 0]
        assert 2 * int(slices.max()) < GRID[2]


def test_a_case_lost_is_made_again_as_it_was(cohort) -> None:
    path = cohort / "BraTS2021_90002" / "BraTS2021_90002_flair.nii.gz"
    before = path.read_bytes()
    path.unlink()
    assert make_brats_cohort(str(cohort), SPEC, workers=1).made == 1
    assert path.read_bytes() == before
    assert make_brats_cohort(str(cohort), SPEC).made == 0
    with pytest.raises(DataError, match="demo cohort of another spec"):
        make_brats_cohort(str(cohort), BratsSpec(n_cases=2))


def test_numbers_are_outside_the_real_range() -> None:
    cases = list(BratsSpec(n_cases=1000).cases())
    numbers = [int(case.name.removeprefix("BraTS2021_")) for case in cases]
    assert min(numbers) == 90_001 > 1666 and len(set(numbers)) == 1001
    assert demo_brats.FIRST_CASE + demo_brats.MAX_CASES <= 100_000


def test_cases_do_not_depend_on_the_others() -> None:
    few, many = (list(BratsSpec(n_cases=n, n_no_t1ce=0).cases()) for n in (9, 40))
    assert few == many[:9]
    without = [case.index for case in many if not case.enhancing]
    assert without == [3, 11, 19, 27, 35]
    assert few != [BratsCase.of(2025, i, "whole") for i in range(9)]


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"n_cases": -1}, "n_cases is -1"),
        ({"n_cases": 0, "n_no_t1ce": 0}, "0 BraTS cases.*Fix: ask for 1 to 9,999"),
        ({"n_cases": 10_000}, "Fix: ask for 1 to 9,999"),
    ],
)
def test_impossible_specs(spec, problem) -> None:
    with pytest.raises(ConfigError, match=problem):
        BratsSpec(**spec)
