"""Small indexes, and a shard set whose voxels say where they come from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from brainfoundry.core.rng import hash64_int
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.resplit import resplit
from brainfoundry.store.shard_task import ConvertSpec
from tests.store.builders import SHAPE as VOLUME
from tests.store.builders import brats_intake, lesion, put_brats

MODALITIES = ("T1w", "FLAIR")
SHAPE = (20, 24, 18)
CROP = (4, 6, 4)


def make_index(
    subjects: int,
    *,
    sessions: int = 1,
    split: str = "train",
    shape: Sequence[int] = SHAPE,
    box: tuple[Sequence[int], Sequence[int]] = ((3, 4, 2), (17, 20, 16)),
    per_shard: int = 3,
    code_dtype: str = "int16",
) -> pa.Table:
    """An index of subjects 9900000, 9900001, ... with what the stream reads of it."""
    names = [(f"{9_900_000 + s}", f"{2 + i}") for s in range(subjects) for i in range(sessions)]
    n = len(names)
    scans = [
        [
            {
                "modality": m,
                "slope": 0.5 + c,
                "inter": float(i),
                "zero_code": -float(c),
                "mean": 100.0 + i,
                "sd": 10.0 + c,
                "code_dtype": code_dtype,
                "present": True,
            }
            for c, m in enumerate(MODALITIES)
        ]
        for i in range(n)
    ]
    triple = pa.list_(pa.int32())
    return pa.table(
        {
            "subject": [subject for subject, _ in names],
            "session": [session for _, session in names],
            "split": [split] * n,
            "shard": pa.array([i // per_shard for i in range(n)], pa.int32()),
            "row": pa.array([i % per_shard for i in range(n)], pa.int32()),
            "shape": pa.array([list(shape)] * n, triple),
            "box_lo": pa.array([list(box[0])] * n, triple),
            "box_hi": pa.array([list(box[1])] * n, triple),
            "scans": pa.array(scans),
        }
    )


def write_set(folder: Path, index: pa.Table) -> str:
    """A folder that `WitnessReader` opens."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(index, folder / "index.parquet")
    return str(folder)


class WitnessReader:
    """A reader whose every voxel is a hash of shard, row, channel and place, at uneven speed."""

    def __init__(self, uri: str) -> None:
        self.index = pq.read_table(Path(uri) / "index.parquet")
        self._reads = 0

    def read_crop(
        self,
        shard: int,
        row: int,
        corner: Sequence[int],
        size: Sequence[int],
        channels: Sequence[int] | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """(C, *size) int16."""
        self._reads += 1
        if hash64_int(shard, row, self._reads) % 23 == 0:
            time.sleep(0.01)  # so that actors overtake one another
        wanted = list(channels if channels is not None else range(len(MODALITIES)))
        crop = np.empty((len(wanted), *size), np.int16) if out is None else out
        for k, channel in enumerate(wanted):
            crop[k] = witness(shard, row, channel, corner, size)
        return crop


def witness(shard: int, row: int, channel: int, corner: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """The codes of one channel of a crop, from where it lies alone."""
    d, h, w = np.meshgrid(*(np.arange(c, c + s) for c, s in zip(corner, size, strict=True)), indexing="ij")
    return ((shard * 7919 + row * 104729 + channel * 1299709 + d * 31 + h * 17 + w) % 20011).astype(np.int16)


def scattered(seed: int) -> np.ndarray:
    """A mask of single voxels of labels 1, 2 and 4 anywhere in the volume, a few of 4 and many of 1."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(VOLUME, np.uint8)
    for label, n in ((1, 60), (2, 12), (4, 3)):
        mask[tuple(rng.integers(0, side, n) for side in VOLUME)] = label
    return mask


PARTS = {
    "BraTS2021_00001": ("train", 0),
    "BraTS2021_00002": ("train", 0),
    "BraTS2021_00003": ("val", 1),
    "BraTS2021_00004": ("train", 1),
    "BraTS2021_00005": ("test", 2),
    "BraTS2021_00006": ("train", 2),
    "BraTS2021_00007": ("train", None),
    "BraTS2021_00008": ("val", None),
    "BraTS2021_00009": ("test", None),
}
"""Splits and folds of `labelled_set`: all that `jobs/split.py` may write. Mask 4 is empty; 6 has none."""


def labelled_set(folder: Path) -> str:
    """A shard set of nine cases, FLAIR and T1w, with masks, splits and folds."""
    for case in range(1, 10):
        mask = {2: lesion(1, 2, 4), 4: lesion(), 6: None}.get(case, scattered(case))
        put_brats(folder / "brats", case, mask)
    spec = ConvertSpec(min_slices=10, rows_per_shard=2)
    uri = str(folder / "set")
    convert(brats_intake(folder / "brats", "optional"), uri, spec, executor=inline)
    resplit(uri, PARTS, {"method": "by hand"})
    return uri
