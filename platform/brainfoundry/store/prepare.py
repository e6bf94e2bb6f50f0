"""What every prepare job does once it knows its cohort: intake, conversion, and what became of everybody."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from brainfoundry.cohorts.exclusions import print_exclusions, write_exclusions
from brainfoundry.cohorts.intake import exclusions_of, require_eligible
from brainfoundry.cohorts.manifest import Manifest, read_manifest
from brainfoundry.core import files, paths, ray_session
from brainfoundry.store.convert import Conversion, Executor, convert, on_ray
from brainfoundry.store.estimate import estimate
from brainfoundry.store.meta import intake_uri
from brainfoundry.store.shard_task import ConvertSpec

VAL_FRACTION = 1_896 / 41_400
"""Share of the subjects held out for validation (the paper's split of UK Biobank)."""


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Options that the prepare jobs share; each adds its own."""

    source: str = ""
    """Folder or URI of the cohort."""
    out: str = str(paths.home() / "demo" / "shards")
    """Folder (or URI) for the shard set; its own, or one that an interrupted run of this job began."""
    withdrawn: str | None = None
    """List of participants who withdrew consent: one id a line, or a table with a subject column."""
    min_slices: int = 100
    """Fewest axial slices (paper Fig. 3: at least 100)."""
    slice_rule: Literal["content", "header"] = "content"
    """content: slices that show brain are counted and decide too; header: only the grid does."""
    float_mode: Literal["quantize", "lossless"] = "quantize"
    """(also --float) Scans that are no int16: within (max-min)/131,070, or exact as float32."""
    spacing_mm: float | None = None
    """Resample to this isotropic voxel size, mm; None keeps the grid, and volumes can be restored."""
    rows_per_shard: int = 64
    """Sessions a shard file (2 to 3 MB a scan at 1 mm); one Ray task makes one shard."""
    n_val: int | None = None
    """Subjects held out for validation; None: 4.6 % of them (1,896 of 41,400 in the released split)."""
    seed: int = 0
    """Seed of the split."""
    cpus: int | None = None
    """Most shards in the making at once, and CPUs of the private Ray session without a cluster; None: all."""
    dry_run: bool = False
    """Show what was found, the counts, the estimated size and time; write nothing."""

    def convert_spec(self) -> ConvertSpec:
        """The conversion's part of the options."""
        return ConvertSpec(
            float_mode=self.float_mode, spacing_mm=self.spacing_mm, min_slices=self.min_slices,
            slice_rule=self.slice_rule, rows_per_shard=self.rows_per_shard, n_val=self.n_val or 0,
            val_fraction=VAL_FRACTION if self.n_val is None else 0.0, seed=self.seed,
        )  # fmt: skip


def prepare(
    options: PrepareOptions, read: Callable[[str], Manifest], *, executor: Executor | None = None
) -> Conversion | None:
    """Make the shard set of a cohort, and print and save how many sessions each rule left out.

    Args:
        read: writes the cohort's intake manifest to the URI it is given.
        executor: how shards are made; by default on Ray, on the cluster of this process or a private one.

    Returns:
        What the conversion did; None after a dry run.

    Raises:
        DataError: nothing to read, nobody eligible, or storage that cannot be written.
        ConfigError: options that contradict each other.
    """
    spec = options.convert_spec()
    with tempfile.TemporaryDirectory() as scratch:
        intake = read(f"{scratch}/intake.parquet")
    show(intake, "Intake (headers)")
    require_eligible(intake)
    if options.dry_run:
        e = estimate(intake, spec)
        print(f"{e.sessions:,} sessions, {e.source_bytes / 1e6:,.0f} MB of scans -> {options.out}")
        print(f"about {e.shard_bytes / 1e6:,.0f} MB of shards and {e.cpu_seconds / 60:,.1f} CPU minutes")
        print("dry run: nothing was written")
        return None
    if executor is None:
        print(f"converting on {ray_session.connect(num_cpus=options.cpus)}", flush=True)
    done = convert(intake, options.out, spec, executor=executor or on_ray(options.cpus))

    show(done.manifest, "Converted (voxels)")
    kept = read_manifest(intake_uri(options.out))  # the one in the set: who withdrew since is gone from it
    for manifest, name in ((kept, "exclusions_intake"), (done.manifest, "exclusions")):
        title, where = f"Exclusions, {manifest.meta.stage}", files.join(options.out, name)
        write_exclusions(where, exclusions_of(manifest), title=title, notes=manifest.meta.notes)
    size = f"{done.shard_bytes / 1e6:,.0f} MB from {done.source_bytes / 1e6:,.0f} MB, {done.seconds:.0f} s"
    print(f"{done.meta.rows:,} sessions in {done.meta.shards:,} shards, {size} -> {options.out}")
    return done


def show(manifest: Manifest, title: str) -> None:
    """Print the exclusion table and the notes below it."""
    title = f"{title}, {manifest.meta.source}"
    print_exclusions(exclusions_of(manifest), title=title, notes=manifest.meta.notes)
