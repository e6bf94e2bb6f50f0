"""What a worker runs on, and what it uses."""

import sys
import types
from pathlib import Path

import pytest
import torch

from brainfoundry.core import files
from brainfoundry.training.meter import Meter
from brainfoundry.training.receipt_log import rank_file
from brainfoundry.training.receipt_read import durations
from brainfoundry.training.resources import EnergyMeter, device_name, memory_gb, peak_flops, set_threads
from brainfoundry.training.usage import Usage

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)


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


class Card(types.ModuleType):
    """NVML with a counter of energy in millijoules."""

    millijoules = 0

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        assert handle == "GPU-7"
        return self.millijoules


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    found = Card("pynvml")
    monkeypatch.setitem(sys.modules, "pynvml", found)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: types.SimpleNamespace(uuid="7"))
    return found


def test_energy_is_what_the_cards_counter_gained(card: Card) -> None:
    card.millijoules = 5_000_000_000
    meter = EnergyMeter(GPU)
    assert meter.kwh() == 0.0
    card.millijoules += 3_600_000_000
    assert meter.kwh() == pytest.approx(1.0)


def test_energy_that_nothing_counts(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    assert EnergyMeter(CPU).kwh() is None
    meter = EnergyMeter(GPU)
    monkeypatch.setattr(Card, "nvmlDeviceGetTotalEnergyConsumption", None)  # not supported, or gone
    assert meter.kwh() is None and EnergyMeter(GPU).kwh() is None


def attempt(run: Path, name: str, world: int, *times: float) -> None:
    lines = [f'{{"kind": "steps", "time": {t}, "world": {world}}}\n' for t in times]
    files.write_bytes(rank_file(str(run), name, 0), ("".join(lines) + '{"kind": "st').encode())


def test_the_time_of_all_attempts_counts(tmp_path: Path) -> None:
    first, second, damaged, this = (f"attempt-{1_700_000_000_000 + i}" for i in range(4))
    attempt(tmp_path, first, 2, 100.0, 130.0, 160.0)
    attempt(tmp_path, second, 4, 200.0, 3_800.0)
    attempt(tmp_path, this, 1, 9_000.0)
    files.write_bytes(rank_file(str(tmp_path), damaged, 0), b'{"kind": "start"}\n')
    assert durations(str(tmp_path)) == [(first, 2, 60.0), (second, 4, 3_600.0), (this, 1, 0.0)]
    usage = Usage(CPU, rank=0, world=1)
    found = usage.totals(str(tmp_path), this)
    assert found["attempts"] == 3 and 3_660 <= found["seconds"] < 3_720
    assert found["device_hours"] == pytest.approx((2 * 60 + 4 * 3_600 + found["seconds"] - 3_660) / 3600)
    assert found["energy_kwh"] is None and found["device"] == device_name(CPU) != ""
    assert Usage(CPU, rank=1, world=2).totals(str(tmp_path), this)["attempts"] == 1
    burnt = sum(i * i for i in range(300_000))
    assert burnt and usage.totals(str(tmp_path), this)["cpu_seconds"] > found["cpu_seconds"] >= 0
