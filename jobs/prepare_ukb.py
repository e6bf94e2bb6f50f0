#!/usr/bin/env python
"""Turn a folder of UK Biobank bulk files into a shard set for pretraining.

Reads headers only to decide who is in (intake), converts those straight from the zips on Ray, and prints and
saves how many sessions each rule left out. Safe to run again: it resumes, and leaves a finished set as it is.

    python jobs/prepare_ukb.py --source /data/ukb --out /data/ukb-shards
    ray job submit --working-dir . -- python jobs/prepare_ukb.py --source /data/ukb --out s3://bucket/ukb-shards
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Literal

from brainfoundry.cohorts.demo import default_root
from brainfoundry.cohorts.exclusions import exclusion_table, print_exclusions, write_exclusions
from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.cohorts.ukb import UKBRules, read_ukb, require_eligible
from brainfoundry.core import files, paths, ray_session
from brainfoundry.core.job import run_job
from brainfoundry.store.convert import convert, on_ray
from brainfoundry.store.estimate import estimate
from brainfoundry.store.shard_task import ConvertSpec


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    source: str = default_root()
    """Folder or URI of bulk files such as 9900001_20252_2_0.zip, zipped or not; default: the demo cohort."""
    out: str = str(paths.home() / "demo" / "shards")
    """Folder (or URI) for the shard set; its own, or one that an interrupted run of this job began."""
    modalities: tuple[str, ...] = ("T1w", "FLAIR")
    """Modalities in channel order: T1w (field 20252), FLAIR (field 20253)."""
    instances: tuple[int, ...] = (2,)
    """Imaging visits: 2 the first, 3 the first repeat. Visits of a subject are always in the same split."""
    participants: str | None = None
    """Table with age, sex and site (tab- or comma-separated; our column names or UK Biobank's)."""
    min_slices: int = 100
    """Fewest axial slices (paper Fig. 3: at least 100)."""
    slice_rule: Literal["content", "header"] = "content"
    """content: slices that show brain are counted and decide too; header: only the grid's third axis does."""
    float_mode: Literal["quantize", "lossless"] = "quantize"
    """(also --float) Scans that are no int16: within (max-min)/131,070, or exact as float32."""
    spacing_mm: float | None = None
    """Resample to this isotropic voxel size, mm; None keeps the grid, and volumes can be restored."""
    rows_per_shard: int = 64
    """Sessions a shard file (about 5 MB each at 1 mm, two modalities); one Ray task makes one shard."""
    n_val: int | None = None
    """Subjects held out for validation; None: 4.6 % of them (1,896 of 41,400 in the released split)."""
    seed: int = 0
    """Seed of the split."""
    cpus: int | None = None
    """Most shards in the making at once, and CPUs of the private Ray session without a cluster; None: all."""
    dry_run: bool = False
    """Show what was found, the counts, the estimated size and time; write nothing."""


def main(config: PrepareConfig) -> None:
    # --- intake: headers only
    rules = UKBRules(modalities=config.modalities, instances=config.instances, min_slices=config.min_slices)
    with tempfile.TemporaryDirectory() as scratch:
        intake = read_ukb(config.source, f"{scratch}/intake.parquet", rules, participants=config.participants)
    show(intake, "Intake (headers)")
    require_eligible(intake)

    # --- conversion: voxels
    spec = ConvertSpec(
        float_mode=config.float_mode, spacing_mm=config.spacing_mm, min_slices=config.min_slices,
        slice_rule=config.slice_rule, rows_per_shard=config.rows_per_shard, n_val=config.n_val or 0,
        val_fraction=1_896 / 41_400 if config.n_val is None else 0.0, seed=config.seed,
    )  # fmt: skip
    if config.dry_run:
        e = estimate(intake, spec)
        print(f"{e.sessions:,} sessions, {e.source_bytes / 1e6:,.0f} MB of scans -> {config.out}")
        print(f"about {e.shard_bytes / 1e6:,.0f} MB of shards and {e.cpu_seconds / 60:,.1f} CPU minutes")
        print("dry run: nothing was written")
        return
    print(f"converting on {ray_session.connect(num_cpus=config.cpus)}", flush=True)
    done = convert(intake, config.out, spec, executor=on_ray(config.cpus))

    # --- what became of everybody
    show(done.manifest, "Converted (voxels)")
    for manifest, name in ((intake, "exclusions_intake"), (done.manifest, "exclusions")):
        meta, where = manifest.meta, files.join(config.out, name)
        lines = exclusion_table(manifest.counts(), stage=meta.stage)
        write_exclusions(where, lines, title=f"Exclusions, {meta.stage}", notes=meta.notes)
    size = f"{done.shard_bytes / 1e6:,.0f} MB from {done.source_bytes / 1e6:,.0f} MB, {done.seconds:.0f} s"
    print(f"{done.meta.rows:,} sessions in {done.meta.shards:,} shards, {size} -> {config.out}")


def show(manifest: Manifest, title: str) -> None:
    lines = exclusion_table(manifest.counts(), stage=manifest.meta.stage)
    print_exclusions(lines, title=f"{title}, {manifest.meta.source}", notes=manifest.meta.notes)


if __name__ == "__main__":
    run_job(PrepareConfig, main, description=__doc__, aliases={"--float": "--float-mode"})
