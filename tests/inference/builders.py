"""What the tests of geometry share: cards, files, and the comparison of headers."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np

from brainfoundry.inference import CaseVolume, Space, load_case
from brainfoundry.store.volume import Volume, decode_nifti

CHANGED = {"datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter", "cal_max", "cal_min", "descrip",
           "intent_code", "intent_p1", "intent_p2", "intent_p3", "intent_name"}  # fmt: skip
"""Fields that speak of the numbers, not of the grid; of `dim`, the axes beyond the third."""


def space(*modalities: str, **options: object) -> Space:
    given: dict[str, object] = {
        "modalities": modalities or ("T1w",),
        "intensity": "zscore_nonzero",
        "spacing_mm": None,
        "template": "MNI152",
        "skull_stripped": True,
    }
    return Space(**(given | options))  # type: ignore[arg-type]


def put(path: Path, data: bytes) -> str:
    """Write a file, gzipped where its name says so."""
    path.write_bytes(gzip.compress(data, 1, mtime=0) if path.suffix == ".gz" else data)
    return str(path)


def load_one(path: str, **options: object) -> CaseVolume:
    """A case of one scan."""
    return load_case({"T1w": path}, space(**options), subject="s01")


def decoded(data: bytes) -> Volume:
    return decode_nifti(data, modality="T1w", file="restored", subject="s01")


def fields(data: bytes) -> np.ndarray:
    """A file's header, one entry a field."""
    little = int.from_bytes(data[:4], "little") in (348, 540)
    version = int.from_bytes(data[:4], "little" if little else "big")
    kind = nibabel.Nifti1Header if version == 348 else nibabel.Nifti2Header
    return np.frombuffer(data[:version], kind.template_dtype.newbyteorder("<" if little else ">"))[0]


def assert_same_grid_to_the_bit(before: bytes, after: bytes) -> None:
    """Every header field that says where voxels lie is the same bytes."""
    a, b = fields(before), fields(after)
    assert a.dtype == b.dtype  # version and byte order
    for name in a.dtype.names or ():
        if name not in CHANGED:
            end = 4 if name == "dim" else None
            assert np.atleast_1d(a[name])[:end].tobytes() == np.atleast_1d(b[name])[:end].tobytes(), name
    one, other = (nibabel.Nifti1Image if a.dtype.itemsize == 348 else nibabel.Nifti2Image,) * 2
    assert (one.from_bytes(before).affine == other.from_bytes(after).affine).all()


def check_round_trip(
    path: str, source: bytes, labels_file: bytes | None = None, **options: object
) -> CaseVolume:
    """Load a scan, hand a mask through, and hold the restored file against the scan's.

    Args:
        source: the scan's decompressed bytes.
        labels_file: a NIfTI on its grid, uint8; by default labels are made up.
    """
    case = load_one(path, **options)
    shape = case.reference.raw_XYZ.shape
    assert case.x_CDHW.shape[1:] == shape and nibabel.aff2axcodes(case.affine) == ("R", "A", "S")
    labels = np.random.default_rng(0).integers(0, 5, shape, np.uint8)
    if labels_file is not None:
        labels = decoded(labels_file).raw_XYZ
    maps = np.random.default_rng(1).random((2, *shape), np.float32)
    assert case.to_scan_grid(maps) is maps  # nothing is done where nothing was resampled
    np.testing.assert_array_equal(case.labels_to_scan_grid(labels), labels)
    for data, volume in ((case.restore_labels(labels), labels), (case.restore_map(maps[0]), maps[0])):
        assert_same_grid_to_the_bit(source, data)
        header = fields(data)
        assert (header["scl_slope"], header["scl_inter"], header["vox_offset"]) == (
            1,
            0,
            len(header.tobytes()) + 4,
        )
        assert header["descrip"] == b"BrainFoundry" and (header["cal_min"], header["cal_max"]) == (0, 0)
        assert header["intent_code"] == (1002 if volume is labels else 0)
        assert (header["dim"][4:] == 1).all()
        assert len(data) == header["vox_offset"] + volume.nbytes
        back = decoded(data)
        assert back.raw_XYZ.dtype == volume.dtype
        np.testing.assert_array_equal(back.raw_XYZ, volume)
        np.testing.assert_array_equal(back.affine, case.affine)
    if labels_file is not None:
        grid = case.restore_labels(labels)
        assert grid[len(grid) - labels.nbytes :] == labels_file[len(labels_file) - labels.nbytes :]
    return case
