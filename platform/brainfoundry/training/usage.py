"""What a run has cost: time, devices, CPU and energy, over all its workers."""

from __future__ import annotations

import time
from typing import Any

import psutil
import torch
import torch.distributed as dist

from brainfoundry.training.receipt_read import durations
from brainfoundry.training.resources import EnergyMeter, device_name


class Usage:
    """What one worker has used since this was made. Every worker makes one, and calls `totals` at the end.

    Args:
        device: the worker's.
        rank, world: of this attempt; worker 0 alone looks up the attempts before.
    """

    def __init__(self, device: torch.device, *, rank: int, world: int) -> None:
        self.device, self.rank, self.world = device, rank, world
        self._began = time.perf_counter()
        self._cpu = _cpu_seconds()
        self._energy = EnergyMeter(device)

    def totals(self, run_dir: str, attempt: str) -> dict[str, Any]:
        """Figures for the run's summary.

        `seconds` and `device_hours` (workers x wall) are of all attempts, of those before by their receipts;
        `cpu_seconds` (of the workers' own processes) and `energy_kwh` (of their GPUs; None where nothing
        measures it) of this one, and of all its workers.

        Args:
            attempt: this one.
        """
        used = [(self.world, time.perf_counter() - self._began)]
        if self.rank == 0:
            used += [(world, seconds) for name, world, seconds in durations(run_dir) if name != attempt]
        energy = self._energy.kwh()
        sums = torch.tensor(
            [_cpu_seconds() - self._cpu, float("nan") if energy is None else energy],
            dtype=torch.float64, device=self.device,
        )  # fmt: skip
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        cpu, kwh = sums.tolist()
        return {
            "attempts": len(used),
            "seconds": sum(seconds for _, seconds in used),
            "device_hours": sum(world * seconds for world, seconds in used) / 3600,
            "cpu_seconds": cpu,
            "energy_kwh": None if energy is None else kwh,
            "device": device_name(self.device),
        }


def _cpu_seconds() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)
