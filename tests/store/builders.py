"""Small scans in UK Biobank's file layout."""

from __future__ import annotations

import gzip
import uuid
import zipfile
from pathlib import Path

import nibabel
import numpy as np

from brainfoundry.cohorts.brats import read_brats
from brainfoundry.cohorts.intake import IntakeRules
from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.cohorts.ukb import UKBRules, read_ukb
from brainfoundry.cohorts.ukb_files import FIELDS
from brainfoundry.store.meta import shard_uri
from brainfoundry.store.row import encode_row
from brainfoundry.store.stored import StoredRow
from brainfoundry.store.volume import Volume, decode_nifti
from brainfoundry.store.writer import ShardWriter

AFFINE = np.array([[-1.0, 0, 0, 30], [0, 1, 0, -40], [0, 0, 1, -20], [0, 0, 0, 1]])
SHAPE = (40, 44, 38)


def brain(seed: int, shape: tuple[int, int, int] = SHAPE, dtype: str = "int16", top: int = 900) -> np.ndarray:
    """An ellipsoid of noise in an empty volume."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.linspace(-1.15, 1.15, n) for n in shape), indexing="ij")
    inside = sum(g**2 for g in grid) < 1
    return (rng.integers(1, top, shape) * inside).astype(dtype)


def nifti(data: np.ndarray, affine: np.ndarray = AFFINE) -> bytes:
    """NIfTI-1 bytes."""
    return nibabel.Nifti1Image(data, affine).to_bytes()


def put(folder: Path, eid: int, scans: dict[str, bytes], instance: int = 2) -> None:
    """Write bulk zips of one participant from NIfTI bytes (gzipped here) by modality."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in scans.items():
        field = FIELDS[name]
        with zipfile.ZipFile(
            folder / f"{eid}_{field.field}_{instance}_0.zip", "w", zipfile.ZIP_DEFLATED
        ) as out:
            out.writestr(field.member, gzip.compress(data, 6, mtime=0))


def intake(folder: Path, min_slices: int = 30, **rules: object) -> Manifest:
    """The intake manifest of a folder."""
    return read_ukb(str(folder), str(folder / "intake.parquet"), UKBRules(min_slices=min_slices, **rules))  # type: ignore[arg-type]


def nifti_file(
    data: np.ndarray,
    affine: np.ndarray,
    *,
    version: int = 1,
    big_endian: bool = False,
    scaling: tuple[float, float] | None = None,
    extension: bytes = b"",
    tail: bytes = b"",
) -> bytes:
    """A NIfTI file put together by hand, so that every header field is ours."""
    kind = nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header
    header = kind(endianness=">" if big_endian else "<")
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    header.set_qform(affine, code=2)
    header.set_sform(affine, code=4)
    header["descrip"] = b"made by a test"
    header["aux_file"] = b"kept"
    if scaling:
        header["scl_slope"], header["scl_inter"] = scaling
    size = 348 if version == 1 else 540
    offset = -(-(size + 4 + len(extension)) // 16) * 16
    header["vox_offset"] = offset
    header["magic"] = b"n+1" if version == 1 else b"n+2"
    prefix = header.binaryblock + bytes([bool(extension), 0, 0, 0]) + extension
    stored = data.astype(data.dtype.newbyteorder(">" if big_endian else "<"))
    return prefix.ljust(offset, b"\0") + stored.tobytes(order="F") + tail


def stored_row(folder: Path, volumes: list[Volume], **options: object) -> StoredRow:
    """Volumes of one session written as a shard and read back."""
    options = {"float_mode": "quantize"} | options
    row = encode_row("9900001", "2", volumes, files=[v.modality for v in volumes], **options)  # type: ignore[arg-type]
    uri = str(folder / uuid.uuid4().hex)
    with ShardWriter(uri, 0) as writer:
        writer.add(row)
        place = writer.commit("", [])["rows"][0]
    data = Path(shard_uri(uri, 0)).read_bytes()
    return StoredRow(
        memoryview(data)[place["offset"] : place["offset"] + place["length"]],
        head_length=place["head_length"],
        head_crc=place["head_crc"],
        where=uri,
        subject="9900001",
        session="2",
    )


def volume(data: bytes, modality: str = "T1w") -> Volume:
    """Decoded."""
    return decode_nifti(data, modality=modality, file="scan.nii.gz", subject="9900001")


def put_brats(folder: Path, case: int, seg: np.ndarray | None, seed: int | None = None) -> str:
    """Write one BraTS 2021 case of two modalities, and its mask where one is given; gives the subject."""
    subject = f"BraTS2021_{case:05d}"
    (folder / subject).mkdir(parents=True, exist_ok=True)
    seed = case if seed is None else seed
    scans = {"flair": brain(seed), "t1": brain(seed + 500, top=700)} | ({} if seg is None else {"seg": seg})
    for kind, data in scans.items():
        packed = gzip.compress(nifti(data), 6, mtime=0)
        (folder / subject / f"{subject}_{kind}.nii.gz").write_bytes(packed)
    return subject


def brats_intake(folder: Path, labels: str = "required", **options: object) -> Manifest:
    """The intake manifest of cases from `put_brats`."""
    rules = IntakeRules(modalities=("FLAIR", "T1w"), labels=labels, min_slices=30)  # type: ignore[arg-type]
    return read_brats(str(folder), str(folder / "intake.parquet"), rules, **options)  # type: ignore[arg-type]


def lesion(*values: float, dtype: str = "uint8", outside: bool = False) -> np.ndarray:
    """A mask with a small block of each value; `outside` puts one voxel in the corner, beyond the brain."""
    mask = np.zeros(SHAPE, dtype)
    for i, value in enumerate(values):
        mask[12 + 4 * i : 15 + 4 * i, 18:22, 16:20] = value
    if outside:
        mask[0, 0, 0] = values[0]
    return mask
