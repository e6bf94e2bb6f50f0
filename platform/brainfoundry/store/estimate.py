"""What a conversion will take, from converting a few sessions without writing them."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.store import bricks
from brainfoundry.store.convert import plan_shards
from brainfoundry.store.shard_task import ConvertSpec, convert_row


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Args:
    sessions: that would be converted.
    sampled: how many were tried.
    unusable: how many of those their voxels rule out.
    source_bytes: of all sessions' (gzipped) files.
    shard_bytes: about, in all.
    cpu_seconds: about, in all, on this machine.
    """

    sessions: int
    sampled: int
    unusable: int
    source_bytes: int
    shard_bytes: int
    cpu_seconds: float


def estimate(manifest: Manifest, spec: ConvertSpec, *, samples: int = 3) -> Estimate:
    """Convert sessions spread over the manifest in memory and scale up by their files' sizes.

    Raises:
        DataError: no session is included.
    """
    tasks = plan_shards(manifest, "", replace(spec, rows_per_shard=1))
    every = max(1, len(tasks) // samples)
    chosen = tasks[::every][:samples]
    bricks.one_thread()
    begun = time.process_time()
    encoded = [convert_row(task, task.rows[0])[0] for task in chosen]
    seconds = time.process_time() - begun
    sizes = [sum(scan.size for scan in task.rows[0].scans) for task in tasks]
    share = sum(sizes) / max(1, sum(sizes[::every][:samples]))
    stored = sum(row.batch.nbytes for row in encoded if row is not None)
    return Estimate(
        sessions=len(tasks),
        sampled=len(chosen),
        unusable=sum(row is None for row in encoded),
        source_bytes=sum(sizes),
        shard_bytes=round(stored * share),
        cpu_seconds=seconds * share,
    )
