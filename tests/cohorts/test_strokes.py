"""Made-up strokes: realistic sizes and numbers, where and how they lie, and that no threshold finds them."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from brainfoundry.cohorts.phantom import HEALTHY, MNI_AFFINE, Anatomy, Draws, Lesions, make_anatomy, render
from brainfoundry.cohorts.strokes import ATLAS, Stroke, _wedge, add_head, make_case, paint, strokes_of

STEP = 2  # an eighth of the voxels
SEED = 2024


@functools.cache
def case(index: int) -> tuple[Anatomy, Lesions]:
    return make_case(SEED, index, 60.0, step=STEP)


@functools.cache
def brain() -> Anatomy:
    return make_anatomy(ATLAS, SEED, 0, 60.0, step=STEP)


def painted(kind: str, volume_ml: float, share: float = 0.4) -> tuple[np.ndarray, torch.Tensor]:
    """Mask and weight (in its box) of one lesion in the same brain."""
    stroke = Stroke(name="stroke 0", volume_ml=volume_ml, kind=kind, share=share, intensity=0.3)
    label = torch.zeros(brain().shape, dtype=torch.uint8)
    part = paint(brain(), stroke, Draws(SEED, 0), label)
    assert part.weight.shape == label[part.box].shape
    return label.numpy() > 0, part.weight


def mm_of(mask: np.ndarray) -> np.ndarray:
    """Voxels of a mask in MNI space."""
    return np.argwhere(mask) * STEP @ MNI_AFFINE[:3, :3].T + MNI_AFFINE[:3, 3]


def test_sizes_and_numbers_are_realistic() -> None:
    lists = [strokes_of(SEED, i) for i in range(1500)]
    volumes = np.array([s.volume_ml for strokes in lists for s in strokes])
    assert volumes.min() >= 0.01 and volumes.max() <= 200.0
    main = np.array([strokes[0].volume_ml for strokes in lists])
    # ATLAS v2.0: median 5 ml, from 0.01 to some hundred.
    assert 3.5 < np.median(main) < 7.0
    assert (main < 0.3).mean() > 0.03 and (main > 50).mean() > 0.05
    logs = np.log(main[(main > 0.02) & (main < 199)])
    assert abs(logs.mean() - np.median(logs)) < 0.2  # symmetric, as a log-normal is
    several = np.mean([len(strokes) > 1 for strokes in lists])
    assert 0.3 < several < 0.5 and {len(strokes) for strokes in lists} == {1, 2, 3, 4, 5, 6}
    large = [s.kind for strokes in lists for s in strokes if s.volume_ml > 15]
    small = [s.kind for strokes in lists for s in strokes if s.volume_ml < 1.5]
    assert large.count("cortical") > 0.7 * len(large) and small.count("deep") > 0.5 * len(small)
    assert {s.kind for strokes in lists for s in strokes} == {"cortical", "deep", "below"}


# Only cortical lesions grow as large as the last.
@pytest.mark.parametrize(
    ("kind", "volume_ml"),
    [(kind, ml) for kind in ("cortical", "deep", "below") for ml in (0.01, 0.5, 12.0)]
    + [("cortical", 150.0)],
)
def test_a_lesion_has_its_volume_and_its_own_shape(kind, volume_ml) -> None:
    mask, weight = painted(kind, volume_ml)
    voxels = max(round(volume_ml * 1000 / STEP**3), 1)
    assert np.count_nonzero(mask) == voxels
    assert not mask[~brain().brain.numpy()].any()
    # The box does not cut it: nowhere is a face of the box heavy, save at the volume's own edge.
    if volume_ml < 100:
        faces = [weight[0], weight[-1], weight[:, 0], weight[:, -1], weight[:, :, 0]]
        assert max(float(face.max()) for face in faces) < 0.2
    if voxels > 100:  # graded: a rim of half weight, a middle of nearly all
        rim = ((weight > 0.1) & (weight < 0.9)).sum()
        assert rim > 0.1 * voxels and float(weight.max()) > 0.95


def test_cortical_lesions_are_wedges_on_the_cortex() -> None:
    depth_of = distance_transform_edt(brain().brain.numpy()) * STEP
    for share in (0.2, 0.6, 0.8):
        mask, _ = painted("cortical", 20.0, share)
        depth = depth_of[mask]
        assert depth.min() <= 2 * STEP  # it reaches the surface
        assert np.median(depth) < 0.5 * depth.max()  # most of it near the surface
        side = np.sign(mm_of(mask)[:, 0])
        assert abs(side.mean()) > 0.95  # one hemisphere


def test_the_wedge_narrows_inward() -> None:
    axis = torch.arange(-30.0, 31.0)
    x, y, z = axis[:, None, None], axis[None, :, None], axis[None, None, :]
    inside = _wedge(x, y, z, torch.tensor([1.0, 0.0, 0.0]), 15.0) < 15.0
    areas = inside.sum((1, 2))[30:]  # from the cortex inward
    assert areas[0] > 500 and (areas[1:] <= areas[:-1]).all()
    assert areas[15] < 0.3 * areas[0]  # a half-ball, as wide, would reach no further than here


def test_deep_and_lower_lesions_are_where_they_belong() -> None:
    for share in (0.1, 0.5, 0.9):
        deep = mm_of(painted("deep", 0.5, share)[0]).mean(0)
        assert 4 < abs(deep[0]) < 40 and -42 < deep[1] < 32 and -10 < deep[2] < 34
        assert mm_of(painted("below", 0.5, share)[0]).mean(0)[2] < -12


def test_pure_function_of_seed_and_index() -> None:
    again = make_case(SEED, 2, 60.0, step=STEP)[1]
    assert torch.equal(again.label, case(2)[1].label)
    assert not torch.equal(make_case(SEED + 1, 2, 60.0, step=STEP)[1].label, case(2)[1].label)
    assert strokes_of(SEED, 2) == strokes_of(SEED, 2) != strokes_of(SEED, 3)


def test_lesions_are_dark_and_no_threshold_finds_them() -> None:
    thresholds = np.arange(0.1, 1.2, 0.05)
    scores = []
    for index in range(7):
        anatomy, lesions = case(index)
        image = render(anatomy, ATLAS, "T1w", SEED, index, lesions=lesions)
        mask = lesions.label.numpy() > 0
        white = (anatomy.white > 0.95).numpy() & ~mask
        if np.count_nonzero(mask) > 50:
            assert np.median(image[mask]) < 0.8 * np.median(image[white])
        values, mask = image[anatomy.brain.numpy()], mask[anatomy.brain.numpy()]
        values = values / np.median(values)
        scores.append(
            [
                2 * np.count_nonzero((values < t) & mask) / ((values < t).sum() + mask.sum())
                for t in thresholds
            ]
        )
    dice = np.array(scores)
    best = int(dice[:4].mean(0).argmax())
    assert 0 < dice[4:, best].mean() < 0.3


def test_heads_have_skull_and_scalp() -> None:
    anatomy, lesions = case(0)
    inside = anatomy.brain.numpy()
    image = render(anatomy, ATLAS, "T1w", SEED, 0, lesions=lesions)
    head = add_head(image, inside, SEED, 0, STEP)
    assert head.dtype == np.int16 and np.array_equal(head[inside], image[inside])
    away = distance_transform_edt(~inside) * STEP
    white = np.percentile(image[inside], 85)
    assert np.median(head[(away > 0) & (away < 3)]) < 0.4 * white  # fluid and bone
    assert np.median(head[(away > 8) & (away < 11)]) > 0.5 * white  # fat
    assert not head[away > 24].any()
    assert np.count_nonzero(head) > 1.3 * np.count_nonzero(inside)


def test_ranges_are_not_the_healthy_cohorts() -> None:
    ours, healthy = ATLAS.contrasts["T1w"], HEALTHY.contrasts["T1w"]
    for tissue in ("grey", "fluid"):
        (a, b), (c, d) = getattr(ours, tissue), getattr(healthy, tissue)
        assert b <= c or d <= a, f"{tissue} overlaps"
    assert ours.bias != healthy.bias and ours.noise[0] >= healthy.noise[1] and ours.white != healthy.white
