#!/usr/bin/env python
"""Turn the ATLAS v2.0 stroke cohort into a shard set with the lesion masks beside the T1w scans.

Takes R001/sub-r001s001/ses-1/anat/sub-r001s001_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz and so on, with or
without the sites' folders, and the masks beside the scans. Safe to run again: it resumes.

    python jobs/prepare_atlas.py --source /data/ATLAS_2/Training --out /data/atlas-shards
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from brainfoundry.cohorts.atlas import MODALITIES, read_atlas
from brainfoundry.cohorts.intake import IntakeRules
from brainfoundry.cohorts.left_out import LeftOut
from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.core import paths
from brainfoundry.core.job import run_job
from brainfoundry.store.prepare import PrepareOptions, prepare


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(PrepareOptions):
    source: str = str(paths.home() / "demo" / "atlas")
    """Folder or URI with the sites' folders; default: make_demo.py's (--cohort atlas)."""
    out: str = str(paths.home() / "demo" / "atlas-shards")
    """Folder (or URI) for the shard set; its own, or one that an interrupted run of this job began."""
    metadata: str | None = None
    """Table with the subject's id and any of age, sex and site, in any letter case; None: only the site, from
    the folder or the id."""
    labels: Literal["required", "optional", "ignore"] = "required"
    """Lesion masks: sessions without are left out (required) or kept (optional, as for the 300 hidden test
    scans); ignore stores none."""


def main(config: PrepareConfig) -> None:
    rules = IntakeRules(modalities=MODALITIES, labels=config.labels, min_slices=config.min_slices)
    left_out = LeftOut.read(withdrawn=config.withdrawn)

    def read(uri: str) -> Manifest:
        return read_atlas(config.source, uri, rules, metadata=config.metadata, left_out=left_out)

    prepare(config, read)


if __name__ == "__main__":
    run_job(PrepareConfig, main, description=__doc__, aliases={"--float": "--float-mode"})
