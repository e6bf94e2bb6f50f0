"""What a worker runs on."""

import pytest
import torch

from brainfoundry.training.meter import Meter
from brainfoundry.training.resources import memory_gb, peak_flops, set_threads

CPU = torch.device("cpu")


def test_threads_are_shared_out_or_fixed() -> None:
    before = torch.get_num_threads()
    try:
        assert set_threads(1, 4) == torch.get_num_threads() == 1
        assert set_threads(0, 10_000) == 1
    finally:
        torch.set_num_threads(before)


def test_figures_of_a_cpu() -> None:
    assert peak_flops(CPU, "bf16") is None
    assert 0.01 < memory_gb(CPU)["system/worker_memory_gb"] < 100


def test_the_meter_tells_waiting_from_working(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    meter = Meter(crops_per_step=8, workers=2, gpus=2, flops_per_step=1e12, peak=1e13)
    meter.reset()
    for _ in range(4):
        with meter.waiting():
            now[0] += 0.5
        now[0] += 1.5
        meter.step()
    figures = meter.read()
    assert figures["speed/step_s"] == 2.0
    assert figures["speed/crops_per_s"] == 4.0
    assert figures["speed/crops_per_s_per_gpu"] == 2.0
    assert figures["speed/data_wait_share"] == 0.25
    assert figures["speed/mfu"] == pytest.approx(0.05)
    meter.reset()
    assert meter.read()["speed/crops_per_s"] == 0
