"""A case's scans as the network wants them, and the way back: files on the scans' own grid.

What conversion and training make of a session is made here with the very same functions: decoding, RAS
axis order, resampling, coding, statistics, intensity rule. A test reads a session from a shard set and holds
the two equal: bit for bit, except float scans of a lossless set. These are quantised here all the same (no
card tells how its set held them), within range / 131,070.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import axcodes2ornt
from nibabel.spatialimages import HeaderDataError
from scipy import ndimage
from torch import Tensor

from brainfoundry.cohorts.nifti_header import NiftiHeader, read_header
from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.inference.nifti_out import INTENT_LABEL, INTENT_NONE, nifti_like, raw_header
from brainfoundry.inference.volume import Box, brain_box
from brainfoundry.pretext.intensity import normalise
from brainfoundry.store import coding
from brainfoundry.store.meta import FloatMode
from brainfoundry.store.resample import resample
from brainfoundry.store.source import gunzip
from brainfoundry.store.statistics import Statistics, statistics
from brainfoundry.store.volume import EmptyVolume, NotFinite, Volume, check_same_grid, decode_nifti
from brainfoundry.stream.batch import CropBatch

_GZIP = b"\x1f\x8b"
_EXTENSIONS = 64 << 20
"""Bytes beside the voxels that a file may unpack to: extensions can be large, a gzip bomb is larger."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a checkpoint's card demands of a volume."""

    modalities: tuple[str, ...]
    """Input channels by name, in order."""
    feeds: Mapping[str, str] = field(default_factory=dict)
    """Channel -> the modality whose scan it is fed; channels not named here are fed their own."""
    intensity: str
    """Intensity rule of the training."""
    spacing_mm: float | None
    """Isotropic voxel size in mm to resample to; None keeps the scans' grid."""
    template: str
    """Template space of the scans, such as MNI152."""
    skull_stripped: bool
    """Whether the scans show nothing but brain."""
    float_mode: FloatMode = "quantize"
    """How the shard set of the training held scans that are not 16-bit integers."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The modality read for each channel."""
        return tuple(self.feeds.get(name, name) for name in self.modalities)


@dataclass(frozen=True, kw_only=True)
class CaseVolume:
    """One case as the network sees it, with all that brings results back to its files.

    The **network grid** is that of `x_CDHW`: RAS axes, resampled where the card says so. The **scan grid** is
    that of the files, in RAS axis order. Without resampling the two are one.
    """

    subject: str
    x_CDHW: Tensor
    """float32, normalised as in training."""
    box: Box
    """Of the brain, on the network grid."""
    affine: np.ndarray
    """4 x 4: voxel of the network grid to mm (RAS)."""
    spacing: tuple[float, float, float]
    """mm of the network grid's voxels."""
    volumes: Mapping[str, Volume]
    """The scans by modality, on the scan grid; the first is the reference, on whose file results are
    written."""
    notes: tuple[str, ...]
    """What is odd about the files, a line each."""

    @property
    def reference(self) -> Volume:
        """The scan of the card's first channel."""
        return next(iter(self.volumes.values()))

    @property
    def result_box(self) -> Box:
        """The box to predict in: on a resampled grid one voxel more on every side, for what `to_scan_grid`
        makes of the brain's outermost voxels lies between two of the network grid."""
        if self._one_grid:
            return self.box
        (a, b, c), (d, e, f) = self.box
        x, y, z = self.x_CDHW.shape[1:]
        return (max(a - 1, 0), max(b - 1, 0), max(c - 1, 0)), (min(d + 1, x), min(e + 1, y), min(f + 1, z))

    @property
    def _one_grid(self) -> bool:
        same = self.x_CDHW.shape[1:] == self.reference.raw_XYZ.shape
        return same and np.array_equal(self.affine, self.reference.affine)

    def values(self, modality: str) -> np.ndarray:
        """A scan's values in file units: float32 on the scan grid."""
        volume = self.volumes[modality]
        slope, inter = volume.header.slope, volume.header.inter
        return (volume.raw_XYZ * np.float64(slope) + inter).astype(np.float32)

    def to_scan_grid(self, maps_RDHW: np.ndarray) -> np.ndarray:
        """Maps from the network grid to the scan grid, linearly; the very same maps without resampling."""
        return self._to_scan_grid(maps_RDHW, order=1)

    def labels_to_scan_grid(self, labels_DHW: np.ndarray) -> np.ndarray:
        """Labels from the network grid to the scan grid: each voxel takes the nearest one's."""
        return self._to_scan_grid(labels_DHW[None], order=0)[0]

    def restore_labels(self, labels_DHW: np.ndarray) -> bytes:
        """A NIfTI file's decompressed bytes: uint8 labels in the reference file's axes and header.

        Args:
            labels_DHW: uint8 or bool, on the scan grid.
        """
        labels = labels_DHW.astype(np.uint8, casting="safe", copy=False)
        return nifti_like(self.reference, labels, intent=INTENT_LABEL)

    def restore_map(self, values_DHW: np.ndarray) -> bytes:
        """The same for float32 values: probabilities, uncertainty.

        Args:
            values_DHW: on the scan grid.
        """
        values = values_DHW.astype(np.float32, casting="same_kind", copy=False)
        return nifti_like(self.reference, values, intent=INTENT_NONE)

    def _to_scan_grid(self, maps_RDHW: np.ndarray, *, order: int) -> np.ndarray:
        if maps_RDHW.shape[1:] != self.x_CDHW.shape[1:]:
            raise ValueError(
                f"maps of {maps_RDHW.shape[1:]}, the network grid is {tuple(self.x_CDHW.shape[1:])}"
            )
        shape = self.reference.raw_XYZ.shape
        if self._one_grid:
            return maps_RDHW
        # Both grids have the same axes, so a scale and a shift an axis say it all.
        between = np.linalg.solve(self.affine, self.reference.affine)
        scale, shift = between.diagonal()[:3], between[:3, 3]
        options = {"output_shape": shape, "order": order, "mode": "nearest", "prefilter": False}
        return np.stack([ndimage.affine_transform(one, scale, shift, **options) for one in maps_RDHW])


