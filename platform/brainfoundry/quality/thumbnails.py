"""Three-plane pictures of suspects: what a person looks at to decide whether a finding is right."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass

import nibabel
import numpy as np

from brainfoundry.cohorts.exclusions import ScanError
from brainfoundry.cohorts.fingerprint import background_of
from brainfoundry.cohorts.rows import Scan
from brainfoundry.core import files
from brainfoundry.core.remote import StorageError
from brainfoundry.quality.session import Target, open_shards, scaled
from brainfoundry.store.meta import LABEL
from brainfoundry.store.restore import nifti_image
from brainfoundry.store.source import gunzip, load_scan

_MM_PER_PIXEL = 1.4
_LARGEST = 240  # pixels along any axis, whatever the header says the voxels measure
_LIMIT = 1 << 31


@dataclass(frozen=True, kw_only=True)
class Look:
    """Which scan of a session to show; "label" shows the mask over the first image."""

    target: Target
    modality: str


def picture(look: Look) -> bytes | None:
    """A PNG of the sagittal, coronal and axial plane through the middle of the foreground, left shown left.

    A mask, and voxels that are NaN or infinite, are red, and the planes go through the middle of them. None
    where nothing can be decoded.

    Raises:
        StorageError: the storage does not answer.
    """
    try:
        loaded = _stored(look) if look.target.stored else _filed(look)
        if loaded is None:
            return None
        values, spacing, marks = loaded
        return png(planes(values, spacing, marks))
    except StorageError:
        raise
    except Exception:  # a scan too broken to be shown is a suspect all the same
        return None


Loaded = tuple[np.ndarray, tuple[float, float, float], np.ndarray | None]


def _filed(look: Look) -> Loaded | None:
    row = look.target.row
    scans = {scan.modality: scan for scan in row.scans}
    shown = scans.get(look.modality) or (row.scans[0] if row.scans else None)
    if shown is None:
        return None
    values, spacing = _load(shown, row.subject)
    if look.modality == LABEL and row.label is not None:
        mask, _ = _load(row.label, row.subject)
        if mask.shape == values.shape:
            return values, spacing, mask > 0
        return mask, spacing, mask > 0
    return values, spacing, None


def _load(scan: Scan, subject: str) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Values in RAS order; also of scans that verification refuses, as far as nibabel can read them."""
    try:
        volume = load_scan(scan, subject)
        return scaled(volume), volume.spacing
    except ScanError as error:
        if error.reason not in ("not_finite", "unsupported_image"):
            raise
        data = files.read_bytes(scan.uri)
        if scan.member:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                data = archive.read(scan.member)
        if data[:2] == b"\x1f\x8b":
            data = gunzip(data, _LIMIT, file=scan.uri, subject=subject)
        image = nibabel.as_closest_canonical(nifti_image(data))
        values = np.asarray(image.dataobj)
        values = np.abs(values) if values.dtype.kind == "c" else values
        while values.ndim > 3:
            values = values[..., 0]
        a, b, c = (float(mm) for mm in image.header.get_zooms()[:3])
        return values, (a, b, c)


def _stored(look: Look) -> Loaded | None:
    assert look.target.stored is not None
    uri, shard, number = look.target.stored
    shards = open_shards(uri)
    scans = shards.index["scans"][shards.position(shard, number)].as_py()
    there = [scan["modality"] for scan in scans if scan["present"] is not False and scan["modality"] != LABEL]
    name = look.modality if look.modality in shards.meta.modalities else there[0]
    a, b, c = np.linalg.norm(shards.affine(shard, number)[:3, :3], axis=0)
    codes = shards.read_volume(shard, number, name)
    marks = shards.read_volume(shard, number, LABEL) > 0 if look.modality == LABEL else None
    return codes, (float(a), float(b), float(c)), marks


def planes(
    values_XYZ: np.ndarray, spacing: tuple[float, float, float], marks_XYZ: np.ndarray | None = None
) -> np.ndarray:
    """(height, width, 3) uint8: sagittal, coronal and axial plane side by side, at one scale.

    Args:
        spacing: mm along the RAS axes.
        marks_XYZ: bool, what to show in red; voxels that are not finite always are.
    """
    finite = np.isfinite(values_XYZ) if values_XYZ.dtype.kind == "f" else np.ones(values_XYZ.shape, bool)
    marks = ~finite if marks_XYZ is None else marks_XYZ | ~finite
    values = np.where(finite, values_XYZ, 0).astype(np.float32)
    shown = np.abs(values - np.float32(background_of(values)))
    shown[~finite] = 0
    middle = _middle(marks) or _middle(shown > 0.1 * float(shown.max())) or _half(values.shape)
    inside = shown[shown > 0]
    bright = float(np.percentile(inside[:: max(1, inside.size // 100_000)], 99)) if inside.size else 1.0
    grey = np.clip(shown / max(bright, 1e-30), 0, 1)
    parts = []
    for axis in range(3):
        across, up = (a for a in range(3) if a != axis)
        index = [
            _sample(values.shape[a], spacing[a], backwards=a == up) for a in (across, up)
        ]  # up the picture is up, or to the front
        cut = np.ix_(index[0], index[1])
        plane = np.take(grey, middle[axis], axis)[cut].T
        red = np.take(marks, middle[axis], axis)[cut].T
        picture = np.repeat((plane * 255).astype(np.uint8)[..., None], 3, axis=2)
        picture[red] = picture[red] // 2 + np.array([127, 0, 0], np.uint8)
        parts.append(picture)
    height = max(part.shape[0] for part in parts)
    padded = []
    for part in parts:
        above = (height - part.shape[0]) // 2
        padded.append(np.pad(part, ((above, height - part.shape[0] - above), (2, 2), (0, 0))))
    return np.concatenate(padded, axis=1)


def _middle(mask: np.ndarray) -> tuple[int, int, int] | None:
    if not mask.any():
        return None
    found = []
    for axis in range(3):
        line = mask.sum(axis=tuple(a for a in range(3) if a != axis))
        # The slice with most in it near the middle of the mass: the mean may fall between two lesions.
        mean = float((line * np.arange(line.size)).sum() / line.sum())
        near = line * np.exp(-0.5 * ((np.arange(line.size) - mean) / max(1.0, line.size / 8)) ** 2)
        found.append(int(near.argmax()))
    return found[0], found[1], found[2]


def _half(shape: tuple[int, ...]) -> tuple[int, int, int]:
    return shape[0] // 2, shape[1] // 2, shape[2] // 2


def _sample(n: int, mm: float, *, backwards: bool) -> np.ndarray:
    pixels = int(np.clip(round(n * mm / _MM_PER_PIXEL), 8, _LARGEST))
    index = np.minimum(((np.arange(pixels) + 0.5) * n / pixels).astype(np.intp), n - 1)
    return index[::-1] if backwards else index


def png(image: np.ndarray) -> bytes:
    """PNG bytes of an (H, W, 3) uint8 image."""
    from matplotlib.image import imsave

    sink = io.BytesIO()
    imsave(sink, image, format="png")
    return sink.getvalue()
