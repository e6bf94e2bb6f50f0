"""Volumes written on the grid of a scan: its header to the bit, but for what says which numbers follow."""

from __future__ import annotations

from typing import Any

import nibabel
import numpy as np
from nibabel.orientations import ornt_transform

from brainfoundry.cohorts.nifti_header import N1_BYTES, N2_BYTES
from brainfoundry.store.volume import Volume

# NIfTI standard: what the numbers of an image mean.
INTENT_NONE, INTENT_LABEL = 0, 1002

_RAS = np.array([[0, 1], [1, 1], [2, 1]])
_DESCRIPTION = b"BrainFoundry"


def raw_header(data: bytes, version: int) -> Any:
    """nibabel's header of a decompressed file of NIfTI version 1 or 2: every field as it is, in its byte
    order."""
    kind, size = (nibabel.Nifti1Header, N1_BYTES) if version == 1 else (nibabel.Nifti2Header, N2_BYTES)
    return kind(binaryblock=data[:size], check=False)


def nifti_like(reference: Volume, data_DHW: np.ndarray, *, intent: int) -> bytes:
    """A whole NIfTI file, decompressed, of `data_DHW` on the grid of the reference's file.

    Shape, axis order, voxel size, affines and their codes, units and byte order are the reference's, bit for
    bit. Its scaling, intent, display range, description and extensions are not: they speak of its voxels.

    Args:
        data_DHW: in the reference's RAS axis order, of its shape; stored in its own dtype.

    Raises:
        ValueError: `data_DHW` has another shape.
    """
    if data_DHW.shape != reference.raw_XYZ.shape:
        raise ValueError(f"volume of {data_DHW.shape} on a scan grid of {reference.raw_XYZ.shape}")
    header = raw_header(reference.prefix, reference.header.version)
    header.set_data_dtype(data_DHW.dtype)  # datatype and bitpix
    header["dim"][4:] = 1
    header["vox_offset"] = header.single_vox_offset
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_min"] = header["cal_max"] = 0  # none: viewers find their own
    header["descrip"] = _DESCRIPTION
    header["intent_code"], header["intent_name"] = intent, b""
    for parameter in ("intent_p1", "intent_p2", "intent_p3"):
        header[parameter] = 0
    stored = nibabel.apply_orientation(data_DHW, ornt_transform(_RAS, reference.orientation))
    no_extensions = bytes(4)
    return header.binaryblock + no_extensions + stored.astype(header.get_data_dtype()).tobytes(order="F")
