"""Augmentation: held against MONAI's deterministic transforms, and by what must not change."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import Affine, Flip, ScaleIntensity, ShiftIntensity
from torch.utils._python_dispatch import TorchDispatchMode

from brainfoundry.core.errors import ConfigError
from brainfoundry.core.rng import hash64, hash64_torch
from brainfoundry.tasks.augment import (
    RECIPES,
    AugmentConfig,
    augment,
    draw,
    flip,
    flip_source,
    rotate,
    rotation_grid,
)

OFF = AugmentConfig(flip=0.0, rotate=0.0, scale=0.0, shift=0.0)
EVERYTHING = AugmentConfig(flip=0.5, rotate=0.5, degrees=20.0, scale=0.1, shift=0.1)
SHAPE = (7, 6, 5)
# Of draws of `EVERYTHING` from the seeds hash64(0, 7) and hash64(1, 7).
GOLDEN = {
    "flip": [[False, True, False], [False, True, False]],
    "rotate": [True, True],
    "angle": [[0.2384102, 0.0350762, 0.2965131], [0.1601709, -0.1228373, -0.1385343]],
    "factor": [0.0463207, 0.0727113],
    "offset": [-0.0998107, 0.0087211],
}


def seeds(count: int, stream: int = 5) -> torch.Tensor:
    return torch.from_numpy(hash64(stream, np.arange(count)).view(np.int64))


def crops(count: int, channels: int = 2, shape: tuple[int, ...] = SHAPE) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, channels, *shape, generator=generator)
    labels = torch.randint(0, 5, (count, *shape), generator=generator, dtype=torch.int16)
    return x, labels


# --- against MONAI, given the drawn parameters ------------------------------------------------------------


def test_flips_scale_and_shift_are_monais_in_the_released_order() -> None:
    x, labels = crops(32)
    config = AugmentConfig()
    found, found_labels = augment(x, labels, seeds(32), config)
    draws = draw(seeds(32), config)
    assert len(draws.flip_N3.unique(dim=0)) == 8  # every combination of axes is among them
    for i in range(32):
        axes = [a for a in range(3) if draws.flip_N3[i, a]]
        mirror = Flip(spatial_axis=axes) if axes else lambda v: v
        scale = ScaleIntensity(minv=None, maxv=None, factor=float(draws.factor_N[i]))
        shift = ShiftIntensity(offset=float(draws.offset_N[i]))
        expected = torch.as_tensor(shift(scale(mirror(x[i]))))
        torch.testing.assert_close(found[i], expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(found_labels[i], torch.as_tensor(mirror(labels[i : i + 1]))[0])


@pytest.mark.parametrize("shape", [(9, 9, 9), (12, 8, 10), (7, 16, 5)])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_rotation_is_monais_affine_about_the_centre(shape: tuple[int, int, int], mode: str) -> None:
    x, _ = crops(4, 2, shape)
    generator = torch.Generator().manual_seed(2)
    angles = (torch.rand(4, 3, generator=generator) - 0.5) * 2
    angles[0] = torch.tensor([0.3, 0.0, 0.0])
    found = rotate(x, rotation_grid(angles, torch.Size(shape)), mode)  # type: ignore[arg-type]
    for i in range(4):
        monai = Affine(
            rotate_params=angles[i].tolist(), mode=mode, padding_mode="zeros", align_corners=False,
            image_only=True,
        )  # fmt: skip
        expected = torch.as_tensor(monai(x[i]))
        if mode == "nearest":  # but for the few points half-way between two voxels
            assert float((found[i] != expected).float().mean()) < 0.01
        else:
            torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-4)


def test_a_quarter_turn_about_each_axis_is_exact_where_the_sides_are_equal() -> None:
    x, _ = crops(1, 1, (6, 6, 6))
    for axis in range(3):
        angles = torch.zeros(1, 3)
        angles[0, axis] = math.pi / 2
        plane = [a + 2 for a in range(3) if a != axis]
        if axis == 1:  # about the second axis, the third turns to the first
            plane.reverse()
        turned = rotate(x, rotation_grid(angles, x.shape[2:]), "bilinear")
        torch.testing.assert_close(turned, torch.rot90(x, -1, plane), rtol=1e-4, atol=1e-5)


def test_what_turns_out_of_the_crop_leaves_zeros() -> None:
    angles = torch.tensor([[math.pi / 4, 0.0, 0.0]])
    ones = rotate(torch.ones(1, 1, 3, 9, 9), rotation_grid(angles, torch.Size((3, 9, 9))), "bilinear")
    assert not ones[0, 0, :, 0, 0].any() and not ones[0, 0, :, 8, 8].any()
    torch.testing.assert_close(ones[0, 0, :, 4], torch.ones(3, 9))


# --- image and mask ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_a_mask_moves_with_its_image_voxel_by_voxel(dtype: torch.dtype) -> None:
    # Blocks far apart, each with its own number as its intensity and as its label.
    labels = torch.zeros(16, 24, 20, 28, dtype=dtype)
    for number, corner in enumerate([(4, 4, 4), (4, 12, 18), (14, 4, 18), (14, 12, 4)], start=1):
        d, h, w = corner
        labels[:, d : d + 5, h : h + 5, w : w + 5] = number
    config = AugmentConfig(flip=0.5, rotate=0.7, degrees=25.0, scale=0.0, shift=0.0)
    x, moved = augment(labels[:, None].float(), labels, seeds(16), config)
    assert moved.dtype == dtype and set(moved.unique().tolist()) <= {0, 1, 2, 3, 4}
    assert not torch.equal(moved, labels)
    # Trilinear values are whole only inside a block; there both agree to the last voxel.
    inside = (x[:, 0] - x[:, 0].round()).abs() < 1e-4
    inside &= torch.nn.functional.avg_pool3d(x, 3, 1, 1)[:, 0].sub(x[:, 0]).abs() < 1e-4
    assert torch.equal(x[:, 0].round().to(dtype)[inside], moved[inside])
    for number in (1, 2, 3, 4):
        assert int((moved[inside] == number).sum()) > 16 * 5


def test_every_voxel_keeps_its_own_number_through_flips() -> None:
    identity = torch.arange(math.prod(SHAPE), dtype=torch.int32).view(1, *SHAPE).repeat(16, 1, 1, 1)
    config = AugmentConfig(scale=0.0, shift=0.0)
    x, labels = augment(identity[:, None].float(), identity, seeds(16), config)
    assert torch.equal(x[:, 0].int(), labels)
    assert all(torch.equal(crop.unique(), identity[0].flatten()) for crop in labels)
    source = flip_source(draw(seeds(16), config).flip_N3, identity.shape[1:])
    assert torch.equal(flip(labels[:, None], source)[:, 0], identity)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    axes=st.lists(st.tuples(*[st.booleans()] * 3), min_size=1, max_size=4),
)
def test_a_flip_is_torchs_and_undoes_itself(
    shape: tuple[int, int, int], axes: list[tuple[bool, bool, bool]]
) -> None:
    x, _ = crops(len(axes), 2, shape)
    chosen = torch.tensor(axes)
    source = flip_source(chosen, x.shape[2:])
    mirrored = flip(x, source)
    for i, crop in enumerate(axes):
        assert torch.equal(mirrored[i], x[i].flip([a + 1 for a in range(3) if crop[a]]))
    assert torch.equal(flip(mirrored, source), x)


# --- draws ------------------------------------------------------------------------------------------------


def test_draws_have_the_distributions_they_should() -> None:
    n = 4000
    draws = draw(seeds(n), dataclasses.replace(EVERYTHING, flip=0.25, rotate=0.6))
    four_sd = 4 * math.sqrt(0.25 / n)
    assert float((draws.flip_N3.float().mean(dim=0) - 0.25).abs().max()) < four_sd
    assert abs(float(draws.rotate_N.float().mean()) - 0.6) < four_sd
    ranges = [(draws.angle_N3[:, a], math.radians(20)) for a in range(3)]
    for values, most in (*ranges, (draws.factor_N, 0.1), (draws.offset_N, 0.1)):
        quarters = torch.histc(values, 4, min=-most, max=most) / n
        assert float((quarters - 0.25).abs().max()) < four_sd
        assert float(values.abs().max()) <= most
    # No two of them are one draw under two names.
    together = torch.cat(
        [draws.flip_N3.T.float(), draws.rotate_N[None].float(), draws.angle_N3.T, draws.factor_N[None],
         draws.offset_N[None]]
    )  # fmt: skip
    assert float((torch.corrcoef(together) - torch.eye(9)).abs().max()) < 4 / math.sqrt(n) * 1.2


def test_a_crops_draws_are_its_seeds_alone() -> None:
    x, labels = crops(8)
    whole = augment(x, labels, seeds(8), EVERYTHING)
    torch.manual_seed(99)
    again = augment(x, labels, seeds(8), EVERYTHING)
    parts = [augment(x[i : i + 2], labels[i : i + 2], seeds(8)[i : i + 2], EVERYTHING) for i in (0, 2, 4, 6)]
    for k in range(2):
        assert torch.equal(whole[k], again[k])
        assert torch.equal(whole[k], torch.cat([part[k] for part in parts]))
    assert not torch.equal(whole[0], augment(x, labels, seeds(8, stream=6), EVERYTHING)[0])


def test_draws_never_change() -> None:
    # Golden values: a run that is resumed with a later version must go on with the same crops.
    draws = draw(hash64_torch(torch.arange(2), 7), EVERYTHING)
    assert draws.flip_N3.tolist() == GOLDEN["flip"]
    assert draws.rotate_N.tolist() == GOLDEN["rotate"]
    for name, values in (("angle", draws.angle_N3), ("factor", draws.factor_N), ("offset", draws.offset_N)):
        torch.testing.assert_close(values, torch.tensor(GOLDEN[name]), rtol=1e-5, atol=1e-7)


# --- what must not change ---------------------------------------------------------------------------------


def test_off_means_untouched() -> None:
    x, labels = crops(3)
    found = augment(x, labels, seeds(3), OFF)
    assert torch.equal(found[0], x) and torch.equal(found[1], labels)


def test_the_crops_given_are_left_as_they_were() -> None:
    x, labels = crops(4)
    before = x.clone(), labels.clone()
    augment(x, labels, seeds(4), EVERYTHING)
    assert torch.equal(x, before[0]) and torch.equal(labels, before[1])


def test_a_crop_that_is_not_rotated_is_not_resampled() -> None:
    x, labels = crops(32)
    config = dataclasses.replace(OFF, rotate=0.5)
    found, moved = augment(x, labels, seeds(32), config)
    turned = draw(seeds(32), config).rotate_N
    assert 0 < int(turned.sum()) < 32
    for i in range(32):
        assert torch.equal(found[i], x[i]) == (not turned[i])
        if not turned[i]:
            assert torch.equal(moved[i], labels[i])


def test_an_absent_modality_stays_exactly_zero_and_background_shifts_as_in_the_released_code() -> None:
    x, labels = crops(4)
    present = torch.tensor([[True, False], [True, True], [False, True], [False, False]])
    x[:, :, :2] = 0.0
    x[~present] = 0.0
    config = AugmentConfig(flip=0.0)
    found, _ = augment(x, labels, seeds(4), config, present_NC=present)
    assert (found[~present].view(torch.int32) == 0).all()
    offsets = draw(seeds(4), config).offset_N
    for i, channel in present.nonzero().tolist():
        assert (found[i, channel, :2] == offsets[i]).all()
    everything = augment(x, labels, seeds(4), config)[0]
    assert torch.equal(found[present], everything[present])


def test_autocast_changes_nothing() -> None:
    x, labels = crops(8, 1, (16, 16, 16))
    exact = augment(x, labels, seeds(8), EVERYTHING)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = augment(x, labels, seeds(8), EVERYTHING)
    assert torch.equal(exact[0], half[0]) and torch.equal(exact[1], half[1])


class NoHostTensors(TorchDispatchMode):
    """Refuses every operation that gives a tensor on the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            assert not isinstance(value, torch.Tensor) or value.device.type == "meta", func
        return out


