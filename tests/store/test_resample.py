"""Resampling keeps places, levels and the empty background."""

from __future__ import annotations

import numpy as np
import pytest

from brainfoundry.store.resample import resample
from tests.store.builders import brain, nifti, volume

AFFINE = np.array([[-1.0, 0, 0, 30], [0, 1, 0, -40], [0, 0, 1, -20], [0, 0, 0, 1]])


def test_a_ramp_in_mm_stays_that_ramp() -> None:
    shape = (40, 36, 44)
    mm = np.stack(np.meshgrid(*(np.arange(n) for n in shape), np.ones(1), indexing="ij"), -1)[
        ..., 0, :
    ].astype(float)
    mm[..., 3] = 1
    mm = mm @ AFFINE.T
    ramp = (100 + 2 * mm[..., 0] + 3 * mm[..., 1] - mm[..., 2]).astype(np.float32)
    ramp += 200
    numbers, affine = resample(volume(nifti(ramp)), 2.0)
    assert numbers.shape == (20, 18, 22) and numbers.dtype == np.float32
    where = np.stack(np.meshgrid(*(np.arange(n) for n in numbers.shape), indexing="ij"), -1)
    at = where @ affine[:3, :3].T + affine[:3, 3]
    expected = 300 + 2 * at[..., 0] + 3 * at[..., 1] - at[..., 2]
    inner = (slice(3, -3),) * 3
    np.testing.assert_allclose(numbers[inner], expected[inner], atol=1e-2)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), 2.0)


def test_the_field_of_view_keeps_its_centre() -> None:
    for spacing in (2.0, 1.5, 0.8, 3.3):
        source = volume(nifti(brain(1)))
        numbers, affine = resample(source, spacing)
        centre = affine @ [*((np.array(numbers.shape) - 1) / 2), 1]
        expected = source.affine @ [*((np.array(source.raw_XYZ.shape) - 1) / 2), 1]
        np.testing.assert_allclose(centre, expected)


def test_fine_detail_is_averaged_not_aliased() -> None:
    stripes = np.full((40, 40, 40), 100, np.int16)
    stripes[::2] = (
        300  # at the new grid's Nyquist and beyond: plain interpolation would pick one or the other
    )
    numbers, _ = resample(volume(nifti(stripes)), 3.0)
    assert numbers.dtype == np.int16
    assert np.abs(numbers[2:-2].astype(float) - 200).max() < 5


def test_background_stays_empty_and_integers_stay_integers() -> None:
    source = brain(2, top=500) + (brain(2) > 0).astype(np.int16) * 300
    numbers, _ = resample(volume(nifti(source)), 2.0)
    share = (source != 0).mean()
    assert numbers.dtype == np.int16
    assert (numbers != 0).mean() == pytest.approx(share, rel=0.05)
    assert numbers[numbers != 0].min() > 100  # the edge is cut where half of it is background
