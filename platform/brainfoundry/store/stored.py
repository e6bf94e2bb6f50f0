"""One session of a shard set, read back: the values of its head, single bricks, whole grids of codes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from brainfoundry.core.errors import DataError
from brainfoundry.store import bricks
from brainfoundry.store.meta import BRICK, SHARD_SCHEMA

REMAKE = "restore the file from a copy, or delete it and shardset.json and run the prepare job again"
"""What to do about a damaged shard set: conversion resumes, and makes only what is missing."""

_PLACES = np.ascontiguousarray(np.indices((BRICK,) * 3, np.int32).reshape(3, -1).T)
"""Of each voxel of a brick, in C order: where it lies in it."""


class StoredRow:
    """A row read back: its head's values, and where each brick lies. Made from one record batch's bytes.

    Args:
        message: the encapsulated record batch, memory-mapped or fetched; kept alive by this object.
        head_length, head_crc: from the index: bytes before the bricks' data, and their checksum.
        where: shard file and place, for messages.

    Raises:
        DataError: the head is damaged, or is another session's.
    """

    __slots__ = (
        "box_hi", "box_lo", "checked", "code_dtypes", "crcs", "data", "ends",
        "grid", "head", "per_scan", "shape", "subject", "where", "zero_codes",
    )  # fmt: skip

    def __init__(
        self, message: memoryview, *, head_length: int, head_crc: int, where: str, subject: str, session: str
    ) -> None:
        self.where, self.subject = where, subject
        if not 0 < head_length <= len(message) or bricks.crc32(message[:head_length]) != head_crc:
            raise self.damaged("the head of its row fails its checksum")
        batch = pa.ipc.read_record_batch(pa.py_buffer(message), SHARD_SCHEMA)
        head = {name: batch.column(name)[0].as_py() for name in SHARD_SCHEMA.names if name != "bricks"}
        if (head["subject"], head["session"]) != (subject, session):
            raise self.damaged(
                f"the row is of subject {head['subject']}: index and shard do not belong together"
            )
        self.head = head
        self.shape: tuple[int, int, int] = tuple(head["shape"])
        self.box_lo: tuple[int, int, int] = tuple(head["box_lo"])
        self.box_hi: tuple[int, int, int] = tuple(head["box_hi"])
        self.grid = bricks.brick_grid(self.box_lo, self.box_hi)
        self.per_scan = self.grid[0] * self.grid[1] * self.grid[2]
        self.code_dtypes = [np.dtype(s["code_dtype"]) for s in head["scans"]]
        self.zero_codes = [s["zero_code"] for s in head["scans"]]
        self.crcs: list[int] = head["brick_crc"]
        _, offsets, data = batch.column("bricks").values.buffers()
        self.ends: list[int] = np.frombuffer(offsets, np.int64).tolist()
        self.data = memoryview(data) if data is not None else memoryview(b"")
        self.checked = bytearray(len(self.crcs))

    def damaged(self, what: str) -> DataError:
        """The error for a row whose bytes are not what was written."""
        return DataError(
            f"shard is damaged: {what}",
            file=self.where,
            subject=self.subject,
            fix=REMAKE,
        )

    def brick(self, channel: int, number: int, out: np.ndarray) -> bool:
        """Decode one brick into `out` (32, 32, 32), of the scan's code dtype; False, untouched, if empty.

        Raises:
            DataError: the brick fails its checksum.
        """
        i = channel * self.per_scan + number
        start, end = self.ends[i], self.ends[i + 1]
        if start == end:
            return False
        data = self.data[start:end]
        if not self.checked[i]:
            if bricks.crc32(data) != self.crcs[i]:
                d, h, w = (int(n) for n in np.unravel_index(number, self.grid))
                modality = self.head["scans"][channel]["modality"]
                raise self.damaged(f"brick ({d}, {h}, {w}) of {modality} fails its checksum")
            self.checked[i] = 1
        bricks.decode_brick(data, out)
        return True

    def volume(self, channel: int) -> np.ndarray:
        """All codes of one scan: the whole RAS grid, `zero_code` outside the box."""
        dtype = self.code_dtypes[channel]
        codes = np.full(self.shape, self.zero_codes[channel], dtype)
        buffer = np.empty((BRICK,) * 3, dtype)
        for number, (d, h, w) in enumerate(np.ndindex(*self.grid)):
            if self.brick(channel, number, buffer):
                lo = [b + BRICK * i for b, i in zip(self.box_lo, (d, h, w), strict=True)]
                size = [min(BRICK, b - a) for a, b in zip(lo, self.box_hi, strict=True)]
                part = tuple(slice(a, a + n) for a, n in zip(lo, size, strict=True))
                codes[part] = buffer[: size[0], : size[1], : size[2]]
        return codes

    def voxels(self, channel: int) -> dict[int, np.ndarray]:
        """Voxels of each code that is not 0: code -> (n, 3) int32 of the RAS grid, brick by brick."""
        buffer = np.empty((BRICK,) * 3, self.code_dtypes[channel])
        flat = buffer.reshape(-1)
        codes, places = [flat[:0]], [_PLACES[:0]]
        for number, brick in enumerate(np.ndindex(*self.grid)):
            if self.brick(channel, number, buffer):
                found = np.flatnonzero(flat != 0)
                codes.append(flat[found])
                places.append(_PLACES.take(found, axis=0))
                places[-1] += np.add(self.box_lo, np.multiply(brick, BRICK), dtype=np.int32)
        codes_N, places_N3 = np.concatenate(codes), np.concatenate(places)
        return {int(code): places_N3.compress(codes_N == code, axis=0) for code in np.unique(codes_N)}
