#!/usr/bin/env python
"""Stage 3: fine-tune a pretrained encoder with a U-Net decoder to segment stroke lesions (ATLAS v2.0).

One region, the lesion, on T1w alone; validated on whole volumes beside the training.
With no options it runs the demo preset from random weights, on a demo cohort that it makes itself if need be:

    ray job submit -- python jobs/finetune_atlas.py
    ray job submit --working-dir . -- python jobs/finetune_atlas.py --preset paper \\
        --shards s3://bucket/atlas --init.checkpoint s3://bucket/runs/pretrain-atlas
    python jobs/finetune_atlas.py --dry-run
"""

from brainfoundry.core.job import run_job
from brainfoundry.store.demo import ensure_demo_atlas
from brainfoundry.training.finetune_config import FinetuneConfig
from brainfoundry.training.presets_finetune import ATLAS
from brainfoundry.training.train_job import ALIASES, train_job


def main(config: FinetuneConfig) -> None:
    train_job(config, ensure_demo_atlas)


if __name__ == "__main__":
    run_job(
        FinetuneConfig, main, description=__doc__, presets=ATLAS, default_preset="demo",
        aliases=ALIASES,
    )  # fmt: skip
