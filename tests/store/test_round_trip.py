"""NIfTI in, NIfTI out: every header byte, axis order, dtype and scaling comes back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, inv_ornt_aff

from brainfoundry.core.errors import DataError
from brainfoundry.store import restore
from tests.store.builders import AFFINE, brain, nifti, nifti_file, stored_row, volume

CODES = st.permutations(["LR", "PA", "IS"]).flatmap(
    lambda axes: st.tuples(*(st.sampled_from(list(axis)) for axis in axes)).map("".join)
)
DTYPES = st.sampled_from(
    ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]
)


def affine_of(codes: str, shape: tuple[int, ...], tilt: float) -> np.ndarray:
    """An affine of these axis codes, tilted about the third axis."""
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    base = np.diag([1.0, 1.1, 2.0, 1.0])
    base[:3, 3] = -20, 30, 7
    return turn @ base @ np.linalg.inv(inv_ornt_aff(axcodes2ornt(codes), shape))


@settings(max_examples=80, deadline=None)
@given(
    data=st.data(),
    shape=st.tuples(*[st.integers(1, 38)] * 3),
    dtype=DTYPES,
    codes=CODES,
    tilt=st.floats(-0.3, 0.3),
    version=st.sampled_from([1, 2]),
    big_endian=st.booleans(),
    scaling=st.sampled_from([None, (0.363, 0.0), (-2.0, 10.0), (1.0, -1024.0)]),
    extension=st.sampled_from([b"", (32).to_bytes(4, "little") + b"\6\0\0\0" + b"x" * 24]),
    tail=st.sampled_from([b"", b"after"]),
    lossless=st.booleans(),
)
def test_the_file_comes_back(
    data: st.DataObject, shape, dtype, codes, tilt, version, big_endian, scaling, extension, tail, lossless
) -> None:  # fmt: skip
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    kind = np.dtype(dtype)
    top = min(np.iinfo(kind).max, 100_000) if kind.kind in "iu" else 500
    numbers = rng.uniform(0 if kind.kind == "u" else -top / 9, top, shape) * (rng.random(shape) < 0.7)
    numbers = numbers.astype(kind)
    numbers[(0,) * 3] = 1
    affine = affine_of(codes, shape, tilt)
    source = nifti_file(
        numbers,
        affine,
        version=version,
        big_endian=big_endian,
        scaling=scaling,
        extension=extension,
        tail=tail,
    )
    decoded = volume(source)
    assert decoded.header.orientation == codes
    assert nibabel.aff2axcodes(decoded.affine) == ("R", "A", "S")
    corner = np.array([0, 0, 0, 1.0])  # the first stored voxel lies where it lay
    at = [0 if flip > 0 else n - 1 for n, (_, flip) in zip(shape, decoded.orientation, strict=True)]
    in_ras = np.ones(4)
    for i, (axis, _) in enumerate(decoded.orientation):
        in_ras[int(axis)] = at[i]
    np.testing.assert_allclose(decoded.affine @ in_ras, decoded.header.affine @ corner, atol=1e-4)

    with tempfile.TemporaryDirectory() as folder:
        row = stored_row(Path(folder), [decoded], float_mode="lossless" if lossless else "quantize")
        back = restore.nifti_bytes(row, 0)
    assert len(back) == len(source)
    if row.head["scans"][0]["coding"] != "affine":
        assert back == source
        return
    head = decoded.header.offset
    end = decoded.header.total_bytes
    assert back[:head] == source[:head] and back[end:] == source[end:]
    found = volume(back).raw_XYZ.astype(float)
    span = float(numbers.max()) - float(numbers.min())
    assert np.abs(found - decoded.raw_XYZ.astype(float)).max() <= span / 131_070


def test_nibabel_sees_the_same_image(tmp_path: Path) -> None:
    source = nifti_file(brain(3), AFFINE, scaling=(0.5, 0.0))
    image = restore.nifti_image(restore.nifti_bytes(stored_row(tmp_path, [volume(source)]), 0))
    expected = nibabel.Nifti1Image.from_bytes(source)
    assert image.header == expected.header and image.get_data_dtype() == np.int16
    assert (image.affine == expected.affine).all()
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (2, 4)
    assert (image.get_fdata() == expected.get_fdata()).all()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_the_written_file_loads(tmp_path: Path, name: str) -> None:
    source = nifti(brain(4))
    restore.write_nifti(str(tmp_path / name), restore.nifti_bytes(stored_row(tmp_path, [volume(source)]), 0))
    assert (nibabel.load(tmp_path / name).get_fdata() == brain(4)).all()


def test_minus_zero_background_stays_out_of_the_box_and_comes_back(tmp_path: Path) -> None:
    numbers = (brain(5) * 0.37).astype(np.float32)
    numbers[numbers == 0] = -0.0
    source = nifti(numbers)
    row = stored_row(tmp_path, [volume(source)], float_mode="lossless")
    assert all(hi - lo < n for lo, hi, n in zip(row.box_lo, row.box_hi, row.shape, strict=True))
    assert restore.nifti_bytes(row, 0) == source


def test_float64_comes_back_bit_for_bit_in_lossless_mode(tmp_path: Path) -> None:
    source = nifti(brain(6) / 7.0)
    row = stored_row(tmp_path, [volume(source)], float_mode="lossless")
    assert row.code_dtypes == [np.float32]
    assert restore.nifti_bytes(row, 0) == source


def test_a_resampled_volume_is_not_restored(tmp_path: Path) -> None:
    row = stored_row(tmp_path, [volume(nifti(brain(7)))], spacing_mm=2.0)
    with pytest.raises(DataError, match=r"T1w was resampled .* Fix: convert without spacing_mm"):
        restore.nifti_bytes(row, 0)
