#!/usr/bin/env python
"""Turn a folder of UK Biobank bulk files into a shard set for pretraining.

Reads headers only to decide who is in (intake), converts those straight from the zips on Ray, and prints and
saves how many sessions each rule left out. Safe to run again: it resumes, and leaves a finished set as it is.

    python jobs/prepare_ukb.py --source /data/ukb --out /data/ukb-shards
    ray job submit --working-dir . -- python jobs/prepare_ukb.py --source /data/ukb --out s3://bucket/ukb-shards
"""

from __future__ import annotations

from dataclasses import dataclass

from brainfoundry.cohorts.demo import default_root
from brainfoundry.cohorts.left_out import LeftOut
from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.cohorts.ukb import UKBRules, read_ukb
from brainfoundry.core.job import run_job
from brainfoundry.store.prepare import PrepareOptions, prepare


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(PrepareOptions):
    source: str = default_root()
    """Folder or URI of bulk files such as 9900001_20252_2_0.zip, zipped or not; default: the demo cohort."""
    modalities: tuple[str, ...] = ("T1w", "FLAIR")
    """Modalities in channel order: T1w (field 20252), FLAIR (field 20253)."""
    optional_modalities: tuple[str, ...] = ()
    """Of the modalities, those that sessions may lack; their channel is then empty and marked absent."""
    instances: tuple[int, ...] = (2,)
    """Imaging visits: 2 the first, 3 the first repeat. Visits of a subject are always in the same split."""
    participants: str | None = None
    """Table with age, sex and site (tab- or comma-separated; our column names or UK Biobank's)."""
    exclude_tumours: str | None = None
    """List of participants with a brain tumour on record, to leave out: ids as for --withdrawn."""


def main(config: PrepareConfig) -> None:
    rules = UKBRules(
        modalities=config.modalities, optional=config.optional_modalities, instances=config.instances,
        min_slices=config.min_slices,
    )  # fmt: skip
    left_out = LeftOut.read(withdrawn=config.withdrawn, brain_tumours=config.exclude_tumours)

    def read(uri: str) -> Manifest:
        return read_ukb(config.source, uri, rules, participants=config.participants, left_out=left_out)

    prepare(config, read)


if __name__ == "__main__":
    run_job(PrepareConfig, main, description=__doc__, aliases={"--float": "--float-mode"})
