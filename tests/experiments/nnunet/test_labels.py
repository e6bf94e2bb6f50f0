"""Our labels in nnU-Net's numbers and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainfoundry.cohorts.labels import SCHEMES
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.experiments.nnunet.labels import Numbering
from brainfoundry.tasks import load_task

BRATS = [scheme for scheme in SCHEMES if scheme.startswith("brats")]


def test_brats_2021_is_nnunets_own_dataset_137() -> None:
    found = Numbering.of(load_task("brats"), "brats2021").dataset_json()
    assert list(found["labels"].items()) == [  # their order decides which region is written over which
        ("background", 0), ("wt", [1, 2, 3]), ("tc", [2, 3]), ("et", [3]),
    ]  # fmt: skip
    assert found["regions_class_order"] == [1, 2, 3]
    encoded = Numbering.of(load_task("brats"), "brats2021").encode(np.array([0, 1, 2, 4], np.uint8))
    assert encoded.tolist() == [0, 2, 1, 3]


def test_one_region_is_a_plain_label() -> None:
    found = Numbering.of(load_task("atlas"), "binary").dataset_json()
    assert found == {"labels": {"background": 0, "lesion": 1}}


def test_the_cavity_of_2024_is_background() -> None:
    numbering = Numbering.of(load_task("brats"), "brats2024")
    assert numbering.encode(np.array([1, 2, 3, 4], np.uint8)).tolist() == [2, 1, 3, 0]


@given(st.sampled_from(BRATS), st.lists(st.integers(0, 255), min_size=1, max_size=20))
def test_there_and_back_every_region_is_what_it_was(scheme: str, values: list[int]) -> None:
    task = load_task("brats")
    numbering = Numbering.of(task, scheme)
    labels = np.array([(0, *SCHEMES[scheme])[v % (len(SCHEMES[scheme]) + 1)] for v in values], np.uint8)
    labels = labels.reshape(-1, 1, 1)
    numbers = numbering.encode(labels)
    back = numbering.decode(numbers, file="f", subject="s")
    assert np.array_equal(task.region_masks(labels, scheme), task.region_masks(back, scheme))
    for region, mask in zip(task.regions, task.region_masks(labels, scheme), strict=True):
        assert np.array_equal(np.isin(numbers, numbering.regions[region.name]), mask)


def test_bad_labels() -> None:
    numbering = Numbering.of(load_task("brats"), "brats2021")
    with pytest.raises(
        DataError, match=r"holds 4, nnU-Net's numbers here are 0 to 3 \[subject P1; file p.nii"
    ):
        numbering.decode(np.full((1, 1, 1), 4), file="p.nii", subject="P1")
    with pytest.raises(DataError, match="no whole numbers"):
        numbering.decode(np.full((1, 1, 1), 0.5), file="p.nii", subject="P1")
    with pytest.raises(ConfigError, match="does not understand"):
        Numbering.of(load_task("brats"), "binary")
