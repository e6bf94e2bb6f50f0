"""The binding to Ray Train: each start of the worker group cuts the plan anew, at the newest cursor.

Ray Train calls `configure()` in an actor of its own whenever it starts a group of workers, retries
included, and gives worker r the r-th iterator of what it returns. A dataset made before `fit()` would
start from its old cursor after a retry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.data import DataIterator
from ray.train import DataConfig

from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError
from brainfoundry.stream.pipeline import FetchOptions, ReaderFactory, Share, open_shard_set, pipeline
from brainfoundry.stream.plan import PlanSpec, check_world
from brainfoundry.stream.steps import iter_steps

__all__ = ["FetchOptions", "PlanDataConfig", "iter_steps"]

# Share of the cluster's object store that all pipelines together may fill; Ray Data's own default is
# half for one execution, and each pipeline would take that half for itself.
_STORE_SHARE = 0.5


class PlanDataConfig(DataConfig):
    """Gives each Train worker a pipeline over its part of the plan, from `start_step()` on.

    Use as `TorchTrainer(datasets={"train": functools.partial(ray.data.range, 1)}, dataset_config=...)`:
    Ray Train wants a dataset for each name, which is not read.

    Needs, besides the Train workers, `world * fetch.actors * fetch.cpus_per_actor` logical CPUs; with
    fewer, some worker's fetch actors wait for ever. `configure()` cannot tell that from actors of a
    failed attempt that are just going away, so check before `fit()`.

    Args:
        shards: URI of the shard set.
        spec: the plan.
        channels: modalities to read, as positions in the shard set's order.
        label: the masks' channel (`ShardSet.label_channel`), to read them too.
        stop_step: one past the run's last step.
        start_step: asked at each start of the worker group for the step to begin with; picklable.
        fetch: how to read.
        open_reader: opens the shard set in the fetch actors.
        plan_hash: of the plan the run was checked against; None: not checked.
    """

    def __init__(
        self,
        *,
        shards: str,
        spec: PlanSpec,
        channels: tuple[int, ...],
        label: int | None = None,
        stop_step: int,
        start_step: Callable[[], int],
        fetch: FetchOptions | None = None,
        open_reader: ReaderFactory = open_shard_set,
        plan_hash: str | None = None,
    ) -> None:
        super().__init__()
        self._shards = files.absolute(shards)
        self._spec = spec
        self._channels = tuple(channels)
        self._label = label
        self._stop_step = stop_step
        self._start_step = start_step
        self._fetch = fetch or FetchOptions()
        self._open_reader = open_reader
        self._plan_hash = plan_hash

    def configure(
        self,
        datasets: dict[str, Any],
        world_size: int,
        worker_handles: list[Any] | None,
        worker_node_ids: list[str] | None,
        **kwargs: Any,
    ) -> list[dict[str, DataIterator]]:
        """One pipeline a worker, in order of world rank.

        Raises:
            ConfigError: the run is already past its last step, or the workers cannot share a step evenly.
        """
        check_world(self._spec.groups_per_step, world_size)
        start = self._start_step()
        if start > self._stop_step:
            raise ConfigError(
                f"the newest checkpoint is at step {start}, past the run's last step {self._stop_step}",
                fix=f"set the number of steps to at least {start}, or give the run another name",
            )
        store = self._store_bytes(world_size)
        return [
            {
                name: pipeline(
                    Share(
                        shards=self._shards,
                        spec=self._spec,
                        channels=self._channels,
                        label=self._label,
                        start_step=start,
                        stop_step=self._stop_step,
                        rank=rank,
                        world=world_size,
                        plan_hash=self._plan_hash,
                    ),
                    self._fetch,
                    store_bytes=store,
                    open_reader=self._open_reader,
                )
                for name in datasets
            }
            for rank in range(world_size)
        ]

    def _store_bytes(self, world_size: int) -> int:
        if self._fetch.store_mib is not None:
            return self._fetch.store_mib << 20
        whole = float(ray.cluster_resources().get("object_store_memory", 0.0))
        return int(whole * _STORE_SHARE / world_size)
