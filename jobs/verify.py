#!/usr/bin/env python
"""Verify a cohort or a shard set: every scan read, measured and held against what its manifest claims.

Readable, checksums, shape, spacing, orientation, grids of modalities and masks, label values, NaN, empty
volumes, slices with brain, intensity outliers, template space, skull-strip state, duplicates by image
fingerprint; for shard sets also every brick. Writes findings.csv, findings.parquet and verify.html, a page
with a picture of every suspect.

Exit status: 0 no finding of severity error (warnings are allowed); 3 at least one error; 2 wrong options;
1 it could not be done.

    python jobs/verify.py --source /data/brats21 --cohort brats --out /data/verify
    python jobs/verify.py --manifest intake.parquet
    python jobs/verify.py --shards s3://bucket/ukb-shards --out s3://bucket/verify
"""

from __future__ import annotations

from dataclasses import dataclass

from brainfoundry.core import files, paths, ray_session
from brainfoundry.core.job import run_job
from brainfoundry.quality.executors import on_ray
from brainfoundry.quality.report import print_summary, write_report
from brainfoundry.quality.sources import Choice, Cohort, inspection_of
from brainfoundry.quality.verify import verify

ERRORS_FOUND = 3


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    manifest: str | None = None
    """Cohort manifest (intake or converted): the files it names are verified."""
    shards: str | None = None
    """Shard set, folder or URI: what it stores is verified."""
    source: str | None = None
    """Folder or URI of a cohort's files; needs --cohort."""
    cohort: Cohort | None = None
    """Layout of --source."""
    modalities: tuple[str, ...] = ()
    """What to read of --source, in order; empty: all that its cohort has (bids: T1w)."""
    optional_modalities: tuple[str, ...] = ()
    """Of those, what sessions of --source may lack, as for the prepare jobs."""
    scheme: str = ""
    """Label scheme of the masks of --source (see the prepare jobs); empty: the cohort's own."""
    run: int | None = None
    """bids: which run, where a session has several of a modality."""
    entities: tuple[str, ...] = ()
    """bids: further entities to choose by, such as acq-mprage."""
    mask_pattern: tuple[str, ...] = ()
    """bids: names of lesion masks; empty: those prepare_bids.py takes."""
    out: str = str(paths.home() / "verify")
    """Folder (or URI) for findings.csv, findings.parquet and verify.html; an earlier report is replaced."""
    min_slices: int | None = None
    """Fewest axial slices that show brain; None: the manifest's own rule (paper Fig. 3: 100)."""
    thumbnails: int = 60
    """Most suspects to draw, errors first (about 25 kB each in the page)."""
    cpus: int | None = None
    """Most sessions in work at once, and CPUs of the private Ray session without a cluster; None: all.
    A session takes about 0.3 GB at 1 mm."""
    dry_run: bool = False
    """Show what would be read; read no voxel, write nothing."""


def main(config: VerifyConfig) -> int:
    what = inspection_of(
        manifest=config.manifest, shards=config.shards, source=config.source, cohort=config.cohort,
        modalities=config.modalities, min_slices=config.min_slices,
        choice=Choice(
            optional=config.optional_modalities, scheme=config.scheme, run=config.run,
            entities=config.entities, masks=config.mask_pattern,
        ),
    )  # fmt: skip
    print(f"{what.name}: {len(what.targets):,} sessions to read of {what.where}", flush=True)
    if config.dry_run:
        print(f"{len(what.findings):,} findings in its tables alone; dry run: nothing was read or written")
        return 0
    files.check_writable(config.out)
    print(f"verifying on {ray_session.connect(num_cpus=config.cpus)}", flush=True)
    executor = on_ray(config.cpus)
    done = verify(what, executor)
    written = write_report(done, config.out, thumbnails=config.thumbnails, executor=executor)
    print_summary(done)
    print(f"-> {', '.join(written)}")
    return ERRORS_FOUND if done.errors else 0


if __name__ == "__main__":
    run_job(VerifyConfig, main, description=__doc__)
