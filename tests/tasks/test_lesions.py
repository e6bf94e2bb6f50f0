"""Lesions: components against a walk through the mask, the two rules of matching, the table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfoundry.tasks.lesions import (
    GLIOMA,
    LesionRule,
    components,
    count_difference,
    lesion_f1,
    lesion_table,
    lesionwise,
)
from brainfoundry.tasks.overlap import WORST_HD95_MM

from . import slow
from .test_overlap import DTYPES

MM = (1.0, 1.0, 1.0)


def boxes(*corners: tuple[slice, slice, slice], shape: tuple[int, int, int] = (40, 12, 12)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for corner in corners:
        mask[corner] = True
    return mask


def cube(first: int, size: int = 4, across: int = 0) -> tuple[slice, slice, slice]:
    return slice(first, first + size), slice(across, across + size), slice(across, across + size)


@settings(deadline=None)
@given(slow.mask_pairs(count=1), st.sampled_from((6, 18, 26)))
def test_components_are_those_of_a_walk(masks: tuple[np.ndarray], connectivity: int) -> None:
    numbered, count = components(masks[0], connectivity)  # type: ignore[arg-type]
    walked = {frozenset(component) for component in slow.flood(masks[0], connectivity)}
    assert {frozenset(slow.voxels(numbered == n)) for n in range(1, count + 1)} == walked
    assert ((numbered > 0) == masks[0]).all()


@settings(deadline=None)
@given(slow.mask_pairs())
def test_atlas_rules_against_their_definition(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, prediction = pair
    assert lesion_f1(truth, prediction) == pytest.approx(slow.lesion_f1(truth, prediction))
    counts = [len(slow.flood(mask, 6)) for mask in pair]
    assert count_difference(truth, prediction) == abs(counts[0] - counts[1])


@settings(deadline=None)
@given(slow.mask_pairs(), st.permutations(range(3)), st.sets(st.integers(0, 2)))
def test_axes_and_sides_do_not_matter(
    pair: tuple[np.ndarray, np.ndarray], axes: list[int], flipped: set[int]
) -> None:
    turned = [np.flip(mask, tuple(flipped)).transpose(axes) for mask in pair]
    assert lesion_f1(*turned) == lesion_f1(*pair)
    assert count_difference(*turned) == count_difference(*pair)
    rule = LesionRule(dilations=1, min_volume_mm3=2)
    assert lesionwise(*turned, MM, rule=rule) == lesionwise(*pair, MM, rule=rule)


@pytest.mark.parametrize(
    ("step", "lesions_6", "lesions_18", "lesions_26"),
    [((0, 0, 1), 1, 1, 1), ((0, 1, 1), 2, 1, 1), ((1, 1, 1), 2, 2, 1), ((0, 0, 2), 2, 2, 2)],
)
def test_touching(step: tuple[int, int, int], lesions_6: int, lesions_18: int, lesions_26: int) -> None:
    mask = np.zeros((4, 4, 4), bool)
    mask[1, 1, 1] = mask[tuple(1 + s for s in step)] = True
    assert [components(mask, n)[1] for n in (6, 18, 26)] == [lesions_6, lesions_18, lesions_26]
    assert count_difference(mask, np.zeros_like(mask)) == lesions_6


def test_a_bridge_finds_both_and_fragments_are_one_hit() -> None:
    two, bridge = boxes(cube(0), cube(10)), boxes((slice(3, 11), slice(0, 1), slice(0, 1)))
    assert (lesion_f1(two, bridge), count_difference(two, bridge)) == (1.0, 1)
    fragments = boxes(cube(0, 1), cube(2, 1))
    assert (lesion_f1(boxes(cube(0)), fragments), count_difference(boxes(cube(0)), fragments)) == (1.0, 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_count_alike_and_inputs_stay_as_they_are(dtype: str) -> None:
    truth = boxes(cube(0), cube(12), cube(24)).astype(dtype)
    prediction = boxes(cube(1), cube(13), cube(35)).astype(dtype)
    for mask in (truth, prediction):
        mask.setflags(write=False)
    assert lesion_f1(truth, prediction) == pytest.approx(2 / 3)
    assert count_difference(truth, np.zeros_like(truth)) == 3
    found = lesionwise(truth, prediction, MM)
    assert (found.lesions, found.false) == (3, 1)
    assert found.dice == pytest.approx(2 * 0.75 / 4)
    assert [lesion["voxels"] for lesion in lesion_table(truth, np.eye(4))] == [64] * 3


# ---------------------------------------------------------------------------------------------------------
# BraTS 2023, lesion by lesion


@settings(deadline=None, max_examples=60)
@given(slow.mask_pairs(), slow.spacings, st.integers(0, 3), st.sampled_from((0.0, 1.0, 2.0, 10.0)))
def test_lesionwise_against_its_definition(
    pair: tuple[np.ndarray, np.ndarray],
    spacing: tuple[float, float, float],
    dilations: int,
    smallest: float,
) -> None:
    found = lesionwise(*pair, spacing, rule=LesionRule(dilations=dilations, min_volume_mm3=smallest))
    expected = slow.lesionwise(*pair, spacing, dilations, smallest)
    assert (found.dice, found.hd95, found.lesions, found.false) == pytest.approx(expected, abs=1e-9)
    # Room around both changes nothing, neither does where in it they lie.
    padded = [np.pad(mask, ((4, 0), (0, 5), (3, 3))) for mask in pair]
    again = lesionwise(*padded, spacing, rule=LesionRule(dilations=dilations, min_volume_mm3=smallest))
    assert again == found


def test_nothing_to_find_and_nothing_found() -> None:
    nothing, something = boxes(), boxes(cube(0))
    found = lesionwise(nothing, nothing, MM)
    assert (found.dice, found.hd95, found.lesions, found.false) == (1.0, 0.0, 0, 0)
    found = lesionwise(something, nothing, MM)
    assert (found.dice, found.hd95, found.lesions, found.false) == (0.0, WORST_HD95_MM, 1, 0)
    found = lesionwise(nothing, boxes(cube(0, 1)), MM)
    assert (found.dice, found.hd95, found.lesions, found.false) == (0.0, WORST_HD95_MM, 0, 1)


def test_one_hit_one_miss_one_false() -> None:
    found = lesionwise(boxes(cube(0), cube(20)), boxes(cube(0), cube(36)), MM)
    assert (found.lesions, found.false) == (2, 1)
    assert found.dice == pytest.approx(1 / 3)
    assert found.hd95 == pytest.approx(2 * 374 / 3)


def test_lesions_up_to_50_mm3_are_not_scored_and_not_false_either() -> None:
    fifty = boxes((slice(0, 2), slice(0, 5), slice(0, 5)))
    assert fifty.sum() == 50 and GLIOMA.min_volume_mm3 == 50
    found = lesionwise(fifty, fifty, MM)
    assert (found.dice, found.lesions, found.false) == (1.0, 0, 0)
    assert lesionwise(fifty, boxes(), MM).dice == 1.0  # missed, and nobody minds
    larger = fifty.copy()
    larger[2, 0, 0] = True
    assert lesionwise(larger, boxes(), MM).dice == 0.0
    assert lesionwise(fifty, boxes(), (1, 1, 1.1)).dice == 0.0  # mm3, not voxels


def test_near_lesions_are_one_and_a_near_prediction_belongs_to_them() -> None:
    # Each grows by 3: across a gap of 6 they touch, across 7 they are 26-neighbours no more.
    for gap, lesions in ((6, 1), (7, 2)):
        truth = boxes(cube(0), cube(4 + gap))
        assert lesionwise(truth, boxes(cube(0)), MM).lesions == lesions
    # Beside the lesion, within its dilation: no overlap, but no false lesion either.
    found = lesionwise(boxes(cube(0)), boxes(cube(6)), MM)
    assert (found.dice, found.lesions, found.false, found.hd95 < 10) == (0.0, 1, 0, True)
    assert lesionwise(boxes(cube(0)), boxes(cube(7)), MM).false == 1


def test_a_bridge_is_held_against_each_lesion_whole() -> None:
    truth = boxes(cube(0), cube(20))
    found = lesionwise(truth, boxes((slice(0, 24), slice(0, 4), slice(0, 4))), MM)
    assert (found.lesions, found.false) == (2, 0)
    assert found.dice == pytest.approx(2 * 64 / (64 + 24 * 16))


# ---------------------------------------------------------------------------------------------------------
# The table


def test_table_in_the_world_of_a_skewed_affine() -> None:
    mask = boxes(
        cube(1, 2), (slice(10, 14), slice(3, 4), slice(5, 7)), (slice(30, 31),) + (slice(9, 10),) * 2
    )
    turn = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-2.0, 1.0, 1.5])
    affine[:3, 3] = (90.0, -126.0, -72.0)
    rows = lesion_table(mask, affine, "et")
    assert [(row["region"], row["lesion"], row["voxels"]) for row in rows] == [
        ("et", 1, 8),
        ("et", 2, 8),
        ("et", 3, 1),
    ]
    assert [row["volume_mm3"] for row in rows] == pytest.approx([24.0, 24.0, 3.0])
    for row, centre in zip(rows, [(1.5, 0.5, 0.5), (11.5, 3, 5.5), (30, 9, 9)], strict=True):
        assert row["centroid_mm"] == pytest.approx(tuple(affine[:3, :3] @ centre + affine[:3, 3]))
    assert all(type(x) is float for row in rows for x in (row["volume_mm3"], *row["centroid_mm"]))


@settings(deadline=None)
@given(slow.mask_pairs(count=1), st.sampled_from((6, 26)))
def test_table_against_a_walk(masks: tuple[np.ndarray], connectivity: int) -> None:
    rows = lesion_table(masks[0], np.diag([2.0, 1, 1, 1]), connectivity=connectivity)  # type: ignore[arg-type]
    walked = slow.flood(masks[0], connectivity)
    centres = [(np.mean([*lesion], axis=0) * (2, 1, 1)).tolist() for lesion in walked]
    expected = sorted((len(lesion), centre) for lesion, centre in zip(walked, centres, strict=True))
    assert [row["lesion"] for row in rows] == list(range(1, len(walked) + 1))
    assert [row["voxels"] for row in rows] == sorted(map(len, walked), reverse=True)
    found = sorted((row["voxels"], list(row["centroid_mm"])) for row in rows)
    for (size, centre), (wanted, at) in zip(found, expected, strict=True):
        assert size == wanted and centre == pytest.approx(at)


def test_no_lesions_no_rows() -> None:
    assert lesion_table(np.zeros((3, 4, 5)), np.eye(4)) == []
