"""Ways to get planned crops: what every side of the `data` benchmark shares, and the plain ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai import transforms as mt

from brainfoundry.pretext.intensity import WINDOW, normalise
from brainfoundry.store.meta import shard_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.batch import BatchReader
from brainfoundry.stream.plan import Plan, PlanSpec

MODALITIES = ("T1w", "FLAIR")
Crop = tuple[int, int, int]
Place = tuple[slice, slice, slice]


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """The benchmark's files: UKB zips, the same scans as .nii.gz, and the shard set."""

    folder: Path
    """For what the sides store."""
    shards: ShardSet
    niigz: dict[tuple[str, str], Path]
    """(subject, modality) -> .nii.gz, gzip level 6."""
    crop: Crop

    @property
    def subjects(self) -> list[str]:
        """Sorted."""
        return sorted({subject for subject, _ in self.niigz})


def chain(crop: Crop, *last: Any) -> mt.Compose:
    """The released pretraining transforms up to the crop, in today's MONAI, and `last` after them."""
    low, high = WINDOW
    return mt.Compose(
        [
            mt.LoadImaged(keys=MODALITIES),
            mt.EnsureChannelFirstd(keys=MODALITIES),
            mt.ConcatItemsd(keys=MODALITIES, name="image"),
            mt.SelectItemsd(keys="image"),
            mt.Orientationd(keys="image", axcodes="RAS", labels=None),
            mt.ScaleIntensityRanged(keys="image", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True),
            mt.SpatialPadd(keys="image", spatial_size=crop),
            mt.CropForegroundd(keys="image", source_key="image", k_divisible=list(crop), allow_smaller=True),
            *last,
        ]
    )


