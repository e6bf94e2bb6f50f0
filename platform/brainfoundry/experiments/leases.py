"""What trials hold of the cluster, so that one that is stopped or dies gives all of it back.

Ray (2.60) takes a placement group back when the job ends, not when the actor that made it dies, and Ray
Train's own cleaner needs a dashboard, which a private session has not. Within a study of many trials such a
leftover would take the place of a trial for good.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import defaultdict
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.util.placement_group import placement_group_table, remove_placement_group

log = logging.getLogger("brainfoundry.experiments")

LEASES = "brainfoundry-leases"
"""Name of the actor, one a Ray job."""
_REMOVED_S = 15.0


class Leases:
    """Controller and placement groups of each run, by the run's folder."""

    def __init__(self) -> None:
        self._controllers: dict[str, Any] = {}
        self._groups: dict[str, list[Any]] = defaultdict(list)

    def controlled_by(self, run: str, controller: Any) -> None:
        """The run has a new controller."""
        self._controllers[run] = controller

    def holds(self, run: str, group: Any) -> None:
        """The run's workers have taken a placement group."""
        self._groups[run].append(group)

    def release(self, run: str) -> None:
        """End whatever is left of a run; nothing, where it ended by itself."""
        controller = self._controllers.pop(run, None)
        if controller is not None:
            with contextlib.suppress(Exception):  # it has ended
                ray.kill(controller)
        groups = self._groups.pop(run, [])
        for group in groups:
            remove_placement_group(group)  # with the workers in it
        deadline = time.monotonic() + _REMOVED_S
        while time.monotonic() < deadline and any(_there(group) for group in groups):
            time.sleep(0.1)


def _there(group: Any) -> bool:
    return placement_group_table(group).get("state") not in (None, "REMOVED")


def leases() -> Any:
    """The job's actor, made if need be. Whoever makes it must keep the handle."""
    remote: Any = ray.remote(num_cpus=0)(Leases)
    return remote.options(name=LEASES, get_if_exists=True).remote()


class Lease(ControllerCallback, WorkerGroupCallback):
    """Tells `Leases` what a run takes; called by Ray Train in the run's controller."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Before the first worker group."""
        self._run = run_of(train_run_context.run_config.storage_path)
        self._leases = ray.get_actor(LEASES)
        ray.get(self._leases.controlled_by.remote(self._run, ray.get_runtime_context().current_actor))

    def after_worker_group_start(self, worker_group: Any) -> None:
        """After each start of the workers."""
        state = worker_group.get_worker_group_state()
        ray.get(self._leases.holds.remote(self._run, state.placement_group_handle.placement_group))


def run_of(storage_path: str) -> str:
    """Folder of the run whose records Ray Train keeps there."""
    return storage_path.rstrip("/").removesuffix("/ray")
