"""Whole volumes: the box, ensembles, mirror images, precision, uncertainty."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from torch import nn

from brainfoundry.core.errors import ConfigError
from brainfoundry.inference import WindowSpec, brain_box, entropy, predict_probabilities
from brainfoundry.inference.volume import Box, window_box
from brainfoundry.inference.windows import window_starts

SIDES = (32, 32, 32)
WHOLE = WindowSpec(window=SIDES, mode="exact")
BOX = WindowSpec(window=SIDES)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 3, 3, padding=1)).eval()


def volume(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))


def everything(x_CDHW: torch.Tensor) -> Box:
    d, h, w = x_CDHW.shape[1:]
    return (0, 0, 0), (d, h, w)


def predict(
    net: nn.Module, x: torch.Tensor, box: Box, spec: WindowSpec = WHOLE, **options: object
) -> np.ndarray:
    return predict_probabilities([net], x, box, spec, device="cpu", **options)  # type: ignore[arg-type]


def test_the_box_of_what_any_channel_shows() -> None:
    values = np.zeros((2, 20, 21, 22))
    values[0, 3:9, 5, 6] = -4.0
    values[1, 7, 2:4, 21] = 1.0
    assert brain_box(values) == brain_box(values != 0) == ((3, 2, 6), (9, 6, 22))
    assert brain_box(values[:1]) == ((3, 5, 6), (9, 6, 7))


@given(
    st.tuples(*[st.integers(1, 90)] * 3).flatmap(
        lambda shape: st.tuples(
            st.just(shape),
            st.tuples(
                *[
                    st.tuples(st.integers(0, s - 1), st.integers(1, s)).map(lambda p: (min(p), max(p)))
                    for s in shape
                ]
            ),
        )
    )
)
def test_the_windows_of_the_box_are_windows_of_the_volume(
    case: tuple[tuple[int, ...], tuple[tuple[int, int], ...]],
) -> None:
    shape, sides = case
    sides = tuple((lo, max(hi, lo + 1)) for lo, hi in sides)
    (a, b), (c, d), (e, f) = sides
    lo, hi = window_box(((a, c, e), (b, d, f)), shape, BOX)
    everywhere = set(window_starts(shape, BOX))
    here = window_starts([last - first for first, last in zip(lo, hi, strict=True)], BOX)
    moved = {tuple(x + first for x, first in zip(start, lo, strict=True)) for start in here}
    assert moved <= everywhere
    for axis, ((lo0, hi0), lo1, hi1, side) in enumerate(zip(sides, lo, hi, shape, strict=True)):
        assert 0 <= lo1 <= lo0 and hi0 <= hi1 <= side  # the whole box
        starts = sorted({start[axis] for start in moved})
        if len(starts) > 1:  # and none of them for nothing
            assert starts[1] > lo0 and starts[-2] + SIDES[axis] < hi0


def test_exact_is_monai_and_a_sigmoid() -> None:
    x, net = volume(45, 40, 20), network()
    with torch.inference_mode():
        logits = sliding_window_inference(x[None], SIDES, 1, net, overlap=0.5, mode="gaussian")
    found = predict(net, x, ((10, 10, 5), (20, 20, 10)))  # the box says nothing here
    assert found.dtype == np.float32 and found.shape == (3, 45, 40, 20)
    np.testing.assert_allclose(found, logits[0].sigmoid().numpy(), atol=1e-6)


def test_only_the_box_is_computed() -> None:
    x, net = volume(70, 60, 50), network()
    lo, hi = (20, 10, 8), (60, 45, 46)
    found = predict(net, x, (lo, hi), BOX)
    first, last = window_box((lo, hi), (70, 60, 50), BOX)
    assert (first, last) == ((16, 0, 0), (64, 48, 48))  # windows of 32 begin every 16 voxels
    near = x[(slice(None), *(slice(a, b) for a, b in zip(first, last, strict=True)))]
    around = predict(net, near, everything(near))
    inside = tuple(slice(a, b) for a, b in zip(lo, hi, strict=True))
    there = tuple(slice(a - o, b - o) for a, b, o in zip(lo, hi, first, strict=True))
    np.testing.assert_array_equal(found[(slice(None), *inside)], around[(slice(None), *there)])
    found[(slice(None), *inside)] = 0
    assert (found == 0).all()


def test_where_no_window_is_left_out_the_box_changes_nothing_inside_it() -> None:
    x, net = volume(70, 40, 20), network()
    lo, hi = (1, 2, 6), (68, 39, 14)
    found, exact = predict(net, x, (lo, hi), BOX), predict(net, x, (lo, hi))
    inside = (slice(None), *(slice(a, b) for a, b in zip(lo, hi, strict=True)))
    np.testing.assert_array_equal(found[inside], exact[inside])


def test_an_ensemble_is_the_mean_of_probabilities() -> None:
    x = volume(40, 33, 32)
    box = everything(x)
    nets = [network(0), network(1), network(2)]
    alone = [predict(net, x, box) for net in nets]
    both = predict_probabilities(nets, x, box, WHOLE, device="cpu")
    np.testing.assert_allclose(both, np.mean(alone, axis=0), atol=1e-6)
    assert np.abs(alone[0] - alone[1]).max() > 0.01
    with pytest.raises(ValueError, match="no network"):
        predict_probabilities([], x, box, WHOLE, device="cpu")


def test_flips_are_the_mean_over_eight_mirror_images() -> None:
    x, net = volume(32, 40, 36), network()
    box = everything(x)
    axes = [a for n in range(4) for a in itertools.combinations((1, 2, 3), n)]
    each = [np.flip(predict(net, x.flip(a), box), a) for a in axes]
    found = predict(net, x, box, flips=True)
    assert len(axes) == 8
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-6)
    assert np.abs(found - each[0]).max() > 0.001
    for axis in (1, 2, 3):  # and so a mirrored volume has the mirrored result
        mirrored = predict(net, x.flip(axis), box, flips=True)
        np.testing.assert_allclose(np.flip(mirrored, axis), found, atol=1e-6)


def test_flips_in_a_box() -> None:
    x, net = volume(60, 50, 40), network()
    box = ((10, 8, 4), (50, 44, 20))
    found = predict(net, x, box, BOX, flips=True)
    assert window_box(box, (60, 50, 40), BOX) == ((0, 0, 0), (60, 48, 32))
    part = x[:, :, :48, :32]
    around = predict(net, part, everything(part), flips=True)
    np.testing.assert_array_equal(found[:, 10:50, 8:44, 4:20], around[:, 10:50, 8:44, 4:20])


def test_precision() -> None:
    x, net = volume(32, 32, 40), network()
    full, half = (predict(net, x, everything(x), precision=p) for p in ("fp32", "bf16"))
    assert 0 < np.abs(full - half).max() < 0.02 and half.dtype == np.float32
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        predict(net, x, everything(x), precision="fp16")
    with pytest.raises(ConfigError, match=r"precision is 'int8'.*fp32, bf16, fp16"):
        predict(net, x, everything(x), precision="int8")


@pytest.mark.parametrize("call", ["to", "flip", "add_"])
def test_memory_that_ends_outside_the_windows_is_told_alike(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    x, net = volume(40, 32, 32), network()
    monkeypatch.setattr(torch.Tensor, call, full)
    with pytest.raises(ConfigError, match=r"out of GPU memory.*volume of 40x32x32.*--batch.*--window"):
        predict(net, x, everything(x), flips=True)


def test_the_volume_is_left_as_it_was() -> None:
    x = volume(32, 32, 32)
    before = x.clone()
    predict(nn.Identity(), x, everything(x))
    assert torch.equal(x, before)


def test_entropy_in_nats() -> None:
    maps = np.zeros((2, 2, 3, 4), np.float32)
    maps[:, 0, 0, 0] = 0.5
    maps[0, 1, 1, 1] = 0.5
    maps[:, 1, 2, 3] = 1.0
    maps[0, 0, 1, 0] = 0.1
    found = entropy(maps)
    assert found.dtype == np.float32 and found.shape == (2, 3, 4)
    assert found[0, 0, 0] == pytest.approx(math.log(2))
    assert found[1, 1, 1] == pytest.approx(math.log(2) / 2)  # one region of two
    assert found[0, 1, 0] == pytest.approx((-0.1 * math.log(0.1) - 0.9 * math.log(0.9)) / 2, rel=1e-6)
    assert found[1, 2, 3] == found[0, 2, 2] == 0
