"""NIfTI bytes as a checked volume: voxels in closest-canonical RAS axis order, with all that undoes it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from brainfoundry.cohorts.exclusions import ScanError
from brainfoundry.cohorts.nifti_header import NiftiHeader, parse_header


class DamagedData(ScanError):
    """Voxel data that is cut short, fails its checksum, or is not what the intake saw."""

    reason = "damaged_data"


class NotFinite(ScanError):
    """Voxels that are NaN, infinite, or beyond float32, in which models compute."""

    reason = "not_finite"


class EmptyVolume(ScanError):
    """Nothing but background."""

    reason = "empty_volume"


class TooFewSlices(ScanError):
    """Fewer axial slices with brain than the cohort asks for."""

    reason = "too_few_slices_content"


class GridMismatch(ScanError):
    """Modalities of one session on different grids."""

    reason = "grid_mismatch"


GRID_TOLERANCE_VOXELS = 0.01
"""Largest distance between the corners of two grids that count as one; qforms are rounded to float32."""


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One scan, decoded.

    Args:
        header: shape, spacing and scaling along the stored axes.
        raw_XYZ: the file's numbers, before scl_slope, C-contiguous in RAS axis order and native byte order.
        affine: 4 x 4, RAS voxel index to mm.
        orientation: (3, 2) as nibabel has it: for each stored axis the RAS axis and the direction.
        prefix: the file's bytes before the voxels: header, extensions, padding.
        tail: the file's bytes after the voxels; nearly always none.
        sha256: of the whole decompressed file.
    """

    modality: str
    header: NiftiHeader
    raw_XYZ: np.ndarray
    affine: np.ndarray
    orientation: np.ndarray
    prefix: bytes
    tail: bytes
    sha256: str

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm along the RAS axes."""
        order = np.argsort(self.orientation[:, 0])
        a, b, c = (self.header.spacing[i] for i in order)
        return a, b, c


def stored_dtype(prefix: bytes) -> np.dtype:
    """dtype of the voxels in the file, with its byte order."""
    little = int.from_bytes(prefix[:4], "little")
    kind = nibabel.Nifti1Header if little in (348, 0x5C010000) else nibabel.Nifti2Header
    size = 348 if kind is nibabel.Nifti1Header else 540
    return kind(binaryblock=prefix[:size], check=False).get_data_dtype()


def decode_nifti(data: bytes, *, modality: str, file: object, subject: str | None) -> Volume:
    """Decode the bytes of a decompressed single-file NIfTI.

    Raises:
        ScanError: not a NIfTI, not 3D, cut short, or with voxels that are not finite.
    """
    header = parse_header(data[:1024], file=file, subject=subject)
    if len(data) < header.total_bytes:
        raise DamagedData(
            f"voxel data is cut short: {len(data):,} of {header.total_bytes:,} bytes",
            file=file,
            subject=subject,
            fix="deliver it again",
        )
    prefix, tail = bytes(data[: header.offset]), bytes(data[header.total_bytes :])
    dtype = stored_dtype(prefix)
    stored = np.frombuffer(data, dtype, count=int(np.prod(header.shape)), offset=header.offset)
    orientation = io_orientation(header.affine)
    raw = apply_orientation(stored.reshape(header.shape, order="F"), orientation)
    raw = _c_order(raw.astype(dtype.newbyteorder("="), copy=False))
    _check_finite(raw, header, file, subject)
    return Volume(
        modality=modality,
        header=header,
        raw_XYZ=raw,
        affine=header.affine @ inv_ornt_aff(orientation, header.shape),
        orientation=orientation.astype(np.int8),
        prefix=prefix,
        tail=tail,
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _check_finite(raw: np.ndarray, header: NiftiHeader, file: object, subject: str | None) -> None:
    if raw.dtype.kind == "f" and not np.isfinite(raw).all():
        bad = raw.size - int(np.isfinite(raw).sum())
        raise NotFinite(
            f"{bad:,} of {raw.size:,} voxels are NaN or infinite",
            file=file,
            subject=subject,
            fix="make the volume again, or set those voxels to 0",
        )
    with np.errstate(all="ignore"):
        ends = np.array([raw.min(), raw.max()], np.float64) * header.slope + header.inter
        if not np.isfinite(ends.astype(np.float32)).all():
            raise NotFinite(
                f"values reach from {ends.min():.3g} to {ends.max():.3g}: beyond float32",
                file=file,
                subject=subject,
                fix="check scl_slope and the voxel data",
            )


def _c_order(a: np.ndarray) -> np.ndarray:
    """`a` in C order, copied in blocks: files are in Fortran order, and a block's lines stay in the cache."""
    if a.flags.c_contiguous:
        return a
    out = np.empty(a.shape, a.dtype)
    for x in range(0, a.shape[0], 64):
        for y in range(0, a.shape[1], 8):
            out[x : x + 64, y : y + 8] = a[x : x + 64, y : y + 8]
    return out


def check_same_grid(
    first: Volume,
    other: Volume,
    *,
    file: object,
    subject: str | None,
    kind: type[ScanError] = GridMismatch,
) -> None:
    """Two scans of a session must be the same grid once both are in RAS order.

    Args:
        kind: of the error to raise.

    Raises:
        ScanError: of `kind`: other shape, or corners more than 1 % of a voxel apart.
    """
    a, b = first.raw_XYZ.shape, other.raw_XYZ.shape
    fix = "register the scans to one grid"
    if a != b:
        shapes = f"{'x'.join(map(str, a))} against {'x'.join(map(str, b))}"
        problem = f"{first.modality} and {other.modality} lie on different grids: {shapes}"
        raise kind(problem, file=file, subject=subject, fix=fix)
    corners = np.array([[*(np.array(c) * (np.array(a) - 1)), 1] for c in np.ndindex(2, 2, 2)], np.float64)
    apart = float(np.abs(corners @ (first.affine - other.affine).T).max())
    if apart > GRID_TOLERANCE_VOXELS * min(first.header.spacing):
        problem = f"{first.modality} and {other.modality} lie on different grids: {apart:.3g} mm apart"
        raise kind(problem, file=file, subject=subject, fix=fix)
