"""One session on its way into a shard set: from decoded volumes to an Arrow record batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from brainfoundry.store import bricks, coding
from brainfoundry.store.mask import LabelGridMismatch, Mask
from brainfoundry.store.meta import ABSENT, LABEL, SHARD_SCHEMA, FloatMode
from brainfoundry.store.resample import resample, resample_labels
from brainfoundry.store.statistics import NOTHING, statistics
from brainfoundry.store.volume import EmptyVolume, NotFinite, TooFewSlices, Volume, check_same_grid


@dataclass(frozen=True, kw_only=True)
class EncodedRow:
    """A session ready to be written: its record batch, and its row of the index without the file position."""

    batch: pa.RecordBatch
    index: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One scan of the row: its coding, and the volume to restore it to (None for a mask nobody delivered)."""

    modality: str
    coding: coding.Coding
    volume: Volume | None
    file: object


def encode_row(
    subject: str,
    session: str,
    volumes: Sequence[Volume],
    *,
    files: Sequence[object],
    float_mode: FloatMode,
    spacing_mm: float | None = None,
    min_slices: int = 0,
    labelled: bool = False,
    mask: Mask | None = None,
    modalities: Sequence[str] | None = None,
) -> EncodedRow:
    """Encode the volumes of one session, in the shard set's modality order.

    Args:
        volumes: at least one.
        files: what each volume came from, for messages.
        spacing_mm: isotropic voxel size to resample to; None keeps the grid.
        min_slices: fewest axial slices with a non-zero voxel that every modality must have, on its own grid.
        labelled: store a mask after the volumes: `mask`, or zeros where that is None.
        modalities: of the set, in order; those that no volume has are stored empty and marked absent. By
            default exactly the volumes'.

    Raises:
        ScanError: different grids, nothing but background, too few slices with brain.
    """
    slices = _check_session(volumes, files, subject, min_slices)
    if mask is not None:
        kind = LabelGridMismatch
        check_same_grid(volumes[0], mask.volume, file=mask.file, subject=subject, kind=kind)
    if spacing_mm is None:
        affine, spacing = volumes[0].affine, volumes[0].spacing
        numbers = [volume.raw_XYZ for volume in volumes]
    else:
        resampled = [resample(volume, spacing_mm) for volume in volumes]
        affine, spacing = resampled[0][1], (spacing_mm,) * 3
        numbers = [raw for raw, _ in resampled]
    parts = [
        _Part(
            modality=volume.modality,
            coding=_encode(volume, raw, float_mode, file, subject),
            volume=volume,
            file=file,
        )
        for volume, raw, file in zip(volumes, numbers, files, strict=True)
    ]
    shape = parts[0].coding.codes.shape
    if labelled:
        parts.append(_mask_part(mask, shape, spacing_mm))
    shown = [p.coding.codes != p.coding.codes.dtype.type(p.coding.zero_code) for p in parts]
    box_lo, box_hi = _foreground_box(shown)
    box = tuple(slice(lo, hi) for lo, hi in zip(box_lo, box_hi, strict=True))
    payloads: list[bytes] = []
    in_shard, in_index = [], []
    there = {part.modality: part for part in parts}
    for name in [*(modalities or [v.modality for v in volumes]), *([LABEL] if labelled else [])]:
        if name not in there:
            payloads += [b""] * math.prod(bricks.brick_grid(box_lo, box_hi))
            in_shard.append(_ABSENT | _NOT_RESTORED | {"modality": name, "raw_step": 1.0, "raw_base": 0.0})
            in_index.append(_ABSENT | asdict(NOTHING) | _ABSENT_INDEX | {"modality": name})
            continue
        part = there[name]
        c = part.coding
        inside = np.ascontiguousarray(c.codes[box])
        try:
            found = statistics(inside, c.zero_code, c.slope, c.inter)
        except ValueError as error:
            if c.kind != "labels":
                raise _empty(part.modality, part.file, subject) from error
            found = NOTHING
        payloads += bricks.encode_bricks(inside, c.zero_code)
        restore, fixups = _NOT_RESTORED, 0
        if spacing_mm is None and part.volume is not None:
            restore, fixups = _to_restore(part.volume, c, box)
        common = {
            "modality": part.modality,
            "code_dtype": c.codes.dtype.name,
            "zero_code": c.zero_code,
            "coding": c.kind,
        }
        in_shard.append(common | restore | {"raw_step": c.raw_step, "raw_base": c.raw_base})
        errors = {"error_bound": c.error_bound, "max_error": c.max_error, "fixups": fixups}
        present = c.kind != "labels" or mask is not None
        numbers_of = {"slope": c.slope, "inter": c.inter, "present": present}
        in_index.append(common | asdict(found) | errors | numbers_of)
    row = {
        "subject": subject,
        "session": session,
        "shape": list(shape),
        "box_lo": box_lo,
        "box_hi": box_hi,
    }
    lesions = {"has_label": mask is not None, "label_values": list(mask.values) if mask else []}
    return EncodedRow(
        batch=_batch(row | {"affine": affine.ravel().tolist(), "scans": in_shard}, payloads),
        index=row | {"spacing": list(spacing), "slices": slices, "scans": in_index} | lesions,
    )


