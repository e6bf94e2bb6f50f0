"""The `data` benchmark: what a 96^3 crop of T1w and FLAIR costs, ours against other ways.

Every side delivers the same crops (same subjects, same seeded corners) as float32 with the `ct_window` rule
applied, one thread, files in the page cache, process CPU milliseconds. The chain is the released code's:
load both gzipped NIfTI, orient to RAS, window, pad, crop the foreground, cut n = 2 crops a loaded volume.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import json
import os
import shutil
import statistics
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from brainfoundry.benchmarks.crop_peers import PEERS
from brainfoundry.benchmarks.crop_sides import MODALITIES, Cohort, Crop, Direct, Frame, Memmap, Monai, Side
from brainfoundry.cohorts.demo import DemoSpec, make_demo_cohort, zip_bytes
from brainfoundry.cohorts.ukb import UKBRules, read_ukb
from brainfoundry.cohorts.ukb_files import FIELDS
from brainfoundry.core.errors import DataError
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.shard_task import ConvertSpec

CROP = (96, 96, 96)
GENERATED = 8
_REAL = "9908001"  # made-up eid under which real scans are put beside the generated ones


def prepare(folder: Path, scans: Path | None, *, generated: int = GENERATED) -> Path:
    """Make the UKB zips, or reuse those of an earlier call; their folder.

    Args:
        scans: folder with `ms-patient19_T1w.nii.gz` and `ms-patient19_FLAIR.nii.gz`, added rounded to int16
            where it is there.
        generated: subjects to make.
    """
    cohort, ukb = folder / "cohort", folder / "ukb"
    make_demo_cohort(
        str(cohort),
        DemoSpec(
            n_healthy=generated,
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
    return ukb


def collect(folder: Path, *, crop: Crop = CROP) -> Cohort:
    """The zips in `folder/ukb` as a shard set and as .nii.gz."""
    intake = read_ukb(str(folder / "ukb"), str(folder / "intake.parquet"), UKBRules(min_slices=1))
    convert(intake, str(folder / "shards"), ConvertSpec(min_slices=1), executor=inline)
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
    return Cohort(folder=folder / "sides", shards=shards, niigz=niigz, crop=crop)


def _add_real(source: Path, ukb: Path, modality: str) -> None:
    target = ukb / f"{_REAL}_{FIELDS[modality].field}_2_0.zip"
    if not source.exists() or target.exists():
        return
    image = nibabel.Nifti1Image.from_filename(source)
    rounded = nibabel.Nifti1Image(np.rint(image.get_fdata()).astype(np.int16), image.affine)
    target.write_bytes(zip_bytes({FIELDS[modality].member: gzip.compress(rounded.to_bytes(), 6, mtime=0)}))


def make_sides(cohort: Cohort, frame: Frame, peers: Sequence[type[Side]] = PEERS) -> list[Side]:
    """The chain, the memory map, ours, and every peer whose packages are here."""
    kinds: list[type[Side]] = [Monai, Memmap, Direct]
    for kind in peers:
        missing = [name for name in kind.needs if importlib.util.find_spec(name) is None]
        if missing:
            print(f"{kind.name} is left out: package {', '.join(missing)} is not installed")
        else:
            kinds.append(kind)
    return [kind(cohort, frame) for kind in kinds]


def run(folder: Path, scans: Path | None, *, repeats: int = 5, generated: int = GENERATED) -> dict[str, Any]:
    """Figures of the sides that need no Ray: medians over interleaved repeats of visits to each subject."""
    prepare(folder, scans, generated=generated)
    return measure(collect(folder), repeats=repeats)


def measure(cohort: Cohort, *, repeats: int = 5, peers: Sequence[type[Side]] = PEERS) -> dict[str, Any]:
    """Time and bytes of every side, after proof that all deliver the same crops.

    Raises:
        DataError: they do not.
    """
    with _one_thread():
        frame = Frame(cohort)
        sides = make_sides(cohort, frame, peers)
        worst = _largest_difference(sides, frame)
        times: dict[str, list[float]] = {side.name: [] for side in sides}
        n_subjects = frame.plan.n_subjects
        for repeat in range(repeats):
            for side in sides:
                # The fast sides need more crops for a clock's tick to vanish.
                visits = list(frame.visits((1 + repeat) * n_subjects, n_subjects * (1 if side.slow else 4)))
                start = time.process_time()
                for rows in visits:
                    side.crops(rows)
                times[side.name].append((time.process_time() - start) / (2 * len(visits)) * 1000)
    bytes_of = {side.name: side.bytes for side in sides}
    return {"subjects": float(n_subjects), "crops_max_abs_difference": worst} | summary(
        times, bytes_of, n_subjects
    )


def _largest_difference(sides: Sequence[Side], frame: Frame) -> float:
    """Of any side's crops from the chain's, one visit to each subject; warms the caches on the way."""
    worst = 0.0
    first, *others = sides
    for rows in frame.visits(0, frame.plan.n_subjects):
        want = first.crops(rows)
        for side in others:
            difference = float((side.crops(rows) - want).abs().max())
            worst = max(worst, difference)
            if not difference <= 1e-5:
                raise DataError(
                    f"{side.name} delivers other crops: largest difference {difference}",
                    subject=rows["subject"][0].as_py(),
                    fix="do not trust the timing",
                )
    return worst


def summary(times: dict[str, list[float]], bytes_of: dict[str, int], n_subjects: int) -> dict[str, Any]:
    """The figures under their fixed names; ratios are medians of the repeats' ratios."""
    figures: dict[str, Any] = {f"crop_{n}_cpu_ms": statistics.median(v) for n, v in times.items()}
    figures |= {f"subject_{name}_mb": size / n_subjects / 1e6 for name, size in bytes_of.items()}
    for name, values in times.items():
        if name != "direct":
            ratios = [t / d for t, d in zip(values, times["direct"], strict=True)]
            figures[f"crop_direct_vs_{name}"] = statistics.median(ratios)
            if name == "monai":
                figures |= {"crop_direct_vs_monai_min": min(ratios), "crop_direct_vs_monai_max": max(ratios)}
    figures["bytes_vs_niigz"] = bytes_of["direct"] / bytes_of["monai"]
    figures["subject_mb"] = bytes_of["direct"] / n_subjects / 1e6
    better = [
        name
        for name in times
        if figures[f"crop_{name}_cpu_ms"] < figures["crop_direct_cpu_ms"]
        and bytes_of[name] < bytes_of["direct"]
    ]
    return figures | {"better_in_both": ", ".join(better) or "nobody", "n_better_in_both": float(len(better))}


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for torch and for what reads BLOSC_NTHREADS; put back afterwards."""
    before, blosc = torch.get_num_threads(), os.environ.get("BLOSC_NTHREADS")
    torch.set_num_threads(1)
    os.environ["BLOSC_NTHREADS"] = "1"
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if blosc is None:
            del os.environ["BLOSC_NTHREADS"]
        else:
            os.environ["BLOSC_NTHREADS"] = blosc


def write(figures: dict[str, Any], path: Path | None) -> None:
    """Print figures, and write them as one flat JSON object."""
    for name, value in figures.items():
        print(f"{name:<34} {value:.6g}" if isinstance(value, float) else f"{name:<34} {value}")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n")
