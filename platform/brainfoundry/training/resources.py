"""What a worker runs on and how much of it is used: threads, memory, peak arithmetic."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import Any

import psutil
import torch

# Dense peak in FLOP/s with tensor cores, from the vendors' data sheets: bf16/fp16, and tf32 for fp32 runs.
_PEAKS = {
    "A100": (312e12, 156e12),
    "H100": (989e12, 494e12),
    "H200": (989e12, 494e12),
    "L40": (181e12, 90e12),
    "V100": (125e12, 15.7e12),
}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s of the GPU in this precision, None on CPUs and GPUs not listed."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for key, (half, single) in _PEAKS.items():
        if key in name:
            return single if precision == "fp32" else half
    return None


def memory_gb(device: torch.device) -> dict[str, float]:
    """Resident memory of this process, and peak memory on its GPU, in GB (10^9 bytes)."""
    values = {"system/worker_memory_gb": psutil.Process().memory_info().rss / 1e9}
    if device.type == "cuda":
        values["system/gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        values |= _nvml(device)
    return values


def device_name(device: torch.device) -> str:
    """What the device is called: the GPU's name, or the CPU's model."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class EnergyMeter:
    """Energy that a process's GPU has used since the meter was made, by the card's own counter (NVML).

    Only the GPU: not its host, nor what cools them. Another process on the same GPU is counted too.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = self._joules()

    def kwh(self) -> float | None:
        """Kilowatt-hours so far; None where nothing counts them (a CPU, an old GPU, no driver library)."""
        now = self._joules()
        return None if self._start is None or now is None else (now - self._start) / 3.6e6

    def _joules(self) -> float | None:
        if self._device.type != "cuda":
            return None
        try:
            import pynvml

            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(_nvml_handle(self._device))) / 1000
        except Exception:  # as in `_nvml`
            return None


def _nvml_handle(device: torch.device) -> Any:
    import pynvml

    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByUUID("GPU-" + str(torch.cuda.get_device_properties(device).uuid))


def _nvml(device: torch.device) -> dict[str, float]:
    try:
        import pynvml

        handle = _nvml_handle(device)
        return {
            "system/gpu_utilisation": float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100,
            "system/gpu_power_w": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        }
    except Exception:  # a missing driver library must not stop a training
        return {}


def set_threads(threads: int, workers_on_node: int) -> int:
    """Fix torch's threads in this process; returns the number. 0 means a fair share of the node's cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = threads or max(1, cores // max(1, workers_on_node))
    torch.set_num_threads(count)
    return count
