#!/usr/bin/env python
"""Turn any BIDS dataset into a shard set, with lesion masks from its derivatives beside the scans.

Takes sub-*/[ses-*/]anat: T1w, T2w, FLAIR, and T1ce, which is a T1w with ce-gadolinium in its name. Age, sex
and site come from participants.tsv, where it has them. Safe to run again: it resumes.

    python jobs/prepare_bids.py --source /data/ds004884 --modalities T1w FLAIR --out /data/shards
    python jobs/prepare_bids.py --source /data/ms --modalities T1w --mask-pattern "*desc-MS*" --run 1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from brainfoundry.cohorts.bids import MASK_PATTERNS, BidsChoice, entities_of, read_bids
from brainfoundry.cohorts.intake import IntakeRules
from brainfoundry.cohorts.left_out import LeftOut
from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.core import paths
from brainfoundry.core.errors import ConfigError
from brainfoundry.core.job import run_job
from brainfoundry.store.prepare import PrepareOptions, prepare


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(PrepareOptions):
    source: str = ""
    """The dataset, a folder or URI with sub-01, sub-02 and so on: raw, or a derivative of its own."""
    out: str = str(paths.home() / "bids" / "shards")
    """Folder (or URI) for the shard set; its own, or one that an interrupted run of this job began."""
    modalities: tuple[str, ...] = ("T1w",)
    """Modalities in channel order, of T1w, T1ce, T2w, FLAIR; every session must have those not optional."""
    optional_modalities: tuple[str, ...] = ()
    """Of the modalities, those that sessions may lack; their channel is then empty and marked absent."""
    labels: Literal["required", "optional", "ignore"] = "optional"
    """Lesion masks: sessions without are left out (required) or kept (optional); ignore stores none."""
    mask_pattern: tuple[str, ...] = MASK_PATTERNS
    """Names of lesion masks (files that end in mask, dseg or roi): * is anything, letter case is nothing."""
    scheme: str = "binary"
    """Label scheme of the masks: binary (1), brats2021 (1, 2, 4), brats2023 (1, 2, 3), brats2024 (1 to 4)."""
    run: int | None = None
    """Which run, where a session has several of a modality; None: such a session is left out (duplicate)."""
    entities: tuple[str, ...] = ()
    """Further entities to choose by, such as acq-mprage or space-MNI152NLin6Asym."""
    space: str = ""
    """Template space of the scans; empty: the one their names give, else the scanner's."""
    skull_stripped: bool = False
    """Whether the scans are skull-stripped."""
    participants: str | None = None
    """Table with age, sex and site; None: the dataset's participants.tsv."""
    exclude_tumours: str | None = None
    """List of participants with a brain tumour on record, to leave out: ids as for --withdrawn."""


def main(config: PrepareConfig) -> None:
    if not config.source:
        raise ConfigError("no dataset was named", fix="give its folder with --source")
    rules = IntakeRules(
        modalities=config.modalities, optional=config.optional_modalities, labels=config.labels,
        min_slices=config.min_slices,
    )  # fmt: skip
    choice = BidsChoice(
        masks=config.mask_pattern, entities=entities_of(config.entities, config.run), scheme=config.scheme,
        space=config.space, skull_stripped=config.skull_stripped,
    )  # fmt: skip
    left_out = LeftOut.read(withdrawn=config.withdrawn, brain_tumours=config.exclude_tumours)

    def read(uri: str) -> Manifest:
        people = config.participants
        return read_bids(config.source, uri, rules, choice, participants=people, left_out=left_out)

    prepare(config, read)


if __name__ == "__main__":
    run_job(PrepareConfig, main, description=__doc__, aliases={"--float": "--float-mode"})
