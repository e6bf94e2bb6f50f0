#!/usr/bin/env python
"""Make a checkpoint of a MONAI bundle (Model Zoo, `brats_mri_segmentation`): to be evaluated and to predict.

The bundle's folder is the user's; nothing is downloaded and none of its expressions run. Channels are matched
by name. Whom its weights have seen cannot be proved (it was trained on BraTS 2018, whose patients are in
BraTS 2021 too), so evaluation refuses it without --allow-leak.

    python jobs/import_bundle.py --bundle brats_mri_segmentation --out runs/bundle --labels brats2021
    python jobs/evaluate.py --checkpoints runs/bundle --shards /data/brats-shards --fold 0 --allow-leak
"""

from __future__ import annotations

from dataclasses import dataclass

from brainfoundry.core.errors import ConfigError
from brainfoundry.core.job import run_job
from brainfoundry.models.bundle import read_bundle
from brainfoundry.training.import_bundle import import_bundle


@dataclass(frozen=True, kw_only=True)
class ImportBundleConfig:
    bundle: str = ""
    """Folder of the bundle: configs/inference.json (or .yaml), configs/metadata.json, models/model.pt."""
    out: str = ""
    """Folder of the run that it becomes; there must be none yet."""
    labels: str = "brats2021"
    """Label scheme of the masks it predicts, and of the cohort it is scored on: brats2021 (1, 2, 4),
    brats2023 or brats2024 (1, 2, 3)."""
    spacing_mm: float | None = 1.0
    """Voxel size it was trained at, mm (its metadata: 1 mm, BraTS's own). None: the scans' own, as a shard
    set prepared without --spacing-mm has it."""
    window: tuple[int, int, int] | None = None
    """Window of prediction in voxels along R-L, P-A, I-S, multiples of 32; None: the bundle's own, rounded
    up."""


def main(config: ImportBundleConfig) -> None:
    if not config.bundle or not config.out:
        raise ConfigError("--bundle and --out are needed", fix="name both; see --help")
    bundle = read_bundle(config.bundle)
    uri = import_bundle(
        bundle, config.out, scheme=config.labels, spacing_mm=config.spacing_mm, window=config.window
    )
    parameters = sum(parameter.numel() for parameter in bundle.build().parameters())
    print(
        f"{bundle.name} {bundle.version}: {bundle.network['_target_']}, {parameters:,} parameters\n"
        f"channels:   {', '.join(bundle.modalities)}\nmaps:       {', '.join(bundle.regions)}\n"
        f"trained on: {bundle.trained_on or 'not stated'}; whom it has seen cannot be proved: evaluate it "
        f"with --allow-leak\ncheckpoint: {uri}"
    )


if __name__ == "__main__":
    run_job(ImportBundleConfig, main, description=__doc__)
