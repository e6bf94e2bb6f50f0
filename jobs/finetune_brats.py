#!/usr/bin/env python
"""Stage 3: fine-tune a pretrained encoder with a U-Net decoder to segment brain tumours (BraTS).

Three regions (tumour core, whole tumour, enhancing tumour), validated on whole volumes beside the training.
With no options it runs the demo preset from random weights, on a demo cohort that it makes itself if need be:

    ray job submit -- python jobs/finetune_brats.py
    ray job submit --working-dir . -- python jobs/finetune_brats.py --preset paper \\
        --shards s3://bucket/brats --fold 0 --init.checkpoint s3://bucket/runs/pretrain-brats-fold0
    python jobs/finetune_brats.py --dry-run
"""

from brainfoundry.core.job import run_job
from brainfoundry.store.demo import ensure_demo_brats
from brainfoundry.training.finetune_config import FinetuneConfig
from brainfoundry.training.presets_finetune import BRATS
from brainfoundry.training.train_job import ALIASES, train_job


def main(config: FinetuneConfig) -> None:
    train_job(config, ensure_demo_brats)


if __name__ == "__main__":
    run_job(
        FinetuneConfig, main, description=__doc__, presets=BRATS, default_preset="demo",
        aliases=ALIASES,
    )  # fmt: skip
