"""ATLAS: equal to the official scorer where it is right, and right where it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainfoundry.tasks import load_task
from brainfoundry.tasks.lesions import lesion_f1
from brainfoundry.tasks.overlap import dice, volume_difference

TASK = load_task("atlas")
VECTORS = Path(__file__).resolve().parents[3] / "shared" / "reference" / "atlas_metric_cases.json"
MM = (1.0, 1.0, 1.0)


def mask(*voxels: tuple[int, int, int], dtype: str = "float32") -> np.ndarray:
    values = np.zeros((8, 8, 8), dtype)
    for voxel in voxels:
        values[voxel] = 1
    return values


def block(first: int, dtype: str = "float32", value: float = 1, size: int = 2) -> np.ndarray:
    values = np.zeros((8, 8, 8), dtype)
    values[(slice(first, first + size),) * 3] = value
    return values


def row(at: range) -> np.ndarray:
    return mask(*((x, 0, 0) for x in at))


# Of the official vectors, those short enough to stand here: truth, prediction, and what isles/scoring.py of
# npnl/atlas2_grand_challenge at 55b9524 makes of them: dice, volume difference, count difference, lesion F1.
SHORT = {
    "both_empty": (mask(), mask(), (1.0, 0.0, 0.0, 1.0)),
    "truth_empty_pred_1vox": (mask(), mask((1, 1, 1)), (0.0, 1.0, 1.0, 0.0)),
    "pred_empty_truth_1lesion": (block(1), mask(), (0.0, 8.0, 1.0, 0.0)),
    "no_overlap": (block(0), block(5), (0.0, 0.0, 0.0, 0.0)),
    "one_truth_two_pred_fragments": (
        row(range(7)),
        row(range(2)) + row(range(5, 7)),
        (0.7272727489471436, 3.0, 1.0, 1.0),
    ),
    "diagonal_touch_is_two_components": (
        mask((1, 1, 1), (2, 2, 1), (3, 3, 2)),
        mask((1, 1, 1)),
        (0.5, 2.0, 2.0, 0.5),
    ),
    "two_tp_one_fp_one_fn": (
        mask((0, 0, 0), (3, 0, 0), (6, 0, 0)),
        mask((0, 0, 0), (0, 6, 6), (3, 0, 0)),
        (0.6666666865348816, 0.0, 0.0, 0.6666666666666666),
    ),
}


def check(truth: np.ndarray, prediction: np.ndarray, expected: tuple[float, ...]) -> None:
    for dtype in ("float32", "float64", "int16", "uint8", "bool"):
        found = TASK.score(truth.astype(dtype), prediction.astype(dtype), MM, "binary")
        # The official Dice is computed in float32, the rest in float64.
        assert np.float32(found["dice"]) == np.float32(expected[0])
        assert (found["volume_diff"], found["lesion_count_diff"], found["lesion_f1"]) == expected[1:]


@pytest.mark.parametrize("name", SHORT)
def test_short_official_vectors(name: str) -> None:
    check(*SHORT[name])


def official() -> dict[str, Any]:
    if not VECTORS.is_file():
        pytest.skip("the official vectors are not there")
    return json.loads(VECTORS.read_text())


def test_all_official_vectors() -> None:
    cases = official()["cases"]
    assert len(cases) == 12
    for case in cases:
        truth, prediction = (mask(*map(tuple, case[f"{of}_voxels"])) for of in ("truth", "prediction"))
        names = ("dice", "volume_difference", "simple_lesion_count_difference", "lesion_f1")
        expected = tuple(case["expected"][name] for name in names)
        check(truth, prediction, expected)
        if case["name"] in SHORT:
            short = SHORT[case["name"]]
            assert (short[0] == truth).all() and (short[1] == prediction).all() and short[2] == expected


def clipped() -> float:
    """The largest value of a prediction after it was scored."""
    prediction = block(1, value=3)
    dice(block(1), prediction)
    return float(prediction.max())


# What the official code makes of unusual input -> what is right, measured here.
ODDITIES = {
    "volume_difference_batchwise_false_returns": (
        0.0, lambda: volume_difference(block(0), mask(), MM), 8.0,
    ),
    "volume_difference_batchwise_true_returns_uint8": (
        128.0, lambda: volume_difference(block(0, "uint8", size=4), block(0, "uint8", size=8), MM), 448.0,
    ),
    "lesion_f1_bool_inputs": (0.0, lambda: lesion_f1(block(1, "bool"), block(1, "bool")), 1.0),
    "lesion_f1_uint8_inputs": (1.0, lambda: lesion_f1(block(1, "uint8"), block(1, "uint8")), 1.0),
    "lesion_f1_pred_255": (1.0, lambda: lesion_f1(block(1), block(1, value=255)), 1.0),
    "lesion_f1_pred_255_no_overlap": (
        0.6666666666666666, lambda: lesion_f1(block(1), block(5, value=255)), 0.0,
    ),
    "dice_soft_pred_0.4_on_truth": (0.5714285373687744, lambda: dice(block(1), block(1, value=0.4)), 0.0),
    "lesion_f1_soft_pred_0.4": (1.0, lambda: lesion_f1(block(1), block(1, value=0.4)), 0.0),
    "dice_uint8_512vox_perfect": (
        0.0, lambda: dice(block(0, "uint8", size=8), block(0, "uint8", size=8)), 1.0,
    ),
    "dice_float_512vox_perfect": (1.0, lambda: dice(block(0, size=8), block(0, size=8)), 1.0),
    "dice_clips_prediction_in_place_max_after": (1.0, clipped, 3.0),
}  # fmt: skip


@pytest.mark.parametrize("name", ODDITIES)
def test_right_where_the_official_code_is_not(name: str) -> None:
    _, measure, right = ODDITIES[name]
    assert measure() == right


def test_all_official_oddities_are_here() -> None:
    assert {name: theirs for name, (theirs, _, _) in ODDITIES.items()} == official()["oddities"]


def test_volume_in_mm3_at_any_voxel_size() -> None:
    assert TASK.score(block(0), mask(), (2.0, 1.5, 1.0), "binary")["volume_diff"] == 24.0


def test_one_region_in_one_scheme() -> None:
    assert [region.name for region in TASK.regions] == ["lesion"] and TASK.schemes == ("binary",)
    assert TASK.score_names == ("dice", "volume_diff", "lesion_count_diff", "lesion_f1")
    assert TASK.score(block(0), block(0), MM, "binary", lesionwise=True).keys() == set(TASK.score_names)
    marked = np.stack([block(2) > 0])
    assert (TASK.to_labels(marked, "binary") == block(2)).all()
    (row_of_table,) = TASK.lesion_table(block(2, "uint8"), np.diag([1, 1, 2, 1]), "binary")
    assert (row_of_table["region"], row_of_table["volume_mm3"]) == ("lesion", 16.0)