class Frame:
    """Which crops are asked for: a plan, and where its frame lies in the volume."""

    def __init__(self, cohort: Cohort) -> None:
        self.crop = cohort.crop
        self.plan = Plan.from_index(
            cohort.shards.index,
            PlanSpec(
                seed=7,
                crop=cohort.crop,
                crops_per_subject=2,
                subjects_per_group=1,
                groups_per_step=1,
                frame="reference",
            ),
        )
        self.shape = np.array(cohort.shards.index["shape"].to_pylist()[0])
        self.wanted = -(-self.shape // np.array(cohort.crop)) * np.array(cohort.crop)
        self.origin = -((self.wanted - self.shape) // 2)  # the frame's first voxel, in voxels of the volume

    def visits(self, first: int, count: int) -> Iterator[Any]:
        """Plan rows of `count` visits (2 crops of a subject each)."""
        for step in range(first, first + count):
            yield self.plan.rows(step, step + 1)

    def places(self, rows: Any) -> tuple[str, list[Place]]:
        """The subject of a visit, and its crops as parts of the frame."""
        found = []
        for corner in rows["corner"].to_pylist():
            a, b, c = (
                slice(int(i), int(i) + n)
                for i, n in zip(np.array(corner) - self.origin, self.crop, strict=True)
            )
            found.append((a, b, c))
        return rows["subject"][0].as_py(), found

    def fill(self, place: Place, box: Place, read: Callable[[Place], np.ndarray]) -> np.ndarray:
        """A windowed float32 crop from a store that keeps only the foreground box of each volume.

        Args:
            place: part of the frame.
            box: the foreground box, in voxels of the volume.
            read: part of the box, from its first voxel -> (C, ...) windowed.
        """
        out = np.zeros((len(MODALITIES), *self.crop), np.float32)  # the padding of the frame
        lo = [p.start + int(o) for p, o in zip(place, self.origin, strict=True)]
        hi = [a + n for a, n in zip(lo, self.crop, strict=True)]
        inside = _overlap(lo, hi, [0, 0, 0], self.shape.tolist())
        if inside is not None:
            out[(slice(None), *_moved(inside, lo))] = window(np.zeros(1, np.float32))[0]
        part = _overlap(lo, hi, [b.start for b in box], [b.stop for b in box])
        if part is not None:
            out[(slice(None), *_moved(part, lo))] = read(_moved(part, [b.start for b in box]))
        return out


def _overlap(lo: list[int], hi: list[int], box_lo: list[int], box_hi: list[int]) -> Place | None:
    a, b, c = (slice(max(x), min(y)) for x, y in zip(zip(lo, box_lo), zip(hi, box_hi), strict=True))  # noqa: B905
    return (a, b, c) if all(s.stop > s.start for s in (a, b, c)) else None


def _moved(place: Place, origin: list[int]) -> Place:
    a, b, c = (slice(s.start - o, s.stop - o) for s, o in zip(place, origin, strict=True))
    return a, b, c


def window(values: np.ndarray) -> np.ndarray:
    """The `ct_window` rule: float32 in 0..1."""
    low, high = WINDOW
    scaled = values.astype(np.float32)
    scaled -= low
    scaled *= 1 / (high - low)
    return np.clip(scaled, 0, 1, out=scaled)


class Side(ABC):
    """One way to get crops.

    Args:
        frame: which crops.
    """

    name: str
    needs: tuple[str, ...] = ()
    """Packages beyond ours."""
    slow = False
    """Opens whole files at every visit: measured on fewer visits."""

    def __init__(self, cohort: Cohort, frame: Frame) -> None:
        self.cohort, self.frame = cohort, frame

    @property
    @abstractmethod
    def bytes(self) -> int:
        """What all subjects take where the side reads them from: on disk, or in memory."""

    @abstractmethod
    def crops(self, rows: Any) -> torch.Tensor:
        """Plan rows of one subject -> (n, C, *crop) float32, windowed."""

    def files(self, subject: str) -> dict[str, str]:
        """Modality -> .nii.gz."""
        return {m: str(self.cohort.niigz[subject, m]) for m in MODALITIES}

    def folder(self) -> Path:
        """Where this side keeps its files."""
        path = self.cohort.folder / self.name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def box_codes(self, subject: str) -> tuple[np.ndarray, Place]:
        """int16 (C, ...) of a subject's foreground box, and the box."""
        shards = self.cohort.shards
        row = next(r for r in shards.index.to_pylist() if r["subject"] == subject)
        a, b, c = (slice(lo, hi) for lo, hi in zip(row["box_lo"], row["box_hi"], strict=True))
        codes = shards.read_crop(
            row["shard"], row["row"], row["box_lo"], [s.stop - s.start for s in (a, b, c)]
        )
        if any(scan["slope"] != 1 or scan["inter"] != 0 for scan in row["scans"]):
            raise ValueError("the benchmark's scans are plain int16")
        return codes, (a, b, c)


class Monai(Side):
    """The released loader: whole files through the chain, then the crops."""

    name = "monai"
    slow = True

    def __init__(self, cohort: Cohort, frame: Frame) -> None:
        super().__init__(cohort, frame)
        self._chain = chain(cohort.crop)

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.cohort.niigz.values())

    def crops(self, rows: Any) -> torch.Tensor:
        subject, places = self.frame.places(rows)
        image = self._chain(self.files(subject))["image"]
        return torch.stack([image[(slice(None), *place)].as_tensor().contiguous() for place in places])


class Memmap(Side):
    """The chain's output before the crop, stored as float32 and mapped (nnU-Net v1 style)."""

    name = "memmap"

    def __init__(self, cohort: Cohort, frame: Frame) -> None:
        super().__init__(cohort, frame)
        self._maps = {}
        for subject in cohort.subjects:
            path = self.folder() / f"{subject}.npy"
            if not path.exists():
                image = chain(cohort.crop)(self.files(subject))["image"]
                np.save(path, np.ascontiguousarray(image.numpy(), np.float32))
            self._maps[subject] = np.load(path, mmap_mode="r")

    @property
    def bytes(self) -> int:
        return sum(stored.nbytes for stored in self._maps.values())

    def crops(self, rows: Any) -> torch.Tensor:
        subject, places = self.frame.places(rows)
        stored = self._maps[subject]
        return torch.from_numpy(np.stack([stored[(slice(None), *place)] for place in places]))


class Direct(Side):
    """Our store, then our intensity rule."""

    name = "direct"

    def __init__(self, cohort: Cohort, frame: Frame) -> None:
        super().__init__(cohort, frame)
        self._read = BatchReader(cohort.shards, (0, 1))

    @property
    def bytes(self) -> int:
        shards = range(self.cohort.shards.meta.shards)
        return sum(Path(shard_uri(self.cohort.shards.uri, s)).stat().st_size for s in shards)

    def crops(self, rows: Any) -> torch.Tensor:
        return normalise(self._read(rows), "ct_window")[0]
