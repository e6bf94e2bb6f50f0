"""The header reader says what nibabel says, refuses what we do not train on, and survives any bytes."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfoundry.cohorts.exclusions import NotNifti, ScanError, UnreadableArchive, UnsupportedImage
from brainfoundry.cohorts.nifti_header import parse_header, read_header

from .builders import nifti_gz

SCANS = Path(__file__).resolve().parents[2] / ".." / "shared" / "scans"
OBLIQUE = np.array([[0.0, -1.9, 0.3, 10], [2.0, 0.1, 0, -20], [0, 0.2, 3.0, 5], [0, 0, 0, 1]])


def read(data: bytes, *, gzipped: bool = True):
    return read_header(io.BytesIO(data), size=len(data), gzipped=gzipped, file="scan.nii.gz", subject="7")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_header_comes_back_as_it_was_set(version, endianness, dtype) -> None:
    header = {1: nibabel.Nifti1Header, 2: nibabel.Nifti2Header}[version](endianness=endianness)
    header.set_data_dtype(dtype)
    header.set_data_shape((5, 6, 7))
    header.set_sform(OBLIQUE, code=2)
    header.set_zooms((1.5, 2.0, 3.0))
    header.set_slope_inter(2.5, -3.0)
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    raw = header.binaryblock + bytes(4 + 5 * 6 * 7 * np.dtype(dtype).itemsize)
    for found in (read(raw, gzipped=False), read(gzip.compress(raw))):
        assert (found.version, found.shape, found.spacing) == (version, (5, 6, 7), (1.5, 2.0, 3.0))
        assert (found.dtype, found.orientation, found.slope, found.inter) == (dtype, "ALS", 2.5, -3.0)
        assert found.total_bytes == len(raw)
        np.testing.assert_allclose(found.affine, OBLIQUE, rtol=1e-6)


def test_no_scaling_reads_as_one_and_zero() -> None:
    for slope in (0.0, float("nan")):
        found = read(patched(112, struct.pack("<f", slope)), gzipped=False)
        assert (found.slope, found.inter) == (1.0, 0.0)


def test_real_scans_agree_with_nibabel() -> None:
    if not SCANS.is_dir():
        pytest.skip("no real scans beside this checkout (../shared/scans)")
    paths = sorted(SCANS.rglob("*.nii.gz"))
    assert len(paths) > 20
    refused = {}
    for path in paths:
        data, expected = path.read_bytes(), nibabel.load(path)
        try:
            found = read(data)
        except UnsupportedImage as error:
            refused[path.name] = error.problem
            continue
        assert found.shape == expected.shape
        assert found.dtype == expected.get_data_dtype().name
        assert found.orientation == "".join(nibabel.aff2axcodes(expected.affine))
        np.testing.assert_allclose(found.affine, expected.affine)
        slope, inter = expected.dataobj.slope, expected.dataobj.inter
        assert (found.slope, found.inter) == (slope, inter)
        assert found.offset == expected.dataobj.offset
    assert set(refused) == {"dmri_4d.nii.gz", "complex64.nii.gz"}
    assert "4D (33x33x19x4), not 3D" in refused["dmri_4d.nii.gz"]
    assert "complex" in refused["complex64.nii.gz"]


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (nifti_gz((2, 2, 3, 4)), "image is 4D (2x2x3x4), not 3D"),
        (nifti_gz((2, 2, 3, 1)), "image is 4D (2x2x3x1), not 3D"),
        (nifti_gz((2, 3)), "image is 2D (2x3), not 3D"),
        (nifti_gz((0, 2, 3)), "image has no voxels (0x2x3)"),
        (nifti_gz((2, 2, 3), dtype=np.complex64), "voxels are complex (complex64)"),
        (nifti_gz((2, 2, 3), dtype=RGB), "voxels are RGB"),
    ],
)
def test_images_we_do_not_train_on_are_refused(data, problem) -> None:
    with pytest.raises(UnsupportedImage) as caught:
        read(data)
    assert caught.value.problem.startswith(problem)
    assert caught.value.reason == "unsupported_image"
    assert "subject 7; file scan.nii.gz" in caught.value.line()


def patched(offset: int, value: bytes) -> bytes:
    """A whole little-endian NIfTI-1 file with some header bytes replaced."""
    raw = bytearray(gzip.decompress(nifti_gz((2, 2, 3))))
    raw[offset : offset + len(value)] = value
    return bytes(raw)


@pytest.mark.parametrize(
    ("raw", "kind", "problem"),
    [
        (patched(344, b"\0\0\0\0"), NotNifti, "an Analyze file or a damaged header"),
        (patched(344, b"ni1\0"), NotNifti, "the .hdr half of a pair"),
        (patched(0, b"\0\0\0\0"), NotNifti, "not a NIfTI file"),
        (patched(108, struct.pack("<f", 16.0)), NotNifti, "voxels are said to begin at byte 16"),
        (patched(70, struct.pack("<h", 9999)), UnsupportedImage, r"voxel type \(code 9999\)"),
        (patched(80, struct.pack("<f", 0.0)), UnsupportedImage, "is not positive"),
        (patched(80, struct.pack("<f", float("nan"))), UnsupportedImage, "is not positive"),
        (patched(280, bytes(48)), UnsupportedImage, "affine is singular"),
        (
            patched(42, struct.pack("<hhh", 30000, 30000, 30000)),
            UnreadableArchive,
            "too short for its 30000x",
        ),
        (patched(42, struct.pack("<h", -5)), UnsupportedImage, "image has no voxels"),
        (patched(0, b"")[:200], NotNifti, "ends inside its NIfTI header, after 200 bytes"),
        (b"<html>not found</html>" * 40, NotNifti, "not a NIfTI file"),
        (b"", NotNifti, "empty"),
    ],
)
def test_damaged_headers_are_named(raw, kind, problem) -> None:
    with pytest.raises(kind, match=problem):
        read(raw, gzipped=False)
    if raw:
        with pytest.raises(kind, match=problem):
            read(gzip.compress(raw))


def test_gzip_trouble_is_named() -> None:
    whole = nifti_gz()
    with pytest.raises(NotNifti, match="does not begin as gzip"):
        read(b"\0" + whole[1:])
    with pytest.raises(UnreadableArchive, match="ends within its first bytes"):
        read(whole[:60])
    with pytest.raises(UnreadableArchive, match="damaged within its first bytes"):
        read(whole[:10] + b"\xff" * 200)
    with pytest.raises(NotNifti, match="empty"):
        read(b"")


def test_only_the_first_bytes_are_read() -> None:
    data = gzip.compress(gzip.decompress(nifti_gz((64, 64, 64))), compresslevel=0)
    stream = io.BytesIO(data)
    assert read_header(stream, size=len(data), gzipped=True, file="x").shape == (64, 64, 64)
    assert stream.tell() <= 4096 < len(data) // 100


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_bytes_make_it_raise_anything_else(data) -> None:
    raw = bytearray(gzip.decompress(nifti_gz((2, 2, 3))))
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, 351))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)) | st.just(len(raw)))]
    packed = bytearray(gzip.compress(bytes(raw), mtime=0))
    if data.draw(st.booleans()):
        packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    for blob, gzipped in ((bytes(raw), False), (bytes(packed), True)):
        try:
            found = read(blob, gzipped=gzipped)
        except ScanError as error:
            assert "scan.nii.gz" in error.line() and "\n" not in error.line()
        else:
            assert min(found.shape) > 0 and np.isfinite(found.affine).all() and len(found.orientation) == 3


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=700))
def test_no_arbitrary_bytes_either(raw) -> None:
    for blob in (raw, struct.pack("<i", 348) + raw, struct.pack(">i", 540) + raw):
        with pytest.raises(ScanError):
            parse_header(blob, file="scan.nii")
