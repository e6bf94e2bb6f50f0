"""Overlap of two masks, against their definitions and against MONAI."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from monai.metrics import compute_hausdorff_distance

from brainfoundry.tasks import overlap
from brainfoundry.tasks.overlap import (
    WORST_HD95_MM,
    as_mask,
    dice,
    hd95,
    region_metrics,
    union_box,
    volume_difference,
)

from . import slow

DTYPES = ("bool", "uint8", "int16", ">i2", "int64", "float16", "float32", "float64")


@settings(deadline=None)
@given(slow.mask_pairs(), slow.spacings)
def test_definitions(pair: tuple[np.ndarray, np.ndarray], spacing: tuple[float, float, float]) -> None:
    t, p = map(slow.voxels, pair)
    assert dice(*pair) == slow.dice(t, p)
    assert hd95(*pair, spacing) == pytest.approx(slow.hd95(t, p, spacing), abs=1e-9)
    assert volume_difference(*pair, spacing) == pytest.approx(abs(len(t) - len(p)) * math.prod(spacing))


@settings(deadline=None, max_examples=50)
@given(slow.mask_pairs(), slow.spacings)
def test_hd95_is_monais(pair: tuple[np.ndarray, np.ndarray], spacing: tuple[float, float, float]) -> None:
    assume(all(mask.any() for mask in pair))
    truth, prediction = (mask[None, None] for mask in pair)
    theirs = compute_hausdorff_distance(
        prediction, truth, include_background=True, percentile=95, spacing=spacing
    )
    assert hd95(*pair, spacing) == pytest.approx(float(theirs), rel=1e-5)


@settings(deadline=None)
@given(slow.mask_pairs(), slow.spacings)
def test_both_ways_of_measuring_distances_agree(
    pair: tuple[np.ndarray, np.ndarray], spacing: tuple[float, float, float]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "_MANY_SURFACE_VOXELS", 0)
        transform = hd95(*pair, spacing)
    assert hd95(*pair, spacing) == pytest.approx(transform, abs=1e-9)


@settings(deadline=None)
@given(slow.mask_pairs(), slow.spacings, st.permutations(range(3)), st.sets(st.integers(0, 2)))
def test_axes_and_sides_do_not_matter(
    pair: tuple[np.ndarray, np.ndarray],
    spacing: tuple[float, float, float],
    axes: list[int],
    flipped: set[int],
) -> None:
    turned = [np.flip(mask, tuple(flipped)).transpose(axes) for mask in pair]
    before, after = (
        region_metrics(*pair, spacing),
        region_metrics(*turned, [spacing[axis] for axis in axes]),
    )
    assert after == pytest.approx(before, abs=1e-9, nan_ok=True)
    assert region_metrics(*pair[::-1], spacing)["dice_challenge"] == before["dice_challenge"]
    padded = [np.pad(mask, ((1, 0), (0, 2), (3, 1))) for mask in pair]
    assert region_metrics(*padded, spacing) == pytest.approx(before, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_count_alike_and_inputs_stay_as_they_are(dtype: str) -> None:
    # 512 voxels: in uint8 the sums of the official ATLAS code wrap around to 0.
    truth, prediction = np.zeros((2, 20, 9, 9), dtype)
    truth[:8, :8, :8] = 1
    prediction[2:10, :8, :8] = 1
    for mask in (truth, prediction):
        mask.setflags(write=False)
    assert dice(truth, prediction) == 0.75
    assert hd95(truth, prediction, (1, 1, 1)) == 2.0
    assert hd95(truth, prediction, (2.5, 1, 1)) == 5.0
    assert volume_difference(truth, np.zeros_like(truth), (2, 1, 0.5)) == 512.0
    assert volume_difference(np.zeros_like(truth), truth, (1, 1, 1)) == 512.0  # unsigned: no underflow


def test_foreground_lies_above_the_threshold() -> None:
    assert as_mask(np.array([0, 0.4, 0.5, 0.51, 255, np.nan])).tolist() == [False] * 3 + [True, True, False]
    already = np.array([True])
    assert as_mask(already) is already


def test_box_around_both() -> None:
    a, b = np.zeros((2, 9, 8, 7), np.uint8)
    assert union_box(a, b) == (slice(0, 1),) * 3
    a[2, 3, 4], b[5, 1, 4] = 255, 1
    assert union_box(a, b) == (slice(2, 6), slice(1, 4), slice(4, 5))


FULL, EMPTY = np.ones((2, 3, 4), bool), np.zeros((2, 3, 4), bool)
NONE = math.nan


@pytest.mark.parametrize(
    ("truth", "prediction", "excluded", "challenge"),
    [
        (EMPTY, EMPTY, (NONE, NONE), (1.0, 0.0)),
        (EMPTY, FULL, (NONE, NONE), (0.0, 374.0)),
        (FULL, EMPTY, (0.0, NONE), (0.0, 374.0)),
        (FULL, FULL, (1.0, 0.0), (1.0, 0.0)),
    ],
)
def test_policies_for_empty_regions(
    truth: np.ndarray,
    prediction: np.ndarray,
    excluded: tuple[float, float],
    challenge: tuple[float, float],
) -> None:
    found = region_metrics(truth, prediction, (1, 1, 1))
    assert (found["dice"], found["hd95"]) == pytest.approx(excluded, nan_ok=True)
    assert (found["dice_challenge"], found["hd95_challenge"]) == challenge


def test_the_worst_distance_is_worse_than_any_on_the_grid_of_brats() -> None:
    corners = np.zeros((240, 240, 155), bool), np.zeros((240, 240, 155), bool)
    corners[0][0, 0, 0] = corners[1][-1, -1, -1] = True
    assert hd95(*corners, (1, 1, 1)) == pytest.approx(math.dist((0, 0, 0), (239, 239, 154)))
    assert math.dist((0, 0, 0), (240, 240, 155)) < WORST_HD95_MM
