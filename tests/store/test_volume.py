"""Bad volumes, each with its reason and a clear line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfoundry.cohorts.exclusions import ScanError
from tests.store.builders import AFFINE, brain, nifti, stored_row, volume


def refused(data: bytes, reason: str, words: str) -> None:
    with pytest.raises(ScanError, match=words) as caught:
        volume(data)
    assert caught.value.reason == reason
    assert caught.value.subject == "9900001" and caught.value.file == "scan.nii.gz"
    assert "\n" not in str(caught.value)


def test_not_finite() -> None:
    data = brain(1).astype(np.float32)
    data[3, 4, 5], data[6, 7, 8] = np.nan, np.inf
    refused(nifti(data), "not_finite", "2 of 66,880 voxels are NaN or infinite")
    refused(nifti(brain(1) * 1e60), "not_finite", "beyond float32")


def test_other_kinds_of_image() -> None:
    refused(nifti(np.zeros((5, 5, 5, 3), np.int16)), "unsupported_image", "4D")
    refused(nifti(np.zeros((5, 5, 5), np.complex64)), "unsupported_image", "complex")
    refused(b"hello" * 200, "not_nifti", "not a NIfTI")
    refused(nifti(brain(1))[:-1], "damaged_data", r"voxel data is cut short: 134,111 of 134,112 bytes")


def test_nothing_but_background(tmp_path: Path) -> None:
    empty = volume(nifti(np.zeros((40, 44, 38), np.int16)))
    with pytest.raises(ScanError, match="FLAIR is nothing but background") as caught:
        stored_row(
            tmp_path, [volume(nifti(brain(1))), volume(nifti(np.zeros((40, 44, 38), np.int16)), "FLAIR")]
        )
    assert caught.value.reason == "empty_volume"
    with pytest.raises(ScanError, match="T1w is nothing but background"):
        stored_row(tmp_path, [empty])


def test_too_few_slices_with_brain(tmp_path: Path) -> None:
    thin = brain(1)
    thin[:, :, 20:] = 0
    n = int((thin != 0).any(axis=(0, 1)).sum())
    stored_row(tmp_path, [volume(nifti(thin))], min_slices=n)
    with pytest.raises(
        ScanError, match=f"{n} axial slices of T1w show brain, {n + 1} are asked for"
    ) as caught:
        stored_row(tmp_path, [volume(nifti(thin))], min_slices=n + 1)
    assert caught.value.reason == "too_few_slices_content"


def test_slices_are_axial_whatever_the_stored_order(tmp_path: Path) -> None:
    thin = brain(1)
    thin[:, :, 20:] = 0
    n = int((thin != 0).any(axis=(0, 1)).sum())
    turned = nifti(np.ascontiguousarray(thin.transpose(2, 0, 1)), AFFINE[:, [2, 0, 1, 3]])
    with pytest.raises(ScanError, match=f"{n} axial slices"):
        stored_row(tmp_path, [volume(turned)], min_slices=n + 1)


def test_modalities_on_different_grids(tmp_path: Path) -> None:
    first = volume(nifti(brain(1)))
    shifted = AFFINE.copy()
    shifted[0, 3] += 0.5
    with pytest.raises(ScanError, match=r"T1w and FLAIR lie on different grids: 0\.5 mm apart") as caught:
        stored_row(tmp_path, [first, volume(nifti(brain(2), shifted), "FLAIR")])
    assert caught.value.reason == "grid_mismatch"
    with pytest.raises(ScanError, match="different grids: 40x44x38 against 40x44x37"):
        stored_row(tmp_path, [first, volume(nifti(brain(2)[:, :, :37]), "FLAIR")])
    near = AFFINE.copy()
    near[0, 3] += 0.001  # a header's rounding
    stored_row(tmp_path, [first, volume(nifti(brain(2), near), "FLAIR")])


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 351), value=st.integers(0, 255), cut=st.integers(0, 400))
def test_a_damaged_header_never_gives_anything_but_a_scan_error(at: int, value: int, cut: int) -> None:
    data = bytearray(nifti(brain(1, (6, 7, 8)), AFFINE))
    data[at] = value
    try:
        volume(bytes(data[: len(data) - cut] if cut > 200 else data))
    except ScanError as error:
        assert error.reason and "\n" not in str(error)
