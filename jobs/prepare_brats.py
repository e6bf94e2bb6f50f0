#!/usr/bin/env python
"""Turn BraTS case folders into a shard set with the tumour labels beside the scans.

Takes the names of 2021 (BraTS2021_00000_t1ce.nii.gz, labels 1, 2, 4) and of 2023 on
(BraTS-GLI-00000-000-t1c.nii.gz, labels 1, 2, 3), in any nesting, one of the two in a folder. Safe to run
again: it resumes.

    python jobs/prepare_brats.py --source /data/brats21/TrainingData --out /data/brats-shards
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from brainfoundry.cohorts.brats import MODALITIES, read_brats
from brainfoundry.cohorts.intake import IntakeRules
from brainfoundry.cohorts.left_out import LeftOut
from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.core import paths
from brainfoundry.core.job import run_job
from brainfoundry.store.prepare import PrepareOptions, prepare


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(PrepareOptions):
    source: str = str(paths.home() / "demo" / "brats")
    """Folder or URI with case folders, in any nesting; default: make_demo.py's (--cohort brats)."""
    out: str = str(paths.home() / "demo" / "brats-shards")
    """Folder (or URI) for the shard set; its own, or one that an interrupted run of this job began."""
    modalities: tuple[str, ...] = MODALITIES
    """Modalities in channel order, of FLAIR, T1ce, T1w, T2w; a case must have those not optional."""
    optional_modalities: tuple[str, ...] = ()
    """Of the modalities, those that cases may lack; their channel is then empty and marked absent."""
    labels: Literal["required", "optional", "ignore"] = "required"
    """Segmentations: cases without are left out (required) or kept (optional); ignore stores none."""
    scheme: str = ""
    """Label scheme: brats2021 (1, 2, 4), brats2023 (1, 2, 3), brats2024 (1 to 4); empty: as the names say."""


def main(config: PrepareConfig) -> None:
    rules = IntakeRules(
        modalities=config.modalities, optional=config.optional_modalities, labels=config.labels,
        min_slices=config.min_slices,
    )  # fmt: skip
    left_out = LeftOut.read(withdrawn=config.withdrawn)

    def read(uri: str) -> Manifest:
        return read_brats(config.source, uri, rules, scheme=config.scheme, left_out=left_out)

    prepare(config, read)


if __name__ == "__main__":
    run_job(PrepareConfig, main, description=__doc__, aliases={"--float": "--float-mode"})
