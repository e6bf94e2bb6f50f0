"""Windows: where they lie, what they sum to, and MONAI's inferer as the measure."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from torch import nn

from brainfoundry.core.errors import ConfigError
from brainfoundry.inference import WindowSpec, sliding_window, window_starts

SIDES = (32, 32, 32)


def network() -> nn.Module:
    """Two channels to three maps; padding makes each voxel depend on its place in the window."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(2, 4, 5, padding=2), nn.Tanh(), nn.Conv3d(4, 3, 3, padding=1)).eval()


@pytest.mark.parametrize("weights", ["gaussian", "constant"])
@pytest.mark.parametrize(
    ("shape", "window", "overlap", "batch"),
    [
        ((32, 32, 32), SIDES, 0.5, 1),  # exactly one window
        ((48, 64, 33), SIDES, 0.5, 1),  # even, even, a window that hangs over by one
        ((41, 50, 37), SIDES, 0.7, 4),  # uneven, and a last batch that is not full
        ((40, 35, 65), SIDES, 0.0, 3),
        (
            (20, 70, 31),
            SIDES,
            0.25,
            2,
        ),  # smaller than the window along two axes, by an odd and an even number
        ((9, 11, 5), SIDES, 0.5, 2),
        ((40, 70, 50), (32, 64, 32), 0.6, 2),
    ],
)
def test_equals_monai(
    shape: tuple[int, ...], window: tuple[int, int, int], overlap: float, batch: int, weights: str
) -> None:
    x = torch.randn(1, 2, *shape, generator=torch.Generator().manual_seed(1))
    spec = WindowSpec(window=window, overlap=overlap, weights=weights, batch=batch, mode="exact")  # type: ignore[arg-type]
    net = network()
    with torch.inference_mode():
        ours = sliding_window(net, x, spec)
        monai = sliding_window_inference(x, window, batch, net, overlap=overlap, mode=weights)
    assert ours.shape == (1, 3, *shape) and ours.dtype == torch.float32
    torch.testing.assert_close(ours, monai, rtol=0, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 80)] * 3),
    overlap=st.floats(0, 0.8),
    weights=st.sampled_from(["gaussian", "constant"]),
    batch=st.integers(1, 5),
)
def test_a_network_that_changes_nothing(
    shape: tuple[int, int, int], overlap: float, weights: str, batch: int
) -> None:
    """Every voxel is covered, and weights sum to one."""
    spec = WindowSpec(window=SIDES, overlap=overlap, weights=weights, batch=batch)  # type: ignore[arg-type]
    x = torch.randn(1, 1, *shape)
    calls: list[int] = []

    def same(x_NCDHW: torch.Tensor) -> torch.Tensor:
        assert x_NCDHW.shape[1:] == (1, *SIDES)
        calls.append(len(x_NCDHW))
        return x_NCDHW

    before = x.clone()
    torch.testing.assert_close(sliding_window(same, x, spec), x, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before)
    assert sum(calls) == len(window_starts(shape, spec)) and all(n == batch for n in calls[:-1])


def test_starts() -> None:
    spec = WindowSpec(window=(32, 32, 64))
    assert window_starts((32, 50, 60), spec) == [(0, 0, 0), (0, 16, 0), (0, 18, 0)]
    # 240x240x155 in windows of 128 at half overlap (BraTS): 3 x 3 x 2
    assert len(window_starts((240, 240, 155), WindowSpec(window=(128, 128, 128)))) == 18


def test_autocast_computes_in_bfloat16_and_sums_in_float32() -> None:
    x = torch.randn(1, 2, 40, 40, 40)
    spec = WindowSpec(window=SIDES)
    net = network()
    seen: list[torch.dtype] = []
    net.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    with torch.inference_mode():
        full = sliding_window(net, x, spec)
        half = sliding_window(net, x, spec, autocast=torch.bfloat16)
    assert set(seen) == {torch.float32, torch.bfloat16} and half.dtype == torch.float32
    assert 0 < (full - half).abs().max() < 0.05


def test_gpu_memory_that_does_not_suffice() -> None:
    def greedy(_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    spec = WindowSpec(window=(64, 64, 32), batch=4)
    with pytest.raises(ConfigError) as caught:
        sliding_window(greedy, torch.zeros(1, 1, 70, 40, 40), spec)
    line = caught.value.line()
    assert "4 windows of 64x64x32" in line and "70x40x40" in line
    assert "--batch (now 4)" in line and "--window" in line and "--overlap" in line


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"window": (96, 96, 100)}, "multiple of 32"),
        ({"window": (96, 96)}, "not three whole numbers"),
        ({"overlap": 1.0}, "overlap is 1.0"),
        ({"overlap": -0.1}, "overlap is -0.1"),
        ({"overlap": float("nan")}, "overlap is nan"),
        ({"batch": 0}, "batch is 0"),
        ({"weights": "linear"}, "weights is 'linear'.*gaussian or constant"),
        ({"mode": "all"}, "mode is 'all'.*box or exact"),
    ],
)
def test_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        WindowSpec(**({"window": SIDES} | wrong))  # type: ignore[arg-type]
