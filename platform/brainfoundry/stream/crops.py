"""Crops as Arrow rows: what a fetch actor makes of a plan's rows.

One row a crop: the plan's columns, the codes as raw bytes (`voxels`, channels x D x H x W in C order,
native byte order), and the numbers that turn codes into intensities. Raw bytes cost a copy into the
object store and none out of it; Arrow tensor columns cost several.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.stream.frames import inside_volume
from brainfoundry.stream.plan import CROP_METADATA, triples

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
        """(C, *size) codes; `out`, filled, where given, of int16 or float32."""
        ...


class ScanTable:
    """Per session and chosen channel: how codes become intensities, and the volume's shape.

    `code_dtype` is what crops are delivered in: int16, or float32 where any session has float codes in
    the chosen channels (int16 codes are exact in float32), so that a run sees one dtype.

    Args:
        index: the shard set's index.
        channels: positions in the shard set's modality order; C = len(channels).

    Raises:
        ConfigError: a channel the shard set does not have.
    """

    def __init__(self, index: pa.Table, channels: Sequence[int]) -> None:
        self.channels = tuple(int(c) for c in channels)
        scans = index["scans"].combine_chunks()
        modalities = len(scans.flatten()) // max(len(scans), 1)
        if not self.channels or min(self.channels) < 0 or max(self.channels) >= modalities:
            raise ConfigError(
                f"channels {list(self.channels)} do not fit a shard set of {modalities} modalities",
                fix=f"choose from 0 to {modalities - 1}",
            )
        flat = scans.flatten()
        self.shape_N3 = triples(index["shape"])
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


def read_crops(reader: CropReader, scans: ScanTable, rows: pa.Table) -> pa.Table:
    """Read the crops of plan rows: the plan's columns and the crop columns, rows in the same order."""
    crop = crop_of(rows)
    size = (len(scans.channels), *crop)
    positions = scans.positions(rows)
    codes = np.empty((rows.num_rows, *size), scans.code_dtype)
    corners = triples(rows["corner"])
    shards, numbers = rows["shard"].to_pylist(), rows["row"].to_pylist()
    for i in range(rows.num_rows):
        corner = (int(corners[i, 0]), int(corners[i, 1]), int(corners[i, 2]))
        reader.read_crop(shards[i], numbers[i], corner, crop, scans.channels, codes[i])
    offsets = np.arange(rows.num_rows + 1, dtype=np.int64) * codes[:1].nbytes
    inside_lo, inside_hi = inside_volume(corners, scans.shape_N3[positions], crop)
    columns: dict[str, pa.Array] = {
        "size": _vectors(np.broadcast_to(np.asarray(size, np.int32), (rows.num_rows, 4))),
        "inside_lo": _vectors(inside_lo),
        "inside_hi": _vectors(inside_hi),
        **{name: _vectors(scans.numbers(name, positions)) for name in SCAN_NUMBERS},
        "present": _vectors(scans.present(positions)),
        "voxels": pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), rows.num_rows, [None, pa.py_buffer(offsets), pa.py_buffer(codes)]
        ),
    }
    return pa.Table.from_arrays(
        [*(one_array(c) for c in rows.columns), *columns.values()],
        names=[*rows.column_names, *columns],
    )


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array, sharing its memory where it is one chunk (`combine_chunks` always copies)."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _vectors(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])