def load_case(
    scans: Mapping[str, str],
    space: Space,
    *,
    subject: str,
    assume_orientation: str = "",
) -> CaseVolume:
    """Read a case's scans into what the network was trained on.

    Args:
        scans: modality -> path or URI of a .nii or .nii.gz; those the card does not name are not looked at.
        assume_orientation: axis codes, such as LAS (nibabel's own guess), of scans whose header says nothing
            of orientation; "" refuses them.

    Raises:
        DataError: a modality is missing, a file cannot be used, or the scans lie on different grids.
    """
    names = tuple(dict.fromkeys(space.sources))
    _check_there(scans, space, subject)
    volumes: dict[str, Volume] = {}
    notes: list[str] = []
    for name in names:
        volumes[name], found = _read(scans[name], name, subject, assume_orientation)
        notes += [f"{scans[name]}: {note}" for note in found]
    reference = volumes[names[0]]
    for name in names[1:]:
        both = f"{scans[names[0]]} and {scans[name]}"
        check_same_grid(reference, volumes[name], file=both, subject=subject)
    affine, spacing = reference.affine, reference.spacing
    numbers = [volume.raw_XYZ for volume in volumes.values()]
    if space.spacing_mm is not None:
        resampled = [resample(volume, space.spacing_mm) for volume in volumes.values()]
        affine, spacing = resampled[0][1], (space.spacing_mm,) * 3
        numbers = [raw for raw, _ in resampled]
    coded = [
        _encode(volume, raw, space.float_mode, scans[name], subject)
        for (name, volume), raw in zip(volumes.items(), numbers, strict=True)
    ]
    shown = np.stack([codes.codes != codes.codes.dtype.type(codes.zero_code) for codes, _ in coded])
    x_NCDHW, _ = normalise(_batch(coded, subject), space.intensity)
    channels = [names.index(name) for name in space.sources]
    return CaseVolume(
        subject=subject,
        x_CDHW=x_NCDHW[0] if channels == list(range(len(names))) else x_NCDHW[0, channels],
        box=brain_box(shown),
        affine=affine,
        spacing=spacing,
        volumes=volumes,
        notes=tuple(notes),
    )


def _check_there(scans: Mapping[str, object], space: Space, subject: str) -> None:
    missing = [name for name in dict.fromkeys(space.sources) if name not in scans]
    if not missing:
        return
    wanted = [
        name if name == source else f"{name} (fed the {source}, says the card)"
        for name, source in zip(space.modalities, space.sources, strict=True)
    ]
    there = ", ".join(sorted(scans)) or "none"
    raise DataError(
        f"{', '.join(missing)} missing: there is {there}, and the network's channels are {', '.join(wanted)}",
        subject=subject,
        fix=f"give the {' and '.join(missing)} scan, or take a checkpoint whose card feeds its channels "
        f"from what is there",
    )


