"""The `data` benchmark: what a 96^3 crop of T1w and FLAIR costs, ours against MONAI's chain and a memory map.

Every side delivers the same crops (same subjects, same seeded corners) as float32 with the `ct_window` rule
applied, one thread, files in the page cache, process CPU milliseconds. The chain is the released code's:
load both gzipped NIfTI, orient to RAS, window, pad, crop the foreground, cut n = 2 crops a loaded volume.
"""

from __future__ import annotations

import gzip
import json
import shutil
import statistics
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow.compute as pc
import torch
from monai import transforms as mt

from brainfoundry.cohorts.demo import DemoSpec, make_demo_cohort, zip_bytes
from brainfoundry.cohorts.ukb import UKBRules, read_ukb
from brainfoundry.cohorts.ukb_files import FIELDS
from brainfoundry.core.errors import DataError
from brainfoundry.pretext.intensity import WINDOW, normalise
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.meta import shard_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.shard_task import ConvertSpec
from brainfoundry.stream.batch import BatchReader
from brainfoundry.stream.plan import Plan, PlanSpec

CROP = (96, 96, 96)
MODALITIES = ("T1w", "FLAIR")
GENERATED = 8
_REAL = "9908001"  # made-up eid under which real scans are put beside the generated ones


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """The benchmark's files: UKB zips, the same scans as .nii.gz, and the shard set."""

    shards: ShardSet
    niigz: dict[tuple[str, str], Path]
    """(subject, modality) -> .nii.gz, gzip level 6."""
    memmaps: dict[str, np.ndarray]
    """subject -> float32 memory map (2, 192, 288, 192): the chain's output before the crop, stored."""


def prepare(folder: Path, scans: Path | None) -> Cohort:
    """Make the files, or reuse those of an earlier call.

    Args:
        scans: folder with `ms-patient19_T1w.nii.gz` and `ms-patient19_FLAIR.nii.gz`, added rounded to int16
            where it is there.
    """
    cohort, ukb = folder / "cohort", folder / "ukb"
    make_demo_cohort(
        str(cohort),
        DemoSpec(
            n_healthy=GENERATED,
            n_repeat=0,
            n_no_flair=0,
            n_truncated_grid=0,
            n_few_slices=0,
            n_cut_zip=0,
            n_damaged=0,
        ),
    )
    ukb.mkdir(parents=True, exist_ok=True)
    for path in cohort.glob("*.zip"):
        if not (ukb / path.name).exists():
            shutil.copy(path, ukb / path.name)
    if scans is not None and scans.is_dir():
        for modality in MODALITIES:
            _add_real(scans / f"ms-patient19_{modality}.nii.gz", ukb, modality)
    intake = read_ukb(str(ukb), str(folder / "intake.parquet"), UKBRules())
    convert(intake, str(folder / "shards"), ConvertSpec(), executor=inline)
    niigz = {}
    for row in intake.rows(included_only=True):
        for scan in row.scans:
            path = folder / "niigz" / f"{row.subject}_{scan.modality}.nii.gz"
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                with zipfile.ZipFile(scan.uri) as archive:
                    path.write_bytes(gzip.compress(gzip.decompress(archive.read(scan.member)), 6))
            niigz[row.subject, scan.modality] = path
    shards = ShardSet.open(str(folder / "shards"))
    return Cohort(shards=shards, niigz=niigz, memmaps=_memmaps(folder / "float32", niigz))


def _add_real(source: Path, ukb: Path, modality: str) -> None:
    target = ukb / f"{_REAL}_{FIELDS[modality].field}_2_0.zip"
    if not source.exists() or target.exists():
        return
    image = nibabel.Nifti1Image.from_filename(source)
    rounded = nibabel.Nifti1Image(np.rint(image.get_fdata()).astype(np.int16), image.affine)
    target.write_bytes(zip_bytes({FIELDS[modality].member: gzip.compress(rounded.to_bytes(), 6, mtime=0)}))


def chain() -> Callable[[dict[str, str]], Any]:
    """The released pretraining transforms up to the crop, in today's MONAI."""
    low, high = WINDOW
    return mt.Compose(
        [
            mt.LoadImaged(keys=MODALITIES),
            mt.EnsureChannelFirstd(keys=MODALITIES),
            mt.ConcatItemsd(keys=MODALITIES, name="image"),
            mt.Orientationd(keys="image", axcodes="RAS", labels=None),
            mt.ScaleIntensityRanged(keys="image", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True),
            mt.SpatialPadd(keys="image", spatial_size=CROP),
            mt.CropForegroundd(keys="image", source_key="image", k_divisible=list(CROP), allow_smaller=True),
        ]
    )


