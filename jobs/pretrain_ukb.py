#!/usr/bin/env python
"""Stage 1: self-supervised pretraining of the SwinUNETR encoder on UK Biobank T1w and T2-FLAIR.

Three pretext tasks (masked-volume inpainting, 3D rotation, contrastive coding) over Ray Data and Ray Train.
With no options it runs the demo preset, on a demo cohort that it makes itself if need be:

    ray job submit jobs/pretrain_ukb.py
    ray job submit --working-dir . -- python jobs/pretrain_ukb.py --preset paper --shards s3://bucket/ukb
    python jobs/pretrain_ukb.py --dry-run
"""

from brainfoundry.core.job import run_job
from brainfoundry.store.demo import ensure_demo_shards
from brainfoundry.training.config import PretrainConfig
from brainfoundry.training.presets import PRESETS
from brainfoundry.training.train_job import ALIASES, train_job


def main(config: PretrainConfig) -> None:
    train_job(config, ensure_demo_shards)


if __name__ == "__main__":
    run_job(
        PretrainConfig, main, description=__doc__, presets=PRESETS, default_preset="demo", aliases=ALIASES
    )
