"""The conversion one would write with nibabel, NumPy and Blosc2: the peer of the `convert` benchmark.

The same scans in, the same content out: bricks of int16 codes within the foreground box (equal byte
for byte), statistics of the non-zero voxels, SHA-256 of the files, checksums of the bricks, fingerprints.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blosc2
import nibabel
import numpy as np

from brainfoundry.cohorts.fingerprint import fingerprint
from brainfoundry.cohorts.manifest import Scan
from brainfoundry.store.bricks import CPARAMS
from brainfoundry.store.meta import BRICK


def convert_subject(scans: Sequence[Scan], target: Path) -> dict[str, Any]:
    """Convert one subject's scans into `target`; returns what was written."""
    volumes, digests = [], []
    for scan in scans:
        with zipfile.ZipFile(scan.uri) as archive:
            data = gzip.decompress(archive.read(scan.member))
        digests.append(hashlib.sha256(data).hexdigest())
        image = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(data))
        volume = np.asanyarray(image.dataobj)
        if not np.isfinite(volume).all():
            raise ValueError(f"{scan.uri} holds numbers that are not finite")
        volumes.append(volume)
    mask = np.any([volume != 0 for volume in volumes], axis=0)
    inside = np.nonzero(mask)
    box = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in inside)
    found: dict[str, Any] = {
        "shape": volumes[0].shape,
        "affine": image.affine.tolist(),
        "box": [(part.start, part.stop) for part in box],
        "sha256": digests,
        "fingerprints": [fingerprint(volume) for volume in volumes],
        "statistics": [_statistics(volume[box]) for volume in volumes],
        "bricks": [_bricks(volume[box].astype(np.int16)) for volume in volumes],
    }
    found["crc"] = [[zlib.crc32(brick) for brick in part] for part in found["bricks"]]
    with target.open("wb") as handle:
        pickle.dump(found["bricks"], handle)
    rest = {k: v for k, v in found.items() if k not in ("bricks", "fingerprints")}
    target.with_suffix(".json").write_text(json.dumps(rest, default=str))
    return found


def _statistics(volume: np.ndarray) -> dict[str, float]:
    values = volume[volume != 0]
    p0_5, p1, p99, p99_5 = np.percentile(values, [0.5, 1, 99, 99.5])
    return {
        "mean": float(values.mean()), "sd": float(values.std()),
        "min": float(values.min()), "max": float(values.max()),
        "p0_5": float(p0_5), "p1": float(p1), "p99": float(p99), "p99_5": float(p99_5),
        "nonzero": int(values.size),
    }  # fmt: skip


def _bricks(volume: np.ndarray) -> list[bytes]:
    padded = np.pad(volume, [(0, -n % BRICK) for n in volume.shape])
    bricks = []
    for corner in np.ndindex(*(n // BRICK for n in padded.shape)):
        part = padded[tuple(slice(BRICK * i, BRICK * (i + 1)) for i in corner)]
        packed = blosc2.compress2(np.ascontiguousarray(part), typesize=2, **CPARAMS) if part.any() else b""
        bricks.append(packed)
    return bricks
