"""The run's numbers as Ray metrics, so that the dashboard can chart them beside the cluster's own."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any

log = logging.getLogger("brainfoundry.tracking")


def metric_name(key: str) -> str:
    """Name of a key's gauge: `brainfoundry_` and the key in Prometheus's characters."""
    return "brainfoundry_" + re.sub(r"[^a-zA-Z0-9_]", "_", key)


class RayMetrics:
    """Gauges `brainfoundry_<key>` with the tags run, size, stage and rank; does nothing outside Ray."""

    def __init__(self, *, run: str, size: str, stage: str, rank: int) -> None:
        self._tags = {"run": run, "size": size, "stage": stage, "rank": str(rank)}
        self._gauges: dict[str, Any] = {}
        self._broken = False

    def set(self, values: Mapping[str, float]) -> None:
        """Show the newest values. Never raises."""
        # A process that never imported Ray is not in Ray: no need to import it here.
        ray = sys.modules.get("ray")
        if self._broken or ray is None:
            return
        try:
            if not ray.is_initialized():
                return
            from ray.util.metrics import Gauge

            for key, value in values.items():
                name = metric_name(key)
                if name not in self._gauges:
                    gauge = Gauge(
                        name, description=f"BrainFoundry training: {key}", tag_keys=tuple(self._tags)
                    )
                    gauge.set_default_tags(self._tags)
                    self._gauges[name] = gauge
                self._gauges[name].set(float(value))
        except Exception as error:
            self._broken = True
            log.warning("no Ray metrics from here on: %s", error)
