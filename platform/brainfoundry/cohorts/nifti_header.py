"""A NIfTI image's geometry and type from its first few hundred bytes, checked, without its voxels."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError

from brainfoundry.cohorts.exclusions import NotNifti, ScanError, UnreadableArchive, UnsupportedImage

# NIfTI-1 header 348 bytes, NIfTI-2 header 540; 4 more say whether extensions follow (NIfTI standard).
N1_BYTES, N2_BYTES = 348, 540
HEADER_BYTES = N2_BYTES + 4
# Deflate turns one byte into at most 1,032 (zlib's technical notes): a gzip file that would have to do
# better cannot hold the volume its header claims.
DEFLATE_MAX_RATIO = 1032
_MAX_COMPRESSED = 256 * 1024
_CHUNK = 2048


class Readable(Protocol):
    """Whatever has `read(n)`."""

    def read(self, n: int, /) -> bytes:
        """Up to n bytes; b"" at the end."""
        ...


@dataclass(frozen=True, kw_only=True)
class NiftiHeader:
    """What a single-file NIfTI header says of a 3D image.

    Args:
        version: 1 or 2.
        shape: voxels along the stored axes (i, j, k).
        spacing: mm along them.
        orientation: axis codes, such as "LAS": the direction in which each index grows.
        dtype: NumPy name of the stored type.
        affine: 4 x 4, voxel index to mm.
        slope, inter: value = stored * slope + inter; 1 and 0 where the header sets no scaling.
        offset: bytes before the voxels.
    """

    version: int
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    dtype: str
    affine: np.ndarray
    slope: float
    inter: float
    offset: int

    @property
    def total_bytes(self) -> int:
        """Bytes of the decompressed file up to its last voxel."""
        return self.offset + math.prod(self.shape) * np.dtype(self.dtype).itemsize


def parse_header(raw: bytes, *, file: object, subject: str | None = None) -> NiftiHeader:
    """The header in the first bytes of a decompressed .nii file.

    Args:
        raw: at least 348 bytes (NIfTI-1) or 540 (NIfTI-2); more is ignored.

    Raises:
        NotNifti: no NIfTI-1 or NIfTI-2 single-file header.
        UnsupportedImage: not 3D, zero-size, complex, RGB, or without usable geometry.
    """
    try:
        return _parse(raw, file, subject)
    except ScanError:
        raise
    except Exception as error:  # whatever nibabel makes of damaged fields costs one row, not the intake
        raise NotNifti(f"header fields make no sense: {error}", file=file, subject=subject) from error


def _parse(raw: bytes, file: object, subject: str | None) -> NiftiHeader:
    def refuse(kind: type[ScanError], problem: str, fix: str | None = None) -> ScanError:
        return kind(problem, file=file, subject=subject, fix=fix)

    sizes = {int.from_bytes(raw[:4], order) for order in ("little", "big")} if len(raw) >= 4 else set()
    if N2_BYTES in sizes and len(raw) >= N2_BYTES:
        version, size, magic = 2, N2_BYTES, raw[4:8]
    elif N1_BYTES in sizes and len(raw) >= N1_BYTES:
        version, size, magic = 1, N1_BYTES, raw[344:348]
    elif sizes & {N1_BYTES, N2_BYTES}:
        raise refuse(
            NotNifti, f"file ends inside its NIfTI header, after {len(raw)} bytes", "deliver it again"
        )
    else:
        raise refuse(NotNifti, "not a NIfTI file: it does not begin with a NIfTI header")
    if magic[:3] not in (b"n+1", b"n+2"):
        pair = magic[:3] in (b"ni1", b"ni2")
        what = "the .hdr half of a pair" if pair else "an Analyze file or a damaged header"
        raise refuse(NotNifti, f"not a single-file NIfTI but {what}", "convert it to .nii.gz")

    header: Any = (nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header)(
        binaryblock=raw[:size], check=False
    )
    shape = tuple(int(n) for n in header.get_data_shape())
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        code = int(header["datatype"])
        raise refuse(UnsupportedImage, f"unknown or unsupported voxel type (code {code})") from error
    shown = "x".join(map(str, shape))
    if len(shape) != 3:
        fix = "extract one 3D volume" if len(shape) > 3 else None
        raise refuse(UnsupportedImage, f"image is {len(shape)}D ({shown or 'no axes'}), not 3D", fix)
    if min(shape) <= 0:
        raise refuse(UnsupportedImage, f"image has no voxels ({shown})")
    if max(shape) > np.iinfo(np.int32).max:
        raise refuse(UnsupportedImage, f"image is impossibly large ({shown})")
    if dtype.kind == "c":
        raise refuse(UnsupportedImage, f"voxels are complex ({dtype.name})", "take the magnitude")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        what = "RGB" if dtype.fields else dtype.name
        raise refuse(UnsupportedImage, f"voxels are {what}, not plain numbers", "convert to a scalar type")

    spacing = tuple(float(z) for z in header.get_zooms())
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    if not all(math.isfinite(z) and z > 0 for z in spacing):
        raise refuse(UnsupportedImage, f"voxel size {spacing} mm is not positive", "mend the header's pixdim")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise refuse(UnsupportedImage, "affine is singular or not finite", "mend the header's sform or qform")
    codes = nibabel.aff2axcodes(affine)
    if any(code is None for code in codes):
        raise refuse(UnsupportedImage, "affine gives no axis directions", "mend the header's sform or qform")
    slope, inter = header.get_slope_inter()
    offset = int(header.get_data_offset())
    if offset < size:
        raise refuse(NotNifti, f"voxels are said to begin at byte {offset}, inside the header")
    return NiftiHeader(
        version=version,
        shape=(shape[0], shape[1], shape[2]),
        spacing=(spacing[0], spacing[1], spacing[2]),
        orientation="".join(codes),
        dtype=dtype.newbyteorder("=").name,
        affine=affine,
        slope=1.0 if slope is None else float(slope),
        inter=0.0 if inter is None else float(inter),
        offset=offset,
    )


def read_gzip_start(stream: Readable, n: int, *, file: object, subject: str | None = None) -> bytes:
    """The first n decompressed bytes of a gzip stream, or all of a shorter one; reads no more than it needs.

    Raises:
        NotNifti: the stream does not begin as gzip.
        UnreadableArchive: it is damaged or ends early within those bytes.
    """
    head = stream.read(_CHUNK)
    if not head:
        raise NotNifti("file is empty (0 bytes)", file=file, subject=subject, fix="deliver it again")
    if head[:2] != b"\x1f\x8b":
        problem = "does not begin as gzip: it is not a gzipped NIfTI, or its first bytes are damaged"
        raise NotNifti(problem, file=file, subject=subject, fix="deliver it again")
    inflate = zlib.decompressobj(wbits=31)
    raw, taken = b"", 0
    try:
        # The bound: a gzip header may carry a file name or comment of any length, real ones are short.
        while head and len(raw) < n and not inflate.eof and taken < _MAX_COMPRESSED:
            taken += len(head)
            raw += inflate.decompress(head, n - len(raw))
            if len(raw) < n:
                head = stream.read(_CHUNK)
    except zlib.error as error:
        problem = f"gzip stream is damaged within its first bytes: {error}"
        raise UnreadableArchive(problem, file=file, subject=subject, fix="deliver it again") from error
    if len(raw) < n and not inflate.eof:
        problem = "gzip stream ends within its first bytes"
        raise UnreadableArchive(problem, file=file, subject=subject, fix="deliver it again")
    return raw


def read_header(
    stream: Readable | BinaryIO, *, size: int, gzipped: bool, file: object, subject: str | None = None
) -> NiftiHeader:
    """The checked header of an open .nii or .nii.gz, of which `size` bytes exist.

    Raises:
        ScanError: one of its kinds, each with its reason code.
    """
    if gzipped:
        raw = read_gzip_start(stream, HEADER_BYTES, file=file, subject=subject)
    else:
        raw = stream.read(HEADER_BYTES)
        if not raw:
            raise NotNifti("file is empty (0 bytes)", file=file, subject=subject, fix="deliver it again")
    header = parse_header(raw, file=file, subject=subject)
    room = size * DEFLATE_MAX_RATIO + HEADER_BYTES if gzipped else size
    if header.total_bytes > room:
        volume = f"{'x'.join(map(str, header.shape))} {header.dtype}"
        problem = f"file of {size:,} bytes is too short for its {volume} volume"
        raise UnreadableArchive(problem, file=file, subject=subject, fix="deliver it again")
    return header
