"""Frames against the transforms they imitate, and corners inside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, CropForegroundd, ScaleIntensityRanged, SpatialPadd

from brainfoundry.core.errors import ConfigError
from brainfoundry.stream.frames import draw_corners, frame_bounds, inside_volume

triple = st.tuples(*(st.integers(1, 60) for _ in range(3)))


def bounds(frame: str, shape: tuple, crop: tuple, box: tuple | None = None) -> tuple[list[int], list[int]]:
    lo, hi = box or ((0, 0, 0), shape)
    a, b = frame_bounds(frame, *(np.array([v]) for v in (shape, lo, hi)), crop)
    return a[0].tolist(), b[0].tolist()


def test_reference_frame_of_the_mni_grid() -> None:
    lo, hi = bounds("reference", (182, 218, 182), (96, 96, 96))
    assert (lo, hi) == ([-5, -35, -5], [187, 253, 187])
    assert [b - a for a, b in zip(lo, hi, strict=True)] == [192, 288, 192]


@pytest.mark.parametrize(
    ("shape", "crop"),
    [
        ((18, 21, 18), (12, 12, 12)),
        ((13, 7, 25), (12, 8, 12)),
        ((5, 24, 12), (12, 12, 12)),
        ((1, 3, 2), (4, 4, 5)),
    ],
)
def test_reference_frame_is_what_monai_makes(shape: tuple, crop: tuple) -> None:
    # Every voxel carries its own number; values below 1000 keep the window from saturating, and
    # background 0 becomes 0.5, as in the released transforms.
    image = torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(1, *shape) % 1000
    image[:, : shape[0] // 2] = 0
    transforms = Compose(
        [
            ScaleIntensityRanged("image", a_min=-1000, a_max=1000, b_min=0, b_max=1, clip=True),
            SpatialPadd("image", spatial_size=crop),
            CropForegroundd("image", source_key="image", k_divisible=crop),
        ]
    )
    made = transforms({"image": MetaTensor(image)})["image"].numpy()[0]
    lo, hi = bounds("reference", shape, crop)
    assert list(made.shape) == [b - a for a, b in zip(lo, hi, strict=True)]
    ours = np.zeros(made.shape, np.float32)
    inner = tuple(slice(-a, -a + s) for a, s in zip(lo, shape, strict=True))
    ours[inner] = image[0].numpy() / 2000 + 0.5
    np.testing.assert_allclose(made, ours, atol=1e-6)


@given(triple, triple, st.data())
def test_box_frame_holds_box_and_crop(shape: tuple, crop: tuple, data: st.DataObject) -> None:
    lo = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    hi = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(lo, shape, strict=True))
    a, b = bounds("box", shape, crop, (lo, hi))
    for axis in range(3):
        assert a[axis] <= lo[axis] and hi[axis] <= b[axis]
        assert b[axis] - a[axis] == max(hi[axis] - lo[axis], crop[axis])
        assert 0 <= (b[axis] - hi[axis]) - (lo[axis] - a[axis]) <= 1  # centred, the odd voxel at the end


@given(triple, triple, st.integers(0, 2**63), st.sampled_from(["box", "reference"]))
def test_crops_lie_in_the_frame_and_touch_the_volume(
    shape: tuple, crop: tuple, seed: int, frame: str
) -> None:
    lo, hi = (np.array([v] * 50) for v in bounds(frame, shape, crop))
    corner = draw_corners(np.arange(seed, seed + 50, dtype=np.uint64), lo, hi, crop)
    assert corner.dtype == np.int32
    assert (corner >= lo).all() and (corner + crop <= hi).all()
    inside_lo, inside_hi = inside_volume(corner, np.array([shape] * 50), crop)
    assert (inside_lo >= 0).all() and (inside_hi <= crop).all() and (inside_lo < inside_hi).all()
    assert (corner + inside_lo >= 0).all() and (corner + inside_hi <= shape).all()
    # Exact: one voxel further would be outside crop or volume.
    assert ((inside_lo == 0) | (corner + inside_lo == 0)).all()
    assert ((inside_hi == crop) | (corner + inside_hi == shape)).all()


def test_corners_reach_every_place_evenly() -> None:
    lo, hi = np.array([[-2, 0, 5]] * 6000), np.array([[4, 3, 9]] * 6000)
    corner = draw_corners(np.arange(6000, dtype=np.uint64), lo, hi, (4, 3, 1))
    for axis, values in enumerate(([-2, -1, 0], [0], [5, 6, 7, 8])):
        seen, counts = np.unique(corner[:, axis], return_counts=True)
        assert seen.tolist() == values
        assert counts.min() > 0.9 * 6000 / len(values)


def test_a_crop_outside_the_volume_has_nothing_inside() -> None:
    lo, hi = inside_volume(np.array([[30, -9, 0]], np.int32), np.array([[20, 20, 20]]), (4, 4, 4))
    assert (hi - lo).tolist() == [[0, 0, 4]]


def test_unknown_frame_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown frame 'brain'.*box, reference"):
        bounds("brain", (4, 4, 4), (2, 2, 2))