def _read(file: str, modality: str, subject: str, orientation: str) -> tuple[Volume, list[str]]:
    """A decoded scan, and what is odd about its geometry."""
    try:
        data = files.read_bytes(file)
    except OSError as error:
        problem = f"{modality} cannot be read: {error}"
        raise DataError(
            problem, file=file, subject=subject, fix="check the path and who may read it"
        ) from error
    gzipped = data[:2] == _GZIP
    header = read_header(io.BytesIO(data), size=len(data), gzipped=gzipped, file=file, subject=subject)
    if gzipped:
        data = gunzip(data, header.total_bytes + _EXTENSIONS, file=file, subject=subject)
    fields = raw_header(data, header.version)
    if fields["qform_code"] or fields["sform_code"]:
        volume = decode_nifti(data, modality=modality, file=file, subject=subject)
        return volume, _geometry_notes(fields, header)
    if not orientation:
        raise DataError(
            f"orientation of the {modality} is unknown: qform_code and sform_code are 0",
            file=file,
            subject=subject,
            fix="set them, e.g. with fslorient, or say what the axes are with --assume-orientation",
        )
    fields.set_sform(_assumed_affine(header, orientation), code=1)
    told = fields.binaryblock + data[len(fields.binaryblock) :]
    volume = decode_nifti(told, modality=modality, file=file, subject=subject)
    # What is written on its grid keeps the header that the file really has.
    volume = replace(volume, prefix=data[: header.offset], sha256=hashlib.sha256(data).hexdigest())
    return volume, [f"header says nothing of orientation; axes are taken for {orientation}"]


def _assumed_affine(header: NiftiHeader, codes: str) -> np.ndarray:
    """Stored voxel to mm for axes of the given codes; mm 0 is the volume's centre, as nibabel has it."""
    affine = np.zeros((4, 4))
    for axis, (to, direction) in enumerate(axcodes2ornt(tuple(codes))):
        affine[int(to), axis] = direction * header.spacing[axis]
    affine[:3, 3] = -affine[:3, :3] @ (np.array(header.shape) - 1) / 2
    affine[3, 3] = 1
    return affine


def _geometry_notes(fields: Any, header: NiftiHeader) -> list[str]:
    """Where the header contradicts itself."""
    notes = []
    if fields["qform_code"] and fields["sform_code"]:
        try:
            qform = fields.get_qform()
        except (ValueError, HeaderDataError) as error:
            return [f"qform makes no sense ({error}); sform is used"]
        corners = np.array([*np.ndindex(2, 2, 2)]) * (np.array(header.shape) - 1)
        between = apply_affine(header.affine, corners) - apply_affine(qform, corners)
        apart = float(np.linalg.norm(between, axis=1).max())
        if apart > min(header.spacing):
            notes.append(f"sform and qform are up to {apart:.3g} mm apart; sform is used")
    if not np.allclose(voxel_sizes(header.affine), header.spacing, rtol=0.01):
        sizes = ["x".join(f"{v:.4g}" for v in s) for s in (voxel_sizes(header.affine), header.spacing)]
        notes.append(f"voxels are {sizes[0]} mm by the affine and {sizes[1]} mm by pixdim")
    return notes


def _encode(
    volume: Volume, raw: np.ndarray, float_mode: FloatMode, file: str, subject: str
) -> tuple[coding.Coding, Statistics]:
    try:
        coded = coding.encode(raw, volume.header.slope, volume.header.inter, float_mode)
    except ValueError as error:
        problem = f"{volume.modality}: {error}"
        raise NotFinite(problem, file=file, subject=subject, fix="rescale the volume") from error
    try:
        return coded, statistics(coded.codes, coded.zero_code, coded.slope, coded.inter)
    except ValueError as error:
        problem = f"{volume.modality} is nothing but background"
        raise EmptyVolume(problem, file=file, subject=subject, fix="check the volume") from error


def _batch(coded: Sequence[tuple[coding.Coding, Statistics]], subject: str) -> CropBatch:
    """The whole volume as a batch of one crop."""

    def numbers(values: Sequence[float]) -> Tensor:
        return torch.tensor([values], dtype=torch.float32)

    codes_CDHW = np.stack([one.codes for one, _ in coded])
    return CropBatch(
        step=0,
        crops_per_group=1,
        codes_NCDHW=torch.from_numpy(codes_CDHW)[None],
        slope_NC=numbers([one.slope for one, _ in coded]),
        inter_NC=numbers([one.inter for one, _ in coded]),
        zero_code_NC=numbers([one.zero_code for one, _ in coded]),
        mean_NC=numbers([found.mean for _, found in coded]),
        sd_NC=numbers([found.sd for _, found in coded]),
        present_NC=torch.ones((1, len(coded)), dtype=torch.bool),
        inside_lo_N3=torch.zeros((1, 3), dtype=torch.int32),
        inside_hi_N3=torch.tensor([codes_CDHW.shape[1:]], dtype=torch.int32),
        seeds_N=torch.zeros(1, dtype=torch.int64),
        subjects=[subject],
    )