def _memmaps(folder: Path, niigz: dict[tuple[str, str], Path]) -> dict[str, np.ndarray]:
    folder.mkdir(exist_ok=True)
    found = {}
    for subject in sorted({s for s, _ in niigz}):
        path = folder / f"{subject}.npy"
        if not path.exists():
            image = chain()({m: str(niigz[subject, m]) for m in MODALITIES})["image"]
            np.save(path, np.ascontiguousarray(image.numpy(), np.float32))
        found[subject] = np.load(path, mmap_mode="r")
    return found


class Sides:
    """The ways to get crops, each a function from plan rows of one subject to float32 (n, 2, 96, 96, 96)."""

    def __init__(self, cohort: Cohort) -> None:
        self.cohort = cohort
        self.chain = chain()
        self.read = BatchReader(cohort.shards, (0, 1))
        self.plan = Plan.from_index(
            cohort.shards.index,
            PlanSpec(
                seed=7,
                crop=CROP,
                crops_per_subject=2,
                subjects_per_group=1,
                groups_per_step=1,
                frame="reference",
            ),
        )
        shape = np.array(cohort.shards.index["shape"].to_pylist()[0])
        wanted = -(-shape // np.array(CROP)) * np.array(CROP)
        self.origin = -((wanted - shape) // 2)  # the frame's first voxel, in voxels of the volume

    def visits(self, first: int, count: int) -> Iterator[Any]:
        """Plan rows of `count` visits (2 crops of a subject each)."""
        for step in range(first, first + count):
            yield self.plan.rows(step, step + 1)

    def _corners(self, rows: Any) -> tuple[str, list[tuple[slice, ...]]]:
        subject = rows["subject"][0].as_py()
        corners = [np.array(c) - self.origin for c in rows["corner"].to_pylist()]
        return subject, [tuple(slice(a, a + n) for a, n in zip(c, CROP, strict=True)) for c in corners]

    def monai(self, rows: Any) -> torch.Tensor:
        """The chain, then the crops."""
        subject, places = self._corners(rows)
        image = self.chain({m: str(self.cohort.niigz[subject, m]) for m in MODALITIES})["image"]
        return torch.stack([image[(slice(None), *place)].as_tensor().contiguous() for place in places])

    def memmap(self, rows: Any) -> torch.Tensor:
        """Crops of the stored float32 frame."""
        subject, places = self._corners(rows)
        stored = self.cohort.memmaps[subject]
        return torch.from_numpy(np.stack([stored[(slice(None), *place)] for place in places]))

    def direct(self, rows: Any) -> torch.Tensor:
        """Our store, then our intensity rule."""
        return normalise(self.read(rows), "ct_window")[0]


def run(folder: Path, scans: Path | None, *, repeats: int = 5) -> dict[str, float]:
    """Figures of the sides that need no Ray: medians over interleaved repeats of one visit to each
    subject."""
    torch.set_num_threads(1)
    cohort = prepare(folder, scans)
    sides = Sides(cohort)
    n_subjects = sides.plan.n_subjects
    worst = 0.0
    for rows in sides.visits(0, n_subjects):  # warm caches, and proof that all sides deliver the same crops
        want = sides.monai(rows)
        for side in (sides.memmap, sides.direct):
            worst = max(worst, float((side(rows) - want).abs().max()))
    if worst > 1e-5:
        raise DataError(
            f"the sides deliver different crops: largest difference {worst}", fix="do not trust the timing"
        )
    names = ("monai", "memmap", "direct")
    times: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        first = (1 + repeat) * n_subjects
        for name in names:
            side = getattr(sides, name)
            passes = (
                1 if name == "monai" else 4
            )  # the fast sides need more crops for a clock's tick to vanish
            visits = list(sides.visits(first, n_subjects * passes))
            start = time.process_time()
            for rows in visits:
                side(rows)
            times[name].append((time.process_time() - start) / (2 * len(visits)) * 1000)
    ratios = [m / d for m, d in zip(times["monai"], times["direct"], strict=True)]
    files_bytes = sum(path.stat().st_size for path in cohort.niigz.values())
    shard_bytes = sum(
        Path(shard_uri(cohort.shards.uri, s)).stat().st_size
        for s in pc.unique(cohort.shards.index["shard"]).to_pylist()
    )
    return {
        "subjects": float(n_subjects),
        "crops_max_abs_difference": worst,
        **{f"crop_{name}_cpu_ms": statistics.median(values) for name, values in times.items()},
        "crop_direct_vs_monai": statistics.median(ratios),
        "crop_direct_vs_monai_min": min(ratios),
        "crop_direct_vs_monai_max": max(ratios),
        "crop_direct_vs_memmap": statistics.median(
            [m / d for m, d in zip(times["memmap"], times["direct"], strict=True)]
        ),
        "bytes_vs_niigz": shard_bytes / files_bytes,
        "subject_mb": shard_bytes / n_subjects / 1e6,
    }


def write(figures: dict[str, Any], path: Path | None) -> None:
    """Print figures, and write them as one flat JSON object."""
    for name, value in figures.items():
        print(f"{name:<34} {value:.6g}" if isinstance(value, float) else f"{name:<34} {value}")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n")
