"""Back to NIfTI: the original file's bytes from a stored row."""

from __future__ import annotations

import gzip
import io

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation

from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.store import bricks, coding
from brainfoundry.store.meta import ABSENT
from brainfoundry.store.stored import StoredRow
from brainfoundry.store.volume import stored_dtype


def nifti_bytes(row: StoredRow, channel: int) -> bytes:
    """The decompressed NIfTI file a scan came from: header, extensions, grid, axes, dtype and byte order.

    Byte for byte for integer scans of 16 bits and in float mode "lossless"; with the quantisation bound
    on every voxel otherwise.

    Raises:
        DataError: the volume was resampled, so that the original is gone, the session came without this
            modality or without a mask, or the shard is damaged.
    """
    scan = row.head["scans"][channel]
    if scan["coding"] == ABSENT:
        raise DataError(
            f"session came without {scan['modality']}: there is no file to restore",
            file=row.where,
            subject=row.subject,
            fix="leave out scans whose present is false in the index",
        )
    if not scan["header"]:
        if scan["coding"] == "labels" and any(other["header"] for other in row.head["scans"]):
            raise DataError(
                "session came without a mask: there is no file to restore",
                file=row.where,
                subject=row.subject,
                fix="leave out sessions whose has_label is false in the index",
            )
        raise DataError(
            f"{scan['modality']} was resampled at conversion: the original volume cannot be restored from it",
            file=row.where,
            subject=row.subject,
            fix="convert without spacing_mm, or go back to the source file",
        )
    dtype = stored_dtype(scan["header"])
    native = dtype.newbyteorder("=")
    codes = row.volume(channel)
    raw = coding.decode(codes, scan["coding"], scan["raw_step"], scan["raw_base"], native)
    index = np.cumsum(bricks.unpack(scan["fixup_index"], np.int64))
    if index.size:
        raw.reshape(-1)[index] = bricks.unpack(scan["fixup_value"], native)
    orientation = np.array(scan["orientation"], np.int8).reshape(3, 2)
    inverse = np.empty((3, 2))
    for axis, (to, direction) in enumerate(orientation):
        inverse[int(to)] = axis, direction
    stored = apply_orientation(raw, inverse).astype(dtype, copy=False)
    return scan["header"] + stored.tobytes(order="F") + scan["tail"]


def nifti_image(data: bytes) -> nibabel.Nifti1Image:
    """nibabel's image of the bytes of a NIfTI-1 or NIfTI-2 file."""
    little = int.from_bytes(data[:4], "little")
    kind = nibabel.Nifti1Image if little in (348, 0x5C010000) else nibabel.Nifti2Image
    return kind.from_stream(io.BytesIO(data))


def write_nifti(uri: str, data: bytes) -> None:
    """Write a NIfTI file, gzipped (level 6, no time stamp) where the name ends in .gz."""
    files.write_bytes(uri, gzip.compress(data, 6, mtime=0) if uri.endswith(".gz") else data)
