"""How many trainings a cluster holds whole, so that none waits for what another will not give back.

A training takes workers and, outside their placement group, the processes that read for them. Two trainings
that each hold a part of what they need would wait for good; so no more are started than fit as a whole, a
worker beside its readers on one node. The trial that drives a training takes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import ray

from brainfoundry.core.errors import ClusterError
from brainfoundry.training.config import ClusterConfig, TrainConfig
from brainfoundry.training.launch import check_cluster

Resources = Mapping[str, float]
_EPSILON = 1e-9


@dataclass(frozen=True)
class Footprint:
    """What one training takes.

    Args:
        cpus: of a worker, with the processes that read for it.
    """

    workers: int
    cpus: float
    gpus: int


def footprint(cluster: ClusterConfig, nodes: Sequence[Resources]) -> Footprint:
    """What a training with these options takes on this cluster."""
    gpus = any(node.get("GPU", 0.0) >= 1 for node in nodes)
    return Footprint(
        workers=cluster.workers,
        cpus=cluster.cpus_per_worker + cluster.fetch_cpus * cluster.fetchers,
        gpus=int(cluster.gpu == "yes" or (cluster.gpu == "auto" and gpus)),
    )


def cores(cluster: ClusterConfig) -> int:
    """Cores that a training with these options takes, and so may take when it is judged."""
    return math.ceil(cluster.workers * footprint(cluster, ()).cpus - _EPSILON)


def fits(need: Footprint, nodes: Sequence[Resources]) -> int:
    """How many such trainings the nodes hold whole at the same time."""
    workers = 0
    for node in nodes:
        room = math.floor(node.get("CPU", 0.0) / need.cpus + _EPSILON) if need.cpus else need.workers
        workers += min(room, int(node.get("GPU", 0.0))) if need.gpus else room
    return workers // need.workers


def at_once(configs: Iterable[TrainConfig]) -> int:
    """How many of these trainings the connected cluster may run at the same time, whichever they are.

    Raises:
        ClusterError: one of them does not fit at all; says what it needs.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    counts = []
    for config in {config.cluster: config for config in configs}.values():
        try:
            check_cluster(config)
        except ClusterError as error:
            raise ClusterError(
                f"the cluster is too small for one trial ({config.name}): {error.problem}", fix=error.fix
            ) from None
        # Split over nodes it may still fit where no node holds a worker beside its readers.
        counts.append(max(1, fits(footprint(config.cluster, nodes), nodes)))
    return min(counts, default=1)
