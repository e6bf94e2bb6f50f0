#!/usr/bin/env python
"""Make the demo cohorts: brains from the ICBM152 template, in the real cohorts' own layouts.

- `ukb`: healthy participants with T1w and FLAIR in UK Biobank's bulk zips, and what a real intake has wrong
  with it. Ids from 9,900,001.
- `brats`: gliomas with four modalities and labels 1, 2, 4, in BraTS 2021's folders. Cases from 90001.
- `atlas`: chronic strokes with T1w and mask, in ATLAS v2.0's folders. Subjects sub-r901s001 and on.

All ids lie outside the real ranges. Run again, it only makes what is missing.

    python jobs/make_demo.py
    python jobs/make_demo.py --root /data/demo --n-healthy 40
    python jobs/make_demo.py --cohort all --n-tumours 20 --n-strokes 20
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from brainfoundry.cohorts import demo, demo_atlas, demo_brats
from brainfoundry.cohorts.demo import DemoSpec, make_demo_cohort
from brainfoundry.cohorts.demo_atlas import AtlasSpec, make_atlas_cohort
from brainfoundry.cohorts.demo_brats import BratsSpec, make_brats_cohort
from brainfoundry.cohorts.demo_files import CohortSummary
from brainfoundry.core import files
from brainfoundry.core.job import run_job


@dataclass(frozen=True, kw_only=True)
class Config:
    cohort: Literal["ukb", "brats", "atlas", "all"] = "ukb"
    """Which cohort to make."""
    root: str = ""
    """Folder for the cohort, local or a URI; with `--cohort all` the folder that gets one folder a cohort.
    Empty: demo/ukb, demo/brats, demo/atlas in $BRAINFOUNDRY_HOME, else in runs/."""
    n_healthy: int = 12
    """ukb: participants with both scans, whole."""
    n_repeat: int = 1
    """ukb: how many of those have a repeat visit (instance 3)."""
    n_no_flair: int = 1
    """ukb: further participants with T1w only."""
    n_truncated_grid: int = 1
    """ukb: further participants whose scans have 90 slices in the header (intake asks for 100: paper, Fig.
    3)."""
    n_few_slices: int = 1
    """ukb: further participants with brain on 60 of the 182 slices."""
    n_cut_zip: int = 1
    """ukb: further participants whose T1w zip is cut short."""
    n_damaged: int = 1
    """ukb: further participants whose FLAIR is damaged inside the gzip stream."""
    n_tumours: int = 12
    """brats: whole cases; every eighth, from the fourth on, has no enhancing part."""
    n_no_t1ce: int = 1
    """brats: further cases without the T1ce."""
    n_strokes: int = 12
    """atlas: subjects with scan and mask."""
    n_no_mask: int = 1
    """atlas: further subjects without a mask."""
    seed: int = 2024
    """Of everything random: the same seed gives the same cohort."""
    workers: int = 0
    """Processes, about 1.5 GB of memory each. 0: one a core, at most 8."""


def main(config: Config) -> None:
    # All specs before any work: an impossible number is told at once.
    ukb = DemoSpec(
        n_healthy=config.n_healthy,
        n_repeat=config.n_repeat,
        n_no_flair=config.n_no_flair,
        n_truncated_grid=config.n_truncated_grid,
        n_few_slices=config.n_few_slices,
        n_cut_zip=config.n_cut_zip,
        n_damaged=config.n_damaged,
        seed=config.seed,
    )
    brats = BratsSpec(n_cases=config.n_tumours, n_no_t1ce=config.n_no_t1ce, seed=config.seed)
    atlas = AtlasSpec(n_subjects=config.n_strokes, n_no_mask=config.n_no_mask, seed=config.seed)
    workers = config.workers or None
    if config.cohort in ("ukb", "all"):
        done = make_demo_cohort(folder(config, "ukb", demo.default_root()), ukb, workers=workers)
        kinds = ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in done.kinds.items())
        print(f"demo cohort: {sum(done.kinds.values())} participants ({kinds}), {done.sessions} sessions")
        print(f"{done.zips} zips, {done.bytes / 1e6:.0f} MB, {done.made} made now: {done.root}")
    if config.cohort in ("brats", "all"):
        root = folder(config, "brats", demo_brats.default_root())
        tell("BraTS-like", "cases", make_brats_cohort(root, brats, workers=workers))
    if config.cohort in ("atlas", "all"):
        root = folder(config, "atlas", demo_atlas.default_root())
        tell("ATLAS-like", "subjects", make_atlas_cohort(root, atlas, workers=workers))


def folder(config: Config, name: str, default: str) -> str:
    """Where a cohort goes."""
    if not config.root:
        return default
    return files.join(config.root, name) if config.cohort == "all" else config.root


def tell(cohort: str, noun: str, done: CohortSummary) -> None:
    """Say what there is."""
    kinds = ", ".join(f"{n} {kind}" for kind, n in done.kinds.items())
    print(f"{cohort} demo cohort: {sum(done.kinds.values())} {noun} ({kinds})")
    print(f"{done.files} files, {done.bytes / 1e6:.0f} MB, {done.made} made now: {done.root}")


if __name__ == "__main__":
    run_job(Config, main, description=__doc__)
