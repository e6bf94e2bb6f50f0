"""One worker's crops of one step, as tensors of codes with all that turns them into intensities."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from brainfoundry.core.errors import DataError
from brainfoundry.stream.crops import SCAN_NUMBERS, CropReader, ScanTable, one_array, read_crops

# Columns of raw volumes in a table of crops.
_BYTES = ("voxels", "mask")


@dataclass
class CropBatch:
    """Crops of whole groups, in plan order. N crops, C channels, D x H x W voxels (RAS axes).

    A voxel's value is `code * slope + inter`; `zero_code` is the code of value 0 and what padding holds.
    Codes and labels may share memory with the object store: write into a copy, never into them.
    """

    step: int
    """Step number of the plan."""
    crops_per_group: int
    """Crops of a group; N is a multiple of it."""
    codes_NCDHW: Tensor
    """int16 codes, or float32 where the shard set has float codes in these channels."""
    slope_NC: Tensor
    """float32 units of the file per code."""
    inter_NC: Tensor
    """float32 value of code 0, in units of the file."""
    zero_code_NC: Tensor
    """float32 code of value 0."""
    mean_NC: Tensor
    """float32 mean of the scan's non-zero voxels, in units of the file."""
    sd_NC: Tensor
    """float32 standard deviation of the scan's non-zero voxels, in units of the file."""
    present_NC: Tensor
    """bool: False where the session came without that modality; its codes are all 0."""
    inside_lo_N3: Tensor
    """int32 first voxel of the crop that lies in the scanned volume."""
    inside_hi_N3: Tensor
    """int32 one past its last such voxel; the rest of the crop is padding."""
    seeds_N: Tensor
    """int64: the bits of the plan's crop_seed, viewed as signed."""
    subjects: list[str]
    """Subject of each crop."""
    labels_NDHW: Tensor | None = None
    """uint8 labels of the session's mask, 0 outside the scanned volume; None in a stream without masks."""

    def __len__(self) -> int:
        """Number of crops."""
        return len(self.subjects)

    @property
    def n_groups(self) -> int:
        """Number of groups."""
        return len(self) // self.crops_per_group

    def to(self, device: torch.device | str, non_blocking: bool = True) -> CropBatch:
        """The batch on a device; asynchronous only from pinned memory."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin(self) -> CropBatch:
        """A copy in page-locked memory, from which copies to a GPU can overlap with computation."""
        return self._map(lambda t: t.pin_memory())

    def groups(self, first: int, last: int) -> CropBatch:
        """Groups [first, last), as views."""
        lo, hi = first * self.crops_per_group, last * self.crops_per_group
        return replace(self._map(lambda t: t[lo:hi]), subjects=self.subjects[lo:hi])

    def _map(self, function: Callable[[Tensor], Tensor]) -> CropBatch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {n: function(v) for n, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **changed)


def batch_of(tables: Sequence[pa.Table]) -> CropBatch:
    """The batch of one step from its pieces, as `read_crops` made them, in order.

    Shares memory with the table where there is one piece; copies once where there are several.

    Raises:
        DataError: where the rows are not whole groups of one step, in slot order.
    """
    step, slot, group = (
        np.concatenate([t[name].to_numpy() for t in tables]) for name in ("step", "slot", "group")
    )
    crops_per_group = int(slot.max()) + 1 if len(slot) else 0
    if crops_per_group == 0 or not (
        len(slot) % crops_per_group == 0
        and (step == step[0]).all()
        and (slot == np.arange(len(slot)) % crops_per_group).all()
        and (group == np.repeat(group[::crops_per_group], crops_per_group)).all()
    ):
        raise DataError(
            "rows are not whole groups of one step in slot order",
            fix="take the rows of one step from Plan.rows",
        )
    return CropBatch(
        step=int(step[0]),
        crops_per_group=crops_per_group,
        subjects=[s for t in tables for s in t["subject"].to_pylist()],
        **_tensors(tables),
    )


class BatchReader:
    """Reads the crops of one step of a plan directly: what the stream delivers, without Ray.

    Args:
        shardset: an open shard set.
        channels: modalities to read, as positions in the shard set's order; C = len(channels).
        label: the masks' channel (`ShardSet.label_channel`), to read them too.

    Example:
        >>> read = BatchReader(shardset, (0, 1))
        >>> batch = read(plan.rows(7, 8))
    """

    def __init__(self, shardset: CropReader, channels: Sequence[int], label: int | None = None) -> None:
        self._shardset = shardset
        # Walks the whole index: once, not once a batch.
        self._scans = ScanTable(shardset.index, channels, label)

    def __call__(self, rows: pa.Table) -> CropBatch:
        """The batch of the rows of one step, as `Plan.rows` gives them."""
        return batch_of([read_crops(self._shardset, self._scans, rows)])


def read_batch(
    shardset: CropReader, rows: pa.Table, channels: Sequence[int], label: int | None = None
) -> CropBatch:
    """The crops of one step, read directly; for many steps use a `BatchReader`."""
    return BatchReader(shardset, channels, label)(rows)


def _tensors(tables: Sequence[pa.Table]) -> dict[str, Any]:
    """Tensors of CropBatch's names from crop tables in order: N crops over all of them."""
    rows = pa.concat_tables([t.select([n for n in t.column_names if n not in _BYTES]) for t in tables])
    sizes = _matrix(rows["size"])
    if (sizes != sizes[0]).any():
        raise DataError("crops of one step differ in size", fix="report this: a plan has one crop size")
    size = tuple(int(n) for n in sizes[0])
    labelled = "mask" in tables[0].column_names
    per_scan = (*SCAN_NUMBERS, "present")
    tensors = {f"{name}_NC": torch.from_numpy(_matrix(rows[name]).copy()) for name in per_scan}
    return {
        "codes_NCDHW": _volumes(tables, "voxels", size),
        "labels_NDHW": _volumes(tables, "mask", size[1:]) if labelled else None,
        **tensors,
        "inside_lo_N3": torch.from_numpy(_matrix(rows["inside_lo"]).copy()),
        "inside_hi_N3": torch.from_numpy(_matrix(rows["inside_hi"]).copy()),
        "seeds_N": torch.from_numpy(rows["crop_seed"].to_numpy().view(np.int64).copy()),
    }