def test_augmentation_never_waits_for_the_device() -> None:
    # On the meta device there are no values to ask for, so whatever would wait for one fails.
    x, labels, keys = (t.to("meta") for t in (*crops(4), seeds(4)))
    present = torch.ones(4, 2, dtype=torch.bool, device="meta")
    with NoHostTensors():
        found, moved = augment(x, labels, keys, EVERYTHING, present_NC=present)
    assert found.shape == x.shape and moved.shape == labels.shape and moved.dtype == torch.int16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_augments_as_a_cpu_does() -> None:
    x, labels = crops(4, 2, (32, 24, 16))
    host = augment(x, labels, seeds(4), EVERYTHING)
    device = augment(x.cuda(), labels.cuda(), seeds(4).cuda(), EVERYTHING)
    torch.testing.assert_close(device[0].cpu(), host[0], rtol=1e-4, atol=1e-4)
    assert float((device[1].cpu() != host[1]).float().mean()) < 1e-3


# --- settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"flip": 1.5}, "flip is 1.5. Fix: give a finite number, from 0 to 1"),
        ({"rotate": -0.1}, "rotate is -0.1"),
        ({"degrees": 181.0}, "degrees is 181.0. Fix: give a finite number, from 0 to 180"),
        ({"scale": 1.0}, "scale is 1.0. Fix: give a number from 0 to below 1"),
        ({"shift": float("inf")}, "shift is inf. Fix: give a finite number, 0 or more"),
        ({"shift": float("nan")}, "shift is nan"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        AugmentConfig(**fields)


def test_recipes_are_those_of_their_sources() -> None:
    assert dataclasses.asdict(RECIPES["brats"]) == {
        "flip": 0.5, "rotate": 0.0, "degrees": 15.0, "scale": 0.1, "shift": 0.1,
    }  # fmt: skip
    atlas = RECIPES["atlas"]
    assert (atlas.flip, atlas.scale, atlas.shift) == (0.0, 0.0, 0.0) and atlas.rotate > 0
