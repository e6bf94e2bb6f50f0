"""The readers on real scans in their cohorts' layouts: tumour as BraTS, MS as BIDS, and odd ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from brainfoundry.cohorts.bids import BidsChoice, read_bids
from brainfoundry.cohorts.brats import read_brats
from brainfoundry.cohorts.intake import IntakeRules
from brainfoundry.cohorts.manifest import Manifest

from .layouts import BRATS21, BRATS23, link, needs_real_scans

pytestmark = needs_real_scans
MS = {"T1w": "T1w", "ce-gadolinium_T1w": "T1wpost", "T2w": "T2w", "FLAIR": "FLAIR"}


@pytest.mark.parametrize("year", [2021, 2023])
def test_tumour_as_brats(tmp_path: Path, year: int) -> None:
    for kind, real in zip(BRATS21 if year == 2021 else BRATS23, BRATS21, strict=True):
        case = "BraTS2021_90001" if year == 2021 else "BraTS-GLI-90001-000"
        name = f"{case}{'_' if year == 2021 else '-'}{kind}.nii.gz"
        link(tmp_path / "root" / case / name, f"tumour/TCGA-DU-7294/TCGA-DU-7294_{real}.nii.gz")
    manifest = read_brats(str(tmp_path / "root"), str(tmp_path / "m.parquet"))
    (row,) = manifest.rows()
    assert row.included, row.detail
    assert manifest.meta.labels == f"brats{year}"
    assert row.label is not None and row.label.dtype == "uint8"
    for scan in (*row.scans, row.label):
        assert (scan.shape, scan.spacing, scan.orientation) == ((240, 240, 155), (1.0, 1.0, 1.0), "LPS")


def ms_dataset(root: Path) -> Path:
    for name, real in MS.items():
        link(root / f"sub-19/anat/sub-19_{name}.nii.gz", f"lesion/ms-patient19/ms-patient19_{real}.nii.gz")
    mask = root / "derivatives/raters/sub-19/anat/sub-19_label-lesion_mask.nii.gz"
    link(mask, "lesion/ms-patient19/ms-patient19_lesion.nii.gz")
    return root


def read(root: Path, *modalities: str, **options) -> Manifest:
    rules = IntakeRules(modalities=modalities, **options)
    return read_bids(str(root), str(root.parent / "m.parquet"), rules, BidsChoice(space="MNI152"))


def test_ms_as_bids(tmp_path: Path) -> None:
    manifest = read(ms_dataset(tmp_path / "ds"), "T1w", "T1ce", "T2w", "FLAIR", labels="required")
    (row,) = manifest.rows()
    assert row.included, row.detail
    assert [scan.modality for scan in row.scans] == ["T1w", "T1ce", "T2w", "FLAIR"]
    assert {(s.shape, s.orientation, s.dtype) for s in row.scans} == {((182, 218, 182), "LAS", "float32")}
    assert row.label is not None and row.label.orientation == "LAS"


def test_odd_scans_as_bids_each_cost_one_row_and_say_why(tmp_path: Path) -> None:
    root = ms_dataset(tmp_path / "ds")
    odd = {
        "sub-01/anat/sub-01_T1w.nii.gz": "odd/dmri_4d.nii.gz",
        "sub-01/anat/sub-01_FLAIR.nii.gz": "odd/dmri_4d.nii.gz",
        "sub-02/anat/sub-02_T1w.nii.gz": "odd/complex64.nii.gz",
        "sub-02/anat/sub-02_FLAIR.nii.gz": "odd/epi_int32_oblique.nii.gz",
        "sub-03/anat/sub-03_T1w.nii.gz": "odd/ms-long-patient01/ms-long-patient01_T1w.nii.gz",
        "sub-03/anat/sub-03_FLAIR.nii.gz": "odd/ms-long-patient01/ms-long-patient01_FLAIR.nii.gz",
        "sub-04/anat/sub-04_T1w.nii.gz": "odd/epi_int32_oblique.nii.gz",
        "sub-04/anat/sub-04_FLAIR.nii.gz": "odd/epi_int32_oblique.nii.gz",
        "sub-05/anat/sub-05_T1w.nii.gz": "healthy/IXI012-HH-1211_T1w.nii.gz",
        "sub-05/anat/sub-05_FLAIR.nii.gz": "healthy/IXI012-HH-1211_T1w.nii.gz",
    }
    mask = "derivatives/l/sub-05/anat/sub-05_label-lesion_mask.nii.gz"
    odd[mask] = "stroke/sub-M2307/sub-M2307_lesion.nii.gz"
    for path, scan in odd.items():
        link(root / path, scan)
    rows = {row.subject: row for row in read(root, "T1w", "FLAIR", labels="optional", min_slices=50).rows()}
    assert {subject: row.reason for subject, row in rows.items()} == {
        "sub-19": "", "sub-01": "unsupported_image", "sub-02": "unsupported_image", "sub-03": "grid_mismatch",
        "sub-04": "", "sub-05": "label_grid_mismatch",
    }  # fmt: skip
    assert "4D (33x33x19x4)" in rows["sub-01"].detail and "complex" in rows["sub-02"].detail
    assert "320x320x39 and 320x320x36 voxels" in rows["sub-03"].detail
    assert "T1w: 39 axial" in rows["sub-03"].detail or "FLAIR: 36 axial slices" in rows["sub-03"].detail
    assert rows["sub-04"].scans[0].orientation == "LAS"


def test_four_orientations_of_one_scene_have_as_many_axial_slices(tmp_path: Path) -> None:
    for i, codes in enumerate(("RAS", "LPS", "PSR", "AIL")):
        link(tmp_path / f"ds/sub-{i}/anat/sub-{i}_T1w.nii.gz", f"odd/orient/mni_{codes}.nii.gz")
    fine = read(tmp_path / "ds", "T1w", labels="ignore", min_slices=67)
    assert [row.reason for row in fine.rows()] == [""] * 4
    assert [row.scans[0].shape for row in fine.rows()][2:] == [(79, 67, 64)] * 2
    few = read(tmp_path / "ds", "T1w", labels="ignore", min_slices=68)
    assert ["T1w: 67 axial slices, fewer than 68" in row.detail for row in few.rows()] == [True] * 4