def _volumes(tables: Sequence[pa.Table], name: str, size: tuple[int, ...]) -> torch.Tensor:
    """(N, *size) of a column of bytes.

    Shares memory with the table where it is one contiguous piece, and is copied once otherwise.
    """
    pieces = [_codes(chunk, size) for table in tables for chunk in table[name].chunks if len(chunk)]
    if len(pieces) == 1:
        return pieces[0]
    widest = max((p.dtype for p in pieces), key=lambda dtype: dtype.itemsize)
    whole = torch.empty((sum(map(len, pieces)), *size), dtype=widest)
    start = 0
    for piece in pieces:
        whole[start : start + len(piece)] = piece
        start += len(piece)
    return whole


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    array = one_array(column)
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)


def _codes(chunk: pa.LargeBinaryArray, size: tuple[int, ...]) -> torch.Tensor:
    """The (n, *size) codes or labels of a chunk, sharing its memory; the item size tells their dtype."""
    _, offsets_buffer, data = chunk.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
    voxels = int(np.prod(size))
    lengths = np.diff(offsets)
    dtype = {1: torch.uint8, 2: torch.int16, 4: torch.float32}.get(int(lengths[0]) // voxels)
    if dtype is None or (lengths != lengths[0]).any() or lengths[0] % voxels:
        raise DataError(
            f"crops of {sorted(set(lengths.tolist()))} bytes are no uint8, int16 or float32 of {size} voxels",
            fix="run the job again; report this if it comes back",
        )
    # torch warns of any read-only buffer; a ctypes view of the same memory is silent, and keeps it alive.
    view = (ctypes.c_char * (int(offsets[-1]) - int(offsets[0]))).from_address(data.address + int(offsets[0]))
    view.owner = data  # type: ignore[attr-defined]
    return torch.frombuffer(view, dtype=dtype).view(len(chunk), *size)
