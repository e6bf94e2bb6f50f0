"""Reading a shard set: crops that touch only their bricks, whole volumes, the original file, a full check."""

from __future__ import annotations

import io
import mmap
import threading
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.core.remote import StorageError
from brainfoundry.store import bricks, cache, restore
from brainfoundry.store.meta import (
    BRICK,
    FINGERPRINT_SCHEMA,
    INDEX_SCHEMA,
    LABEL,
    ShardSetMeta,
    changing_uri,
    fingerprints_uri,
    index_uri,
    meta_uri,
    shard_uri,
)
from brainfoundry.store.stored import REMAKE, StoredRow

_OPEN_SHARDS = 256
"""Shards kept memory-mapped: each takes a file descriptor, of which a process often has only 1,024."""
_ROWS_LOCAL = 4096
"""Parsed rows kept: a few kB each, and they remember which bricks were checked."""
_ROWS_REMOTE = 4
"""Fetched rows kept: several MB each; the crops of one visit follow one another."""


class ShardSet:
    """A shard set opened for reading. Picklable: the copy opens the same URI. Threads may share it.

    Args:
        uri: folder of `shardset.json`, local or anything pyarrow or fsspec opens.
        meta: its description.
        index: one row a stored session (`meta.INDEX_SCHEMA`), ascending in (shard, row).

    Example:
        >>> shards = ShardSet.open("runs/demo/shards")
        >>> codes_CDHW = shards.read_crop(0, 0, corner=(40, 60, 40), size=(96, 96, 96))
    """

    def __init__(self, uri: str, meta: ShardSetMeta, index: pa.Table) -> None:
        self.uri, self.meta, self.index = uri, meta, index
        self.dtype = np.dtype(meta.code_dtype)
        self._fs, self._path = files.filesystem(uri)
        self._local = isinstance(self._fs, pafs.LocalFileSystem)
        columns = {
            n: index.column(n).to_numpy()
            for n in ("shard", "row", "offset", "length", "head_length", "head_crc")
        }
        self._places = columns
        self._first = np.searchsorted(columns["shard"], np.arange(meta.shards + 1))
        self._rows: OrderedDict[int, StoredRow] = OrderedDict()
        self._maps: OrderedDict[int, memoryview] = OrderedDict()
        self._lock = threading.Lock()
        self._scratch = threading.local()
        bricks.one_thread()

    @classmethod
    def open(cls, uri: str) -> ShardSet:
        """Open the shard set at `uri`.

        Raises:
            DataError: not there, unfinished, damaged, or of another version.
        """
        uri = files.absolute(uri)
        meta = ShardSetMeta.read(uri)
        where = index_uri(uri)
        data = files.read_bytes(where)
        if sha256(data).hexdigest() != meta.index_sha256:
            raise DataError(
                "index does not belong to this shardset.json, or is damaged", file=where, fix=REMAKE
            )
        index = pq.read_table(io.BytesIO(data), schema=INDEX_SCHEMA).combine_chunks()
        return cls(uri, meta, index)

    def __reduce__(self) -> tuple[Any, ...]:
        return (ShardSet.open, (self.uri,))

    def __len__(self) -> int:
        return int(self.index.num_rows)

    def position(self, shard: int, row: int) -> int:
        """The row of `index` that describes a stored session.

        Raises:
            DataError: there is no such row.
        """
        if 0 <= shard < self.meta.shards and 0 <= row < self._first[shard + 1] - self._first[shard]:
            return int(self._first[shard]) + row
        raise DataError(
            f"no row {row} in shard {shard}",
            file=self.uri,
            fix="plan and shard set do not belong together: make the plan from this shard set's index",
        )

    def read_crop(
        self,
        shard: int,
        row: int,
        corner: Sequence[int],
        size: Sequence[int],
        channels: Sequence[int] | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Codes of a crop, reading only the bricks it touches; `zero_code` outside the foreground box.

        Args:
            corner: voxel of the RAS volume at the crop's first corner; may be negative or past the end.
            size: voxels along the RAS axes.
            channels: modalities by position in `meta.modalities`, and `label_channel`; by default all
                modalities, never the mask.
            out: (C, *size) to fill: of `dtype`, or for the mask alone of any that holds its labels.

        Returns:
            (C, *size): int16, or float32 where the set has float bricks.

        Raises:
            DataError: the row's head or a brick is damaged (each is checked when first touched).
        """
        stored = self._row(shard, row)
        wanted = range(len(self.meta.modalities)) if channels is None else channels
        crop = np.empty((len(wanted), *size), self.dtype) if out is None else out
        spans = [
            _spans(int(c), int(s), lo, hi)
            for c, s, lo, hi in zip(corner, size, stored.box_lo, stored.box_hi, strict=True)
        ]
        covered = all(
            lo <= c and c + s <= hi
            for c, s, lo, hi in zip(corner, size, stored.box_lo, stored.box_hi, strict=True)
        )
        _, nh, nw = stored.grid
        for crop_DHW, channel in zip(crop, wanted, strict=True):
            zero = stored.zero_codes[channel]
            if not covered:
                crop_DHW.fill(zero)
            buffer = self._buffer(stored.code_dtypes[channel])
            for d, to_d, from_d in spans[0]:
                for h, to_h, from_h in spans[1]:
                    first = (d * nh + h) * nw
                    for w, to_w, from_w in spans[2]:
                        if stored.brick(channel, first + w, buffer):
                            crop_DHW[to_d, to_h, to_w] = buffer[from_d, from_h, from_w]
                        elif covered:
                            crop_DHW[to_d, to_h, to_w] = zero
        return crop

    def mask_voxels(self, shard: int, row: int) -> dict[int, np.ndarray]:
        """Where a session's lesions are: label -> (n, 3) int32 voxels of the RAS grid, brick by brick.

        Reads only the mask's bricks that are not empty. Labels that are not in the mask are not there; of a
        session without a mask none is.

        Raises:
            DataError: a set without masks, or a damaged brick.
        """
        return self._row(shard, row).voxels(self._channel(LABEL))

    def read_volume(self, shard: int, row: int, modality: str) -> np.ndarray:
        """RAS codes of one scan, the whole grid; zeros for a modality the session came without."""
        return self._row(shard, row).volume(self._channel(modality)).astype(self.dtype, copy=False)

    def affine(self, shard: int, row: int) -> np.ndarray:
        """4 x 4: RAS voxel index to mm."""
        return np.array(self._row(shard, row).head["affine"]).reshape(4, 4)

    def nifti_bytes(self, shard: int, row: int, modality: str) -> bytes:
        """The decompressed bytes of the NIfTI file a scan came from; see `restore.nifti_bytes`."""
        return restore.nifti_bytes(self._row(shard, row), self._channel(modality))

    def to_nifti(self, shard: int, row: int, modality: str) -> nibabel.Nifti1Image:
        """The original image: grid, axes, affine, header codes, dtype (a Nifti2Image for NIfTI-2 sources).

        To write the file itself, prefer `nifti_bytes` with `restore.write_nifti`: nibabel chooses new scale
        factors when it saves an image with scl_slope.
        """
        return restore.nifti_image(self.nifti_bytes(shard, row, modality))

    def verify(self) -> list[str]:
        """Check and decode every brick of every shard.

        Returns:
            A message for each row that is broken (its first fault); empty where all is well.
        """
        problems: list[str] = []
        for shard, row in zip(self._places["shard"].tolist(), self._places["row"].tolist(), strict=True):
            try:
                stored = self._load(self.position(shard, row), fresh=True)
                for channel in range(len(stored.code_dtypes)):
                    stored.volume(channel)
            except StorageError:  # says nothing about the shard
                raise
            except DataError as error:
                problems.append(error.line())
        return problems

    @property
    def label_channel(self) -> int | None:
        """Channel of the lesion masks, for `read_crop`; None in a set without."""
        return len(self.meta.modalities) if self.meta.labels else None

    def fingerprints(self) -> pa.Table:
        """One row a stored scan (masks have none): `meta.FINGERPRINT_SCHEMA`, in the index's order.

        Raises:
            DataError: missing, damaged, or of another state of the set.
        """
        where = fingerprints_uri(self.uri)
        data = files.read_bytes(where)
        if sha256(data).hexdigest() != self.meta.fingerprints_sha256:
            raise DataError(
                "fingerprints do not belong to this shardset.json, or are damaged", file=where, fix=REMAKE
            )
        return pq.read_table(io.BytesIO(data), schema=FINGERPRINT_SCHEMA)

    def _channel(self, modality: str) -> int:
        names = [*self.meta.modalities, *([LABEL] if self.meta.labels else [])]
        if modality not in names:
            raise DataError(
                f"no modality {modality!r} in this shard set",
                file=self.uri,
                fix=f"choose one of {', '.join(names)}",
            )
        return names.index(modality)

    def _buffer(self, dtype: np.dtype) -> np.ndarray:
        buffer: np.ndarray | None = getattr(self._scratch, dtype.name, None)
        if buffer is None:
            buffer = np.empty((BRICK,) * 3, dtype)
            setattr(self._scratch, dtype.name, buffer)
        return buffer

    def _row(self, shard: int, row: int) -> StoredRow:
        position = self.position(shard, row)
        with self._lock:
            stored = self._rows.get(position)
            if stored is not None:
                self._rows.move_to_end(position)
                return stored
        stored = self._load(position)
        with self._lock:
            self._rows[position] = stored
            while len(self._rows) > (_ROWS_LOCAL if self._local else _ROWS_REMOTE):
                self._rows.popitem(last=False)
        return stored

    def _load(self, position: int, *, fresh: bool = False) -> StoredRow:
        try:
            return self._read(position, fresh=fresh)
        except StorageError:
            raise
        except DataError as error:
            if not self._changed():
                raise
            raise DataError(
                "shard set was changed (withdrawal, new split) since it was opened",
                file=self.uri,
                fix="submit the job again: it opens the set as it is now",
            ) from error

    def _changed(self) -> bool:
        """Whether the set on storage is another than the one opened: then nothing is damaged."""
        if files.exists(changing_uri(self.uri)):
            return True
        return (
            files.exists(meta_uri(self.uri))
            and ShardSetMeta.read(self.uri).index_sha256 != self.meta.index_sha256
        )

    def _read(self, position: int, *, fresh: bool) -> StoredRow:
        place = {name: int(values[position]) for name, values in self._places.items()}
        where = shard_uri(self.uri, place["shard"])
        subject = self.index.column("subject")[position].as_py()
        end = place["offset"] + place["length"]
        try:
            if self._local:
                whole = self._map(place["shard"])
                message = whole[place["offset"] : end]
            else:
                part = cache.read_range(where, place["offset"], place["length"], fresh=fresh)
                message = memoryview(part)
        except OSError as error:
            raise DataError(
                f"shard cannot be read: {error}", file=where, subject=subject, fix=REMAKE
            ) from error
        if len(message) != place["length"]:
            raise DataError("shard is cut short", file=where, subject=subject, fix=REMAKE)
        return StoredRow(
            message,
            head_length=place["head_length"],
            head_crc=place["head_crc"],
            where=where,
            subject=subject,
            session=self.index.column("session")[position].as_py(),
        )

    def _map(self, shard: int) -> memoryview:
        with self._lock:
            found = self._maps.get(shard)
            if found is not None:
                self._maps.move_to_end(shard)
                return found
            with Path(shard_uri(self.uri, shard)).open("rb") as handle:
                try:
                    mapped = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
                except ValueError:  # an empty file cannot be mapped
                    mapped = memoryview(b"")
            self._maps[shard] = mapped
            while len(self._maps) > _OPEN_SHARDS:
                oldest, _ = self._maps.popitem(last=False)
                for position in range(self._first[oldest], self._first[oldest + 1]):
                    self._rows.pop(position, None)  # a row would keep its shard mapped
            return mapped


def _spans(corner: int, size: int, lo: int, hi: int) -> list[tuple[int, slice, slice]]:
    """Along one axis: (brick, part of the crop, part of the brick) for every brick the crop touches.

    Args:
        lo, hi: the foreground box, whose bricks start at lo.
    """
    start, stop = max(corner, lo), min(corner + size, hi)
    spans = []
    for brick in range((start - lo) // BRICK, -(-(stop - lo) // BRICK) if stop > start else 0):
        origin = lo + brick * BRICK
        a, b = max(start, origin), min(stop, origin + BRICK)
        spans.append((brick, slice(a - corner, b - corner), slice(a - origin, b - origin)))
    return spans
