"""Tiny bulk zips, folders and manifests for the tests of this room."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np

from brainfoundry.cohorts.demo import zip_bytes
from brainfoundry.cohorts.exclusions import REASONS
from brainfoundry.cohorts.manifest import ManifestMeta, Row, Scan
from brainfoundry.cohorts.ukb import UKBRules, read_ukb
from brainfoundry.cohorts.ukb_files import FIELDS

# LAS with the third axis just long enough for the header rule; 2 x 2 in plane keeps it tiny.
SHAPE = (2, 2, 100)
AFFINE = np.diag([-1.0, 1.0, 1.0, 1.0])


def nifti_gz(shape=SHAPE, *, dtype=np.int16, affine=AFFINE, kind=nibabel.Nifti1Image, fill=None) -> bytes:
    """A gzipped NIfTI of random voxels; bytes are the same for the same arguments."""
    dtype = np.dtype(dtype)
    if fill is not None or dtype.fields or dtype.kind == "c":
        data = np.full(shape, fill or 0, dtype=dtype) if not dtype.fields else np.zeros(shape, dtype)
    else:
        data = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    return gzip.compress(kind(data, affine).to_bytes(), mtime=0)


def bulk_name(eid: int | str, modality: str, instance: int = 2, array: int = 0) -> str:
    """`{eid}_{field}_{instance}_{array}`."""
    return f"{eid}_{FIELDS[modality].field}_{instance}_{array}"


def put_zip(
    folder: Path, eid, modality: str, data: bytes | None = None, *, instance=2, array=0, member=None
) -> Path:
    """Write one bulk zip; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{bulk_name(eid, modality, instance, array)}.zip"
    path.write_bytes(
        zip_bytes(
            {
                "T1/readme.txt": b"other members lie beside it",
                member or FIELDS[modality].member: nifti_gz() if data is None else data,
            }
        )
    )
    return path


def put_plain(folder: Path, eid, modality: str, data: bytes | None = None, *, instance=2) -> Path:
    """Write the same unpacked; returns the image's path."""
    path = folder / bulk_name(eid, modality, instance) / FIELDS[modality].member
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(nifti_gz() if data is None else data)
    return path


def put_subject(folder: Path, eid, **options) -> None:
    """Both modalities of a subject, whole."""
    for modality in FIELDS:
        put_zip(folder, eid, modality, **options)


def intake(folder: Path, rules: UKBRules | None = None, **options):
    """The intake manifest of a folder of bulk files, written beside it."""
    return read_ukb(str(folder), str(folder.parent / "manifest.parquet"), rules, **options)


def scan(modality: str = "T1w", **changes) -> Scan:
    """A scan with every field set, save those changed."""
    values = {
        "modality": modality, "uri": "/data/1_20252_2_0.zip", "member": "T1/T1_brain_to_MNI.nii.gz",
        "shape": (182, 218, 182), "spacing": (1.0, 1.0, 1.0), "orientation": "LAS", "dtype": "int16",
        "size": 2_745_353, "crc32": 4_294_967_295, "mtime": None, "sha256": None,
    }  # fmt: skip
    return Scan(**{**values, **changes})


def rows(n: int, *, reason_of=lambda i: "") -> list[Row]:
    """n subjects of one session."""
    made = []
    for i in range(n):
        reason = reason_of(i)
        row = Row(
            subject=f"s{i:04d}", session="2", cohort="test", age=60.5, sex="F", site="11025", scans=(scan(),)
        )
        made.append(row.excluded(reason, "why") if reason else row)
    return made


def meta(**changes) -> ManifestMeta:
    """Metadata of a test cohort."""
    values = {
        "cohort": "test", "modalities": ("T1w",), "template_space": "MNI152", "skull_stripped": True,
        "source": "/data", "rules": {"min_slices_header": 100},
    }  # fmt: skip
    return ManifestMeta(**{**values, **changes})


ALL_REASONS = tuple(REASONS)
