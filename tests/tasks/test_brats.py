"""BraTS: regions and labels of every year, and what is scored of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from monai.transforms import ConvertToMultiChannelBasedOnBratsClassesd

from brainfoundry.cohorts.labels import SCHEMES, LabelValues
from brainfoundry.tasks import load_task

TASK = load_task("brats")
MM = (1.0, 1.0, 1.0)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
        ],
    ),
]


def label_maps(scheme: str) -> st.SearchStrategy[np.ndarray]:
    return arrays.arrays(np.uint8, (3, 2, 4), elements=st.sampled_from((0, *SCHEMES[scheme])))


def tumour(enhancing: int = 4, *, at: int = 0) -> np.ndarray:
    """Oedema around a core around an enhancing centre, each a cube, of 512, 64 and 8 voxels."""
    values_DHW = np.zeros((24, 10, 10), np.uint8)
    for margin, label in ((0, 2), (2, 1), (3, enhancing)):
        values_DHW[(slice(at + margin, at + 8 - margin), *[slice(margin, 8 - margin)] * 2)] = label
    return values_DHW


def test_regions_in_the_order_of_the_published_networks() -> None:
    assert [region.name for region in TASK.regions] == ["tc", "wt", "et"]
    assert TASK.schemes == ("brats2021", "brats2023", "brats2024")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("scheme", "et"), [("brats2021", 4), ("brats2023", 3)])
def test_regions_are_monais(scheme: str, et: int, device: str) -> None:
    @settings(deadline=None)
    @given(label_maps(scheme), label_maps(scheme))
    def check(a: np.ndarray, b: np.ndarray) -> None:
        convert = ConvertToMultiChannelBasedOnBratsClassesd("label", et_label=et)
        theirs = torch.stack([convert({"label": torch.as_tensor(x)})["label"] for x in (a, b)])
        for dtype in (torch.uint8, torch.int16, torch.float32):
            ours = TASK.to_regions(torch.as_tensor(np.stack([a, b])).to(device, dtype), scheme)
            assert ours.dtype == torch.float32 and ours.device.type == device
            assert torch.equal(ours.cpu(), theirs.float())
        assert (TASK.region_masks(a, scheme) == theirs[0].numpy()).all()

    check()


def test_the_cavity_of_2024_is_no_part_of_the_tumour() -> None:
    labels_DHW = np.array([0, 1, 2, 3, 4], np.uint8).reshape(1, 1, 5)
    tc, wt, et = TASK.region_masks(labels_DHW, "brats2024").reshape(3, 5).tolist()
    assert tc == [False, True, False, True, False]
    assert wt == [False, True, True, True, False]
    assert et == [False, False, False, True, False]


@pytest.mark.parametrize(("scheme", "et"), [("brats2021", 4), ("brats2023", 3), ("brats2024", 3)])
def test_labels_are_written_whole_tumour_first_enhancing_last(scheme: str, et: int) -> None:
    # Every combination of (tc, wt, et), nested or not.
    marked = np.array([[t, w, e] for t in (0, 1) for w in (0, 1) for e in (0, 1)], bool).T.reshape(3, 1, 2, 4)
    written = TASK.to_labels(marked, scheme)
    assert written.dtype == np.uint8
    assert written.ravel().tolist() == [0, et, 2, et, 1, et, 1, et]
    assert (TASK.to_labels(np.where(marked, 0.6, 0.4), scheme) == written).all()


@settings(deadline=None)
@given(st.data(), st.sampled_from(("brats2021", "brats2023")))
def test_labels_survive_regions(data: st.DataObject, scheme: str) -> None:
    labels_DHW = data.draw(label_maps(scheme))
    assert (TASK.to_labels(TASK.region_masks(labels_DHW, scheme), scheme) == labels_DHW).all()


def test_labels_of_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="2 channels for the regions tc, wt, et"):
        TASK.to_labels(np.zeros((2, 3, 3, 3), bool), "brats2021")


def test_metrics_of_a_subject() -> None:
    truth, prediction = tumour(), tumour(at=1)
    found = TASK.score(truth, prediction, (2.0, 1.0, 1.0), "brats2021")
    assert tuple(found) == TASK.score_names
    names = [
        f"{m}_{of}{s}"
        for m in ("dice", "hd95")
        for s in ("", "_challenge")
        for of in ("tc", "wt", "et", "mean")
    ]
    assert sorted(found) == sorted(names)
    assert (found["dice_wt"], found["dice_tc"], found["dice_et"]) == (0.875, 0.75, 0.5)
    assert found["dice_mean"] == pytest.approx((0.875 + 0.75 + 0.5) / 3)
    assert found["hd95_wt"] == found["hd95_mean"] == 2.0
    assert all(found[name] == found[f"{name}_challenge"] for name in ("dice_et", "hd95_et", "dice_mean"))
    assert (truth == tumour()).all() and (prediction == tumour(at=1)).all()
    # The same anatomy under the other scheme, and turned around, scores alike.
    again = TASK.score(tumour(3), tumour(3, at=1), (2.0, 1.0, 1.0), "brats2023")
    turned = TASK.score(
        truth[::-1].transpose(2, 0, 1), prediction[::-1].transpose(2, 0, 1), (1, 2, 1), "brats2021"
    )
    assert again == pytest.approx(found) and turned == pytest.approx(found)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
def test_dtypes_score_alike(dtype: str) -> None:
    expected = TASK.score(tumour(), tumour(at=1), MM, "brats2021", lesionwise=True)
    maps = [tumour().astype(dtype), tumour(at=1).astype(dtype)]
    assert TASK.score(*maps, MM, "brats2021", lesionwise=True) == expected


def test_a_region_that_only_one_map_has() -> None:
    without = np.where(tumour() == 4, 1, tumour())
    excluded = TASK.score(without, without, MM, "brats2021", lesionwise=True)
    assert math.isnan(excluded["dice_et"]) and math.isnan(excluded["hd95_et"])
    assert math.isnan(excluded["lesion_dice_et"]) and excluded["lesion_dice_et_challenge"] == 1.0
    assert (excluded["dice_et_challenge"], excluded["hd95_et_challenge"]) == (1.0, 0.0)
    assert excluded["dice_mean"] == 1.0  # of the two regions that are there
    false = TASK.score(without, tumour(), MM, "brats2021", lesionwise=True)
    assert math.isnan(false["dice_et"]) and false["dice_et_challenge"] == 0.0
    assert false["hd95_et_challenge"] == 374.0
    assert (false["lesion_dice_et"], false["lesion_hd95_et"]) == (0.0, 374.0)
    assert false["dice_mean_challenge"] == pytest.approx(2 / 3) and false["dice_mean"] == 1.0
    missed = TASK.score(tumour(), without, MM, "brats2021")
    assert (missed["dice_et"], missed["dice_et_challenge"]) == (0.0, 0.0)
    assert math.isnan(missed["hd95_et"]) and missed["hd95_et_challenge"] == 374.0


def test_nothing_at_all() -> None:
    empty = np.zeros((4, 5, 6), np.uint8)
    found = TASK.score(empty, empty, MM, "brats2021", lesionwise=True)
    challenge = {name: value for name, value in found.items() if name.endswith("_challenge")}
    assert set(challenge.values()) == {0.0, 1.0} and len(challenge) == 16
    assert all((value == 1.0) is ("dice" in name) for name, value in challenge.items())
    assert all(math.isnan(value) for name, value in found.items() if name not in challenge)


def test_lesion_by_lesion() -> None:
    truth = np.pad(tumour(), ((0, 20), (0, 0), (0, 0)))
    prediction = truth.copy()
    prediction[40:42, :2, :2] = 2  # a false lesion, of whole tumour only
    found = TASK.score(truth, prediction, MM, "brats2021", lesionwise=True)
    assert (found["lesion_dice_wt"], found["lesion_hd95_wt"]) == (0.5, 187.0)
    assert (found["lesion_dice_tc"], found["lesion_hd95_tc"]) == (1.0, 0.0)
    assert math.isnan(found["lesion_dice_et"])  # 8 mm3: too small to be scored
    assert found["lesion_dice_mean"] == 0.75
    assert found["lesion_dice_mean_challenge"] == pytest.approx((0.5 + 1 + 1) / 3)


def test_a_label_outside_the_scheme_names_the_map_and_the_subject() -> None:
    with pytest.raises(LabelValues, match=r"mask holds 4, which brats2023 .*subject s7; file the prediction"):
        TASK.score(tumour(3), tumour(4), MM, "brats2023", subject="s7")
    with pytest.raises(LabelValues, match=r"values are those of brats2023"):
        TASK.score(tumour(3), tumour(4), MM, "brats2021", subject="s7")
    with pytest.raises(LabelValues, match=r"mask holds 9.*subject s7; file seg\.nii"):
        TASK.region_masks(np.full((2, 2, 2), 9), "brats2021", file="seg.nii", subject="s7")


def test_table_of_lesions_by_region() -> None:
    rows = TASK.lesion_table(tumour(), np.eye(4), "brats2021")
    assert [(row["region"], row["lesion"], row["voxels"]) for row in rows] == [
        ("tc", 1, 64),
        ("wt", 1, 512),
        ("et", 1, 8),
    ]
    corner = np.zeros((3, 3, 3), np.uint8)
    corner[0, 0, 0] = corner[1, 1, 1] = 2
    assert len(TASK.lesion_table(corner, np.eye(4), "brats2021")) == 1  # 26 neighbours, as BraTS counts
