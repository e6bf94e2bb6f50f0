#!/usr/bin/env python
"""Stage 1: self-supervised pretraining of the SwinUNETR encoder on UK Biobank T1w and T2-FLAIR.

Three pretext tasks (masked-volume inpainting, 3D rotation, contrastive coding) over Ray Data and Ray Train.
With no options it runs the demo preset, on a demo cohort that it makes itself if need be:

    ray job submit jobs/pretrain_ukb.py
    ray job submit --working-dir . -- python jobs/pretrain_ukb.py --preset paper --shards s3://bucket/ukb
    python jobs/pretrain_ukb.py --dry-run
"""

from brainfoundry.core import paths
from brainfoundry.core.errors import ConfigError
from brainfoundry.core.job import run_job
from brainfoundry.core.ray_session import connect
from brainfoundry.store.demo import ensure_demo_shards
from brainfoundry.store.reader import ShardSet
from brainfoundry.training import report
from brainfoundry.training.config import PretrainConfig
from brainfoundry.training.launch import pretrain, resolve_task, storage_of
from brainfoundry.training.presets import PRESETS
from brainfoundry.training.runs import find_place, identity_hash


def main(config: PretrainConfig) -> None:
    config.check()

    # Data: a shard set that prepare_ukb.py made; the demo preset makes its own.
    shards_uri = config.data.shards
    if shards_uri is None:
        if config.preset != "demo":
            raise ConfigError(
                f"preset {config.preset} needs a shard set",
                fix="make one with jobs/prepare_ukb.py and name it with --data.shards",
            )
        shards_uri = ensure_demo_shards(paths.home() / "demo", make=not config.dry_run)
    shards = ShardSet.open(shards_uri)

    # Run: same name and storage go on where the newest checkpoint left off, also after a withdrawal.
    # It is held against its test sets here (--data.guard), before anything starts.
    place = find_place(config, storage_of(config), identity_hash(shards.meta))
    task = resolve_task(config, shards, place)
    report.announce(task, shards, place)
    if config.dry_run:
        print("dry run: nothing was started")
        return
    if place.state == "finished":
        report.finished_before(task)
        return

    print(f"joined {connect()}", flush=True)
    summary = pretrain(task)
    report.summarise(task, summary)


ALIASES = {
    "--shards": "--data.shards",
    "--modalities": "--data.modalities",
    "--size": "--model.size",
    "--steps": "--optim.steps",
    "--workers": "--cluster.workers",
}

if __name__ == "__main__":
    run_job(
        PretrainConfig, main, description=__doc__, presets=PRESETS, default_preset="demo", aliases=ALIASES
    )
