#!/usr/bin/env python
"""Stage 2: go on pretraining on the BraTS scans themselves, without their masks, from a stage 1 checkpoint.

The encoder's weights are taken over, channels by the modality's name; new ones (T1ce, T2w) are drawn. A model
that is to be tested on a fold must not have seen it here either: give both runs the same --fold.
With no options it runs the demo preset from random weights, on a demo cohort that it makes itself if need be:

    ray job submit -- python jobs/pretrain_brats.py
    ray job submit --working-dir . -- python jobs/pretrain_brats.py --preset paper \\
        --shards s3://bucket/brats --fold 0 --checkpoint s3://bucket/runs/pretrain-ukb
    python jobs/pretrain_brats.py --dry-run
"""

from brainfoundry.core.job import run_job
from brainfoundry.store.demo import ensure_demo_brats
from brainfoundry.training.config import PretrainConfig
from brainfoundry.training.presets_stage2 import BRATS
from brainfoundry.training.train_job import ALIASES, train_job


def main(config: PretrainConfig) -> None:
    train_job(config, ensure_demo_brats)


if __name__ == "__main__":
    run_job(PretrainConfig, main, description=__doc__, presets=BRATS, default_preset="demo", aliases=ALIASES)
