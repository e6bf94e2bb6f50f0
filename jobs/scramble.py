#!/usr/bin/env python
"""Make the phase-scrambled control of a shard set: the same people, splits and intensities, no anatomy.

Pretraining on it shows how much of a gain comes from weights that are merely warmed up. Safe to run again:
shards that are done stay done.

    python jobs/scramble.py --shards runs/demo/shards --out runs/demo/shards-scrambled
    python jobs/pretrain_ukb.py --preset demo --shards runs/demo/shards-scrambled
"""

from __future__ import annotations

from dataclasses import dataclass

from brainfoundry.core.errors import ConfigError
from brainfoundry.core.job import run_job
from brainfoundry.store.scramble import scramble_set


@dataclass(frozen=True, kw_only=True)
class ScrambleConfig:
    shards: str = ""
    """Shard set to scramble, folder or URI."""
    out: str = ""
    """Folder (or URI) for the new one; its own."""
    seed: int = 0
    """Of the random phases: the same seed and scans give the same set."""
    threads: int | None = None
    """Shards in the making at once, one session of each in memory (0.3 GB at 1 mm); None: all cores."""


def main(config: ScrambleConfig) -> None:
    if not config.shards or not config.out:
        raise ConfigError("nothing to scramble", fix="--shards SHARDS --out FOLDER")
    meta = scramble_set(config.shards, config.out, seed=config.seed, threads=config.threads)
    print(
        f"{meta.rows:,} sessions of {meta.cohort} ({', '.join(meta.modalities)}) in {meta.shards:,} shards, "
        f"manifest {meta.manifest_hash[:12]} -> {config.out}"
    )


if __name__ == "__main__":
    run_job(ScrambleConfig, main, description=__doc__)
