"""Crops as Arrow rows: what a fetch actor makes of a plan's rows.

One row a crop: the plan's columns, the codes as raw bytes (`voxels`, channels x D x H x W in C order,
native byte order), and the numbers that turn codes into intensities. Raw bytes cost a copy into the
object store and none out of it; Arrow tensor columns cost several.

Labelled crops have one more column, `mask`: their labels, uint8, D x H x W. It is not one more channel of
`voxels`: so a batch's codes and labels are each one contiguous tensor, as pinning and copies to a GPU want
them. Foreground crops (`PlanSpec.foreground`) are moved here, where masks are at hand; `corner` is where a
crop was read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.store.meta import LABEL
from brainfoundry.stream.foreground import corner_around, foreground_draws, pick_voxel
from brainfoundry.stream.frames import frame_bounds, inside_volume
from brainfoundry.stream.plan import CROP_METADATA, FOREGROUND_METADATA
from brainfoundry.stream.sessions import triples

# Per channel and crop, float32, in the order of CropBatch's fields.
SCAN_NUMBERS = ("slope", "inter", "zero_code", "mean", "sd")


class CropReader(Protocol):
    """What the stream needs of a shard set (`store.reader.ShardSet`)."""

    index: pa.Table

    def read_crop(
        self,
        shard: int,
        row: int,
        corner: Sequence[int],
        size: Sequence[int],
        channels: Sequence[int] | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """(C, *size) codes; `out`, filled, where given, of int16 or float32, for masks of uint8."""
        ...

    def mask_voxels(self, shard: int, row: int) -> Mapping[int, np.ndarray]:
        """Label -> (n, 3) voxels of the session's mask."""
        ...


class ScanTable:
    """Per session and chosen channel: how codes become intensities, and the volume's shape.

    `code_dtype` is what crops are delivered in: int16, or float32 where any session has float codes in
    the chosen channels (int16 codes are exact in float32), so that a run sees one dtype.

    Args:
        index: the shard set's index.
        channels: positions in the shard set's modality order; C = len(channels).
        label: position of the masks (`ShardSet.label_channel`); None: crops without.

    Raises:
        ConfigError: a channel the shard set does not have, or a label that is no mask.
    """

    def __init__(self, index: pa.Table, channels: Sequence[int], label: int | None = None) -> None:
        self.channels = tuple(int(c) for c in channels)
        scans = index["scans"].combine_chunks()
        modalities = len(scans.flatten()) // max(len(scans), 1)
        if not self.channels or min(self.channels) < 0 or max(self.channels) >= modalities:
            raise ConfigError(
                f"channels {list(self.channels)} do not fit a shard set of {modalities} modalities",
                fix=f"choose from 0 to {modalities - 1}",
            )
        flat = scans.flatten()
        self.label = label
        if label is not None:
            names = flat.field("modality").slice(0, modalities).to_pylist()
            if not 0 <= label < modalities or names[label] != LABEL:
                raise ConfigError(
                    f"scan {label} of the shard set is no mask: it has {', '.join(names)}",
                    fix="give the shard set's label_channel, or convert the cohort with its masks",
                )
            self._has_label = index["has_label"].fill_null(False).to_numpy()
        self.shape_N3, self.box_lo_N3, self.box_hi_N3 = (
            triples(index[name]) for name in ("shape", "box_lo", "box_hi")
        )
        self._numbers = {
            name: flat.field(name).to_numpy(zero_copy_only=False).reshape(-1, modalities)[:, self.channels]
            for name in SCAN_NUMBERS
        }
        # Sets made before there were optional modalities do not say: in those, every scan is there.
        present = flat.field("present").fill_null(True).to_numpy(zero_copy_only=False)
        self._present = present.reshape(-1, modalities)[:, self.channels]
        dtypes = flat.field("code_dtype").to_numpy(zero_copy_only=False).reshape(-1, modalities)
        floats = (dtypes[:, self.channels] == "float32").any()
        self.code_dtype = np.dtype(np.float32 if floats else np.int16)
        keys = _keys(index["shard"].to_numpy(), index["row"].to_numpy())
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def positions(self, rows: pa.Table) -> np.ndarray:
        """Index position of each plan row's session.

        Raises:
            DataError: a row of a shard that the index does not list.
        """
        wanted = _keys(rows["shard"].to_numpy(), rows["row"].to_numpy())
        found = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        bad = np.flatnonzero(self._keys[found] != wanted)
        if len(bad):
            row = rows.slice(int(bad[0]), 1).to_pylist()[0]
            raise DataError(
                f"plan names row {row['row']} of shard {row['shard']}, which the index does not list",
                subject=row["subject"],
                fix="make the plan from the same shard set",
            )
        return self._order[found]

    def check_labels(self, rows: pa.Table, positions: np.ndarray) -> None:
        """Refuse rows of sessions without a mask: their zeros would be taken for healthy tissue.

        Raises:
            DataError: names the first one.
        """
        if self.label is None:
            return
        bad = np.flatnonzero(~self._has_label[positions])
        if len(bad):
            raise DataError(
                "session came without a mask",
                subject=rows["subject"][int(bad[0])].as_py(),
                fix="plan with labelled set, so that only sessions with a mask are visited",
            )

    def numbers(self, name: str, positions: np.ndarray) -> np.ndarray:
        """(N, C) float32 of one of `SCAN_NUMBERS`."""
        return np.ascontiguousarray(self._numbers[name][positions], np.float32)

    def present(self, positions: np.ndarray) -> np.ndarray:
        """(N, C) bool: False where the session came without that modality."""
        return np.ascontiguousarray(self._present[positions])


