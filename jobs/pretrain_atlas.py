#!/usr/bin/env python
"""Stage 2: go on pretraining on the ATLAS v2.0 scans themselves, without their masks, from stage 1.

The encoder's weights are taken over; of the first convolution, those of the T1w alone (Table 3: one channel).
To keep stage 1's second channel and show it the T1w too: --modalities T1w,FLAIR --data.feed FLAIR=T1w.
With no options it runs the demo preset from random weights, on a demo cohort that it makes itself if need be:

    ray job submit -- python jobs/pretrain_atlas.py
    ray job submit --working-dir . -- python jobs/pretrain_atlas.py --preset paper \\
        --shards s3://bucket/atlas --checkpoint s3://bucket/runs/pretrain-ukb
    python jobs/pretrain_atlas.py --dry-run
"""

from brainfoundry.core.job import run_job
from brainfoundry.store.demo import ensure_demo_atlas
from brainfoundry.training.config import PretrainConfig
from brainfoundry.training.presets_stage2 import ATLAS
from brainfoundry.training.train_job import ALIASES, train_job


def main(config: PretrainConfig) -> None:
    train_job(config, ensure_demo_atlas)


if __name__ == "__main__":
    run_job(PretrainConfig, main, description=__doc__, presets=ATLAS, default_preset="demo", aliases=ALIASES)
