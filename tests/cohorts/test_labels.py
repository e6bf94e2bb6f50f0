"""Label values: cleaned, held against a scheme, and never of two schemes in one cohort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfoundry.cohorts.labels import (
    SCHEMES,
    LabelValues,
    check_scheme,
    check_values,
    clean_labels,
    label_values,
    require_one_scheme,
)
from brainfoundry.core.errors import ConfigError, DataError

from .layouts import SCANS, needs_real_scans


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i2", "int64", "float32", ">f4", "float64", "bool"])
def test_whole_numbers_of_any_dtype(dtype) -> None:
    values = np.array([[0, 1], [1, 0]]).astype(dtype)
    cleaned = clean_labels(values)
    assert cleaned.dtype == np.uint8 and (cleaned == values.astype(int)).all()


def test_nearly_one_is_one_and_a_half_is_an_error() -> None:
    assert clean_labels(np.array([0.99999997, -1e-7, 2.0004, 0.0], np.float32)).tolist() == [1, 0, 2, 0]
    with pytest.raises(
        LabelValues, match=r"1 mask voxels are no whole numbers, for example 0\.5.*Fix: "
    ) as e:
        clean_labels(np.array([0, 0.5, 1]), file="seg.nii.gz", subject="s1")
    assert (e.value.reason, e.value.file, e.value.subject) == ("label_values", "seg.nii.gz", "s1")


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 255), min_size=1, max_size=30),
    noise=st.floats(-9e-4, 9e-4),
    where=st.integers(0, 29),
    off=st.floats(1.1e-3, 0.5),
)
def test_noise_within_the_tolerance_is_cleaned_and_beyond_it_refused(labels, noise, where, off) -> None:
    values = np.array(labels, np.float64)
    assert clean_labels(values + noise).tolist() == labels
    assert label_values(clean_labels(values + noise)) == tuple(sorted({v for v in labels if v}))
    values[where % len(labels)] += off
    with pytest.raises(LabelValues, match="1 mask voxels are no whole numbers"):
        clean_labels(values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([np.nan, 1], "not a number"),
        ([np.inf, 1], "inf"),
        ([-1.0, 1], "from -1 to 1"),
        ([300, 1], "from 1 to 300"),
    ],
)
def test_values_that_are_no_labels(values, words) -> None:
    with pytest.raises(LabelValues, match=words):
        clean_labels(np.array(values))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_values_of_a_scheme_and_others(scheme) -> None:
    allowed = SCHEMES[scheme]
    clean_labels(np.array([0, *allowed]), scheme)
    check_values((), scheme)
    for wrong in {1, 2, 3, 4, 255} - set(allowed):
        with pytest.raises(LabelValues, match=rf"mask holds {wrong}, which {scheme} \("):
            clean_labels(np.array([0, 1, wrong]), scheme)


def test_four_labels_are_a_scheme_of_their_own() -> None:
    require_one_scheme([("a", (2, 4)), ("b", (1, 2, 3))], "brats2024")
    with pytest.raises(DataError, match=r"mixed.*--scheme brats2024"):
        require_one_scheme([("a", (2, 4)), ("b", (1, 2, 3))], "brats2023")


def test_the_fix_names_the_scheme_that_fits() -> None:
    with pytest.raises(LabelValues, match="its values are those of brats2023"):
        check_values((1, 2, 3), "brats2021")
    with pytest.raises(LabelValues, match="write 1 instead of 255"):
        check_values((255,), "binary")
    with pytest.raises(ConfigError, match=r"unknown label scheme 'brats'.*brats2021 \(1, 2, 4\)"):
        check_scheme("brats")


def test_one_scheme_a_cohort() -> None:
    undecided = [("a", (1, 2)), ("b", ()), ("odd", (3, 4)), ("wild", (7,))]
    require_one_scheme([*undecided, ("c", (1, 2, 4))], "brats2021")
    require_one_scheme([*undecided, ("c", (3,))], "brats2023")
    require_one_scheme(undecided, "brats2023")
    require_one_scheme([("a", (1, 2, 4)), ("b", (3,))], "binary")  # every such mask has its own row for that
    with pytest.raises(DataError) as mixed:
        require_one_scheme([*undecided, ("c", (1, 4)), ("d", (2, 3))], "brats2021", file="root")
    line = mixed.value.line()
    for words in (
        "subject c has labels 1, 4 (brats2021)", "subject d has 2, 3 (brats2023)", "file root", "Fix: keep",
    ):  # fmt: skip
        assert words in line
    with pytest.raises(DataError, match=r"are of brats2023 \(labels 1, 3\).*read as brats2021.*subject x"):
        require_one_scheme([*undecided, ("x", (1, 3))], "brats2021")


@settings(deadline=None)
@given(data=st.data())
def test_a_mixture_is_refused_in_any_order(data) -> None:
    plain = st.lists(st.sampled_from([(), (1,), (2,), (1, 2)]), max_size=5)
    cohort = [*data.draw(plain), (1, 2, 4), (3,)]
    order = data.draw(st.permutations(cohort))
    with pytest.raises(DataError, match="label schemes are mixed"):
        require_one_scheme([(f"s{i}", values) for i, values in enumerate(order)], "brats2021")
    require_one_scheme([(f"s{i}", v) for i, v in enumerate(order) if v != (3,)], "brats2021")


@needs_real_scans
@pytest.mark.parametrize(
    ("name", "scheme", "found"),
    [
        ("tumour/TCGA-DU-7294/TCGA-DU-7294_seg.nii.gz", "brats2021", (1, 2)),
        ("lesion/ms-patient19/ms-patient19_lesion.nii.gz", "binary", (1,)),
        ("stroke/masks_mni/lesymap-001_lesion.nii.gz", "binary", (1,)),
    ],
)
def test_real_masks(name, scheme, found) -> None:
    import nibabel

    values = np.asanyarray(nibabel.load(SCANS / name).dataobj)
    assert label_values(clean_labels(values, scheme)) == found