def _mask_part(mask: Mask | None, shape: tuple[int, ...], spacing_mm: float | None) -> _Part:
    """The mask as one more scan; zeros where there is none."""
    if mask is None:
        nothing = np.zeros(shape, np.uint8)
        empty = coding.encode_labels(nothing, 1.0, 0.0, nothing)
        return _Part(modality=LABEL, coding=empty, volume=None, file="")
    header, raw, labels = mask.volume.header, mask.volume.raw_XYZ, mask.labels_XYZ
    if spacing_mm is not None:
        raw = labels = resample_labels(mask.volume, labels, spacing_mm)
        coded = coding.encode_labels(raw, 1.0, 0.0, labels)
    else:
        coded = coding.encode_labels(raw, header.slope, header.inter, labels)
    return _Part(modality=LABEL, coding=coded, volume=mask.volume, file=mask.file)


def _check_session(volumes: Sequence[Volume], files: Sequence[object], subject: str, min_slices: int) -> int:
    """Axial slices with brain of the modality that has fewest; refuses what `encode_row` says it refuses."""
    slices = []
    for volume, file in zip(volumes, files, strict=True):
        check_same_grid(volumes[0], volume, file=file, subject=subject)
        slices.append(_slices_with_brain(volume))
        if not slices[-1]:
            raise _empty(volume.modality, file, subject)
        if slices[-1] < min_slices:
            problem = f"{slices[-1]} axial slices of {volume.modality} show brain, {min_slices} are asked for"
            raise TooFewSlices(problem, file=file, subject=subject, fix="lower min_slices to keep it")
    return min(slices)


def _empty(modality: str, file: object, subject: str) -> EmptyVolume:
    problem = f"{modality} is nothing but background"
    return EmptyVolume(problem, file=file, subject=subject, fix="check the volume, or leave it out")


def _slices_with_brain(volume: Volume) -> int:
    raw, header = volume.raw_XYZ, volume.header
    shown = raw != 0 if header.inter == 0 else raw.astype(np.float64) * header.slope + header.inter != 0
    return int(np.count_nonzero(shown.any(axis=(0, 1))))


def _encode(
    volume: Volume, raw: np.ndarray, float_mode: FloatMode, file: object, subject: str
) -> coding.Coding:
    try:
        return coding.encode(raw, volume.header.slope, volume.header.inter, float_mode)
    except ValueError as error:
        fix = "rescale the volume, or leave it out"
        raise NotFinite(f"{volume.modality}: {error}", file=file, subject=subject, fix=fix) from error


def _foreground_box(masks: Sequence[np.ndarray]) -> tuple[list[int], list[int]]:
    """First and past-the-end voxel of what any mask shows; (0, 0) along each axis where none does."""
    mask = masks[0]
    for other in masks[1:]:
        mask = mask | other
    lo, hi = [], []
    for axes in ((1, 2), (0, 2), (0, 1)):
        line = mask.any(axis=axes)
        found = np.flatnonzero(line)
        lo.append(int(found[0]) if found.size else 0)
        hi.append(int(found[-1]) + 1 if found.size else 0)
    return lo, hi


_ABSENT: dict[str, Any] = {"code_dtype": "int16", "zero_code": 0.0, "coding": ABSENT}
"""A modality that the session came without: nothing but `zero_code`, which stands for 0."""
_ABSENT_INDEX = {
    "error_bound": 0.0, "max_error": 0.0, "fixups": 0, "slope": 1.0, "inter": 0.0, "present": False
}  # fmt: skip

_NOT_RESTORED: dict[str, Any] = {
    "orientation": [],
    "header": b"",
    "tail": b"",
    "fixup_index": b"",
    "fixup_value": b"",
}


def _to_restore(volume: Volume, c: coding.Coding, box: tuple[slice, ...]) -> tuple[dict[str, Any], int]:
    """What brings the file back beside the codes, and the number of fixups."""
    index, raw = c.fixup_index, c.fixup_raw
    if c.codes.dtype == np.float32:  # outside the box only `zero_code` comes back: minus zero needs a fixup
        bits = c.codes.view(np.uint32) != np.float32(c.zero_code).view(np.uint32)
        bits[box] = False
        index = np.union1d(index, np.flatnonzero(bits))
        raw = volume.raw_XYZ.ravel()[index]
    return {
        "orientation": volume.orientation.ravel().tolist(),
        "header": volume.prefix,
        "tail": volume.tail,
        "fixup_index": bricks.pack(np.diff(index, prepend=0)),
        "fixup_value": bricks.pack(raw),
    }, index.size


def _batch(values: dict[str, Any], payloads: Sequence[bytes]) -> pa.RecordBatch:
    columns: dict[str, pa.Array] = {
        name: pa.array([value], SHARD_SCHEMA.field(name).type) for name, value in values.items()
    }
    crcs = [bricks.crc32(p) if p else 0 for p in payloads]
    columns["brick_crc"] = pa.array([crcs], SHARD_SCHEMA.field("brick_crc").type)
    ends = np.cumsum([0, *(len(p) for p in payloads)], dtype=np.int64)
    data = pa.py_buffer(b"".join(payloads))
    flat = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(payloads), [None, pa.py_buffer(ends), data]
    )
    columns["bricks"] = pa.LargeListArray.from_arrays(pa.array([0, len(payloads)], pa.int64()), flat)
    return pa.RecordBatch.from_arrays([columns[f.name] for f in SHARD_SCHEMA], schema=SHARD_SCHEMA)