def _keys(shard: np.ndarray, row: np.ndarray) -> np.ndarray:
    return (shard.astype(np.int64) << 32) | row.astype(np.int64)


def crop_of(rows: pa.Table) -> tuple[int, int, int]:
    """Crop size in voxels of rows that `Plan.rows` made; they carry it in their schema's metadata."""
    text = (rows.schema.metadata or {}).get(CROP_METADATA)
    if text is None:
        raise DataError(
            "rows do not name their crop size", fix="pass a table from Plan.rows, or slices of it"
        )
    d, h, w = json.loads(text)
    return d, h, w


def foreground_of(rows: pa.Table) -> tuple[float, str] | None:
    """(share, frame) of the foreground crops among rows that `Plan.rows` made; None where there are none."""
    text = (rows.schema.metadata or {}).get(FOREGROUND_METADATA)
    if text is None:
        return None
    share, frame = json.loads(text)
    return share, frame


def read_crops(reader: CropReader, scans: ScanTable, rows: pa.Table) -> pa.Table:
    """Read the crops of plan rows: the plan's columns and the crop columns, rows in the same order.

    Raises:
        DataError: a session without a mask where masks are asked for, or what the reader raises.
    """
    crop = crop_of(rows)
    size = (len(scans.channels), *crop)
    n = rows.num_rows
    positions = scans.positions(rows)
    scans.check_labels(rows, positions)
    codes = np.empty((n, *size), scans.code_dtype)
    label = () if scans.label is None else (scans.label,)
    masks = np.empty((n, len(label), *crop), np.uint8)
    corners = np.empty((n, 3), np.int32)
    shards, numbers = rows["shard"].to_pylist(), rows["row"].to_pylist()
    for i, corner in enumerate(_corners(reader, scans, rows, positions)):
        corners[i] = corner
        reader.read_crop(shards[i], numbers[i], corner, crop, scans.channels, codes[i])
        if label:
            reader.read_crop(shards[i], numbers[i], corner, crop, label, masks[i])
    inside_lo, inside_hi = inside_volume(corners, scans.shape_N3[positions], crop)
    columns: dict[str, pa.Array] = {
        **{name: one_array(rows[name]) for name in rows.column_names},
        "corner": _vectors(corners),
        "size": _vectors(np.broadcast_to(np.asarray(size, np.int32), (n, 4))),
        "inside_lo": _vectors(inside_lo),
        "inside_hi": _vectors(inside_hi),
        **{name: _vectors(scans.numbers(name, positions)) for name in SCAN_NUMBERS},
        "present": _vectors(scans.present(positions)),
        "voxels": _bytes(codes),
        **({"mask": _bytes(masks)} if label else {}),
    }
    return pa.Table.from_arrays(list(columns.values()), names=list(columns))


def _corners(
    reader: CropReader, scans: ScanTable, rows: pa.Table, positions: np.ndarray
) -> Iterator[list[int]]:
    """Where to read each crop, in order: at the plan's corner, or around a voxel of the mask.

    Lazy: a session's mask is looked through right before its crops, which follow one another, and not kept.
    """
    corners = triples(rows["corner"]).tolist()
    wanted = foreground_of(rows)
    if wanted is None:
        yield from corners
        return
    share, frame = wanted
    crop = crop_of(rows)
    shape, box_lo, box_hi = (of[positions] for of in (scans.shape_N3, scans.box_lo_N3, scans.box_hi_N3))
    lo, hi = frame_bounds(frame, shape, box_lo, box_hi, crop)
    draws = foreground_draws(rows["crop_seed"].to_numpy())
    session: tuple[int, int] | None = None
    voxels: Mapping[int, np.ndarray] = {}
    for i, here in enumerate(zip(rows["shard"].to_pylist(), rows["row"].to_pylist(), strict=True)):
        is_foreground, u_label, u_voxel = draws[i, 0] < share, draws[i, 1], draws[i, 2]
        if is_foreground and here != session:
            session, voxels = here, reader.mask_voxels(*here)
        if is_foreground and voxels:
            yield corner_around(pick_voxel(voxels, u_label, u_voxel), lo[i], hi[i], crop).tolist()
        else:
            yield corners[i]


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array, sharing its memory where it is one chunk (`combine_chunks` always copies)."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _bytes(values: np.ndarray) -> pa.LargeBinaryArray:
    """Each entry's bytes, sharing the array's memory."""
    offsets = np.arange(len(values) + 1, dtype=np.int64) * values[:1].nbytes
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(values)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(values), buffers)


def _vectors(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])
