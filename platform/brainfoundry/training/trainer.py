"""Ray Train's trainer, without a watchman that strikes the wrong one in a session without a dashboard."""

from __future__ import annotations

from typing import Any

from ray._private.worker import get_dashboard_url
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback


class Trainer(TorchTrainer):
    """`TorchTrainer` that leaves out Ray Train's `PlacementGroupCleaner` where there is no dashboard.

    That actor asks the dashboard every second whether the run's controller lives, and takes the workers'
    resources away if not. A private session has no dashboard, so it complains every second; once, with Ray
    2.60 and another cluster on the host, it called a live controller dead and ended a healthy run (probably
    it had asked the other's dashboard). A private session ends with its driver: nothing is left to clean.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        if get_dashboard_url():
            return callbacks
        return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]
