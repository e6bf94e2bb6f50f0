#!/usr/bin/env python
"""Make the demo cohort: brains from the ICBM152 template, in UK Biobank's own file layout.

Made-up participants (ids from 9,900,001, outside the real range) with T1w and FLAIR in bulk zips, a
participants table, and what a real intake has wrong with it. Run again, it only makes what is missing.

    python jobs/make_demo.py
    python jobs/make_demo.py --root /data/demo --n-healthy 40
"""

from __future__ import annotations

from dataclasses import dataclass

from brainfoundry.cohorts.demo import DemoSpec, default_root, make_demo_cohort
from brainfoundry.core.job import run_job


@dataclass(frozen=True, kw_only=True)
class Config:
    root: str = ""
    """Folder for the cohort, local or a URI. Empty: demo/ukb in $BRAINFOUNDRY_HOME, else in runs/."""
    n_healthy: int = 12
    """Participants with both scans, whole."""
    n_repeat: int = 1
    """How many of those have a repeat visit (instance 3)."""
    n_no_flair: int = 1
    """Further participants with T1w only."""
    n_truncated_grid: int = 1
    """Further participants whose scans have 90 slices in the header (intake asks for 100: paper, Fig. 3)."""
    n_few_slices: int = 1
    """Further participants with brain on 60 of the 182 slices."""
    n_cut_zip: int = 1
    """Further participants whose T1w zip is cut short."""
    n_damaged: int = 1
    """Further participants whose FLAIR is damaged inside the gzip stream."""
    seed: int = 2024
    """Of everything random: the same seed gives the same cohort."""
    workers: int = 0
    """Processes, about 1.3 GB of memory each. 0: one a core, at most 8."""


def main(config: Config) -> None:
    spec = DemoSpec(
        n_healthy=config.n_healthy,
        n_repeat=config.n_repeat,
        n_no_flair=config.n_no_flair,
        n_truncated_grid=config.n_truncated_grid,
        n_few_slices=config.n_few_slices,
        n_cut_zip=config.n_cut_zip,
        n_damaged=config.n_damaged,
        seed=config.seed,
    )
    done = make_demo_cohort(config.root or default_root(), spec, workers=config.workers or None)
    kinds = ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in done.kinds.items())
    print(f"demo cohort: {sum(done.kinds.values())} participants ({kinds}), {done.sessions} sessions")
    print(f"{done.zips} zips, {done.bytes / 1e6:.0f} MB, {done.made} made now: {done.root}")


if __name__ == "__main__":
    run_job(Config, main, description=__doc__)
