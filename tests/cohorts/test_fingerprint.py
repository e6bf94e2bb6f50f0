"""Fingerprints: what must not change them, what must, and the distances between them."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from brainfoundry.cohorts.fingerprint import (
    LENGTH,
    SAME,
    close_pairs,
    distances,
    fingerprint,
    stack,
)

SCANS = Path(__file__).parents[2] / "../shared/scans"
REAL = pytest.mark.skipif(not SCANS.is_dir(), reason="real scans are not on this machine: ../shared/scans")
SHAPE = (46, 54, 48)


def head(seed: int, noise: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """An int16 ellipsoid with anatomy of `seed` and scanner noise of (seed, noise), 0 around it."""
    grid = np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in shape), indexing="ij")
    anatomy = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.0)
    texture = np.random.default_rng((seed, noise)).normal(size=shape)
    image = 600 + 120 * anatomy / anatomy.std() + 30 * texture
    return (image.clip(1) * (sum(g**2 for g in grid) < 1)).astype(np.int16)


def apart(a: np.ndarray | bytes, b: np.ndarray | bytes, **options: bool) -> float:
    left, right = (stack([x if isinstance(x, bytes) else fingerprint(x)]) for x in (a, b))
    return float(distances(left, right, **options)[0, 0])


def foreground(volume: np.ndarray) -> np.ndarray:
    index = np.nonzero(volume)
    return volume[tuple(slice(i.min(), i.max() + 1) for i in index)]


def test_length_is_fixed_and_small() -> None:
    assert LENGTH <= 168 and LENGTH % 8 == 0
    assert {len(fingerprint(v)) for v in (head(0), head(1, shape=(9, 80, 33)), np.ones((1, 1, 1)))} == {
        LENGTH
    }


@settings(max_examples=25, deadline=None)
@given(
    slope=st.floats(1e-3, 1e3),
    inter=st.floats(-1e3, 1e3),
    negative=st.booleans(),
    dtype=st.sampled_from(["float32", "float64", ">f4", "<f8"]),
)
def test_scaling_and_dtype_do_not_matter(slope: float, inter: float, negative: bool, dtype: str) -> None:
    volume = head(3)
    other = volume.astype(np.float64) * (-slope if negative else slope) + inter * slope
    assert apart(volume, other.astype(dtype)) <= 0.01


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e17, 1e30])
def test_extreme_values(scale: float) -> None:
    assert apart(head(3), (head(3) * scale).astype(np.float32)) <= 0.01
    assert apart(head(3), head(3) * scale) <= 0.01


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int32", "int64", ">i2", "float32", "float64"])
def test_the_number_type_alone_changes_no_bit(dtype: str) -> None:
    assert fingerprint(head(3).astype(dtype)) == fingerprint(head(3))


@settings(max_examples=20, deadline=None)
@given(widths=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=3))
def test_cropping_and_padding_do_not_matter(widths: list[tuple[int, int]]) -> None:
    volume = foreground(head(4))
    assert fingerprint(np.pad(volume, widths)) == fingerprint(volume)


@pytest.mark.parametrize(("levels", "most"), [(65_535, 0.005), (4_095, 0.01), (255, 0.09)])
def test_quantised_floats_are_the_same_image(levels: int, most: float) -> None:
    volume = head(5).astype(np.float32) * 0.731
    codes = np.round(volume / (volume.max() / levels))
    assert apart(volume, codes.astype(np.int32)) <= most < SAME


def test_memory_layout_does_not_matter() -> None:
    volume = head(6)
    assert fingerprint(np.asfortranarray(volume)) == fingerprint(volume)
    assert fingerprint(volume[::-1][::-1]) == fingerprint(volume)


def test_axes_renamed_by_the_header_are_found_on_request() -> None:
    volume, other = head(7), head(8)
    turned = volume[::-1, :, ::-1].transpose(2, 0, 1)
    assert apart(turned, volume) > 0.3
    assert apart(turned, volume, any_orientation=True) == 0
    assert apart(volume, turned, any_orientation=True) == 0
    assert apart(turned, other, any_orientation=True) > 0.3


def test_other_people_and_other_visits_are_other_images() -> None:
    volumes = [head(seed, visit) for seed in range(6) for visit in range(2)]
    prints = stack(fingerprint(v) for v in volumes)
    found = distances(prints, prints)
    people = np.arange(len(volumes)) // 2
    assert (np.diag(found) == 0).all() and (found == found.T).all()
    assert found[people[:, None] != people].min() > 0.3
    visits = found[(people[:, None] == people) & ~np.eye(len(volumes), dtype=bool)]
    assert visits.min() > 1.5 * SAME


def test_a_flat_or_empty_volume_is_like_nothing() -> None:
    flat = [
        np.zeros(SHAPE),
        np.full(SHAPE, 7, np.int16),
        np.full((2, 2, 2), np.nan),
        np.ones((1, 1, 1), bool),
    ]
    prints = stack(fingerprint(v) for v in [*flat, (head(0) > 0), head(0)])
    found = distances(prints, prints)
    assert (found[:4] == 1).all() and (found[:, :4] == 1).all()
    assert not [pair for pair in close_pairs(prints) if pair[0] < 4]


def test_a_few_voxels_that_are_not_finite() -> None:
    volume = head(9).astype(np.float32)
    damaged = volume.copy()
    damaged[20, 20, 20], damaged[30, 25, 22], damaged[0, 0, 0] = np.nan, np.inf, -np.inf
    assert apart(volume, damaged) < SAME


@pytest.mark.parametrize("volume", [np.zeros((3, 3)), np.zeros((2, 2, 2, 2)), np.zeros((0, 4, 4))])
def test_only_volumes_have_one(volume: np.ndarray) -> None:
    with pytest.raises(ValueError, match="3D volume"):
        fingerprint(volume)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=3, max_size=3), st.integers(0, 2**32 - 1))
def test_any_volume_has_one(shape: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    volume = rng.integers(-5, 5, shape).astype(rng.choice(["int8", "uint8", "int16", "float32"]))
    assert len(fingerprint(volume)) == LENGTH


def test_distances_count_bits() -> None:
    rng = np.random.default_rng(0)
    a, b = (np.packbits(rng.integers(0, 2, (n, 1331), dtype=np.uint8), axis=1) for n in (7, 5))
    a, b = (np.pad(x, ((0, 0), (0, LENGTH - x.shape[1]))) for x in (a, b))
    bits_a, bits_b = (np.unpackbits(x, axis=1, count=1331) for x in (a, b))
    expected = (bits_a[:, None] != bits_b[None]).mean(axis=2)
    np.testing.assert_allclose(distances(a, b), expected, rtol=1e-6)
    assert distances(a[:0], b).shape == (0, 5)
    with pytest.raises(ValueError, match=r"uint8 of shape"):
        distances(a[:, :-1], b)
    with pytest.raises(ValueError, match="168 bytes"):
        stack([b"short"])


def test_close_pairs_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    prints = stack(fingerprint(head(seed)) for seed in (0, 1, 0, 2, 1))
    expected = [(0, 2, 0.0), (1, 4, 0.0)]
    assert list(close_pairs(prints)) == expected
    monkeypatch.setattr("brainfoundry.cohorts.fingerprint._BLOCK_BYTES", 1)
    assert list(close_pairs(prints)) == expected
    monkeypatch.setattr("brainfoundry.cohorts.fingerprint._STRIP", 2)
    assert list(close_pairs(prints)) == expected
    assert [p[:2] for p in close_pairs(prints[:2], prints)] == [(0, 0), (0, 2), (1, 1), (1, 4)]


def canonical(name: str) -> np.ndarray:
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_filename(SCANS / name))
    return np.asarray(image.dataobj)


@REAL
def test_real_scans() -> None:
    names = [
        "lesion/ms-patient19/ms-patient19_T1w.nii.gz",
        "lesion/ms-patient19/ms-patient19_T1wpost.nii.gz",
        "tumour/TCGA-DU-7294/TCGA-DU-7294_t1.nii.gz",
        "tumour/TCGA-DU-7294/TCGA-DU-7294_t1ce.nii.gz",
        "template/MNI152_2009_T1w_brain.nii.gz",
        "stroke/sub-M2307/sub-M2307_T2w.nii.gz",
    ]
    volumes = [canonical(name) for name in names]
    prints = stack(fingerprint(v) for v in volumes)
    found = distances(prints, prints, any_orientation=True)
    assert (found + np.eye(len(names))).min() > 1.6 * SAME
    for volume, own in zip(volumes[::2], prints[::2], strict=True):
        changed = (foreground(volume).astype(np.float64) * 0.37 - 12).astype(np.float32)
        quantised = np.round(volume.astype(np.float64) / (np.ptp(volume) / 4095)).astype(np.int16)
        assert apart(changed, own.tobytes()) <= 0.002
        assert apart(quantised, own.tobytes()) <= 0.005


@REAL
def test_stored_in_another_orientation(tmp_path: Path) -> None:
    # The same voxels stored LPS: after the canonical turn it is the same fingerprint.
    image = nibabel.Nifti1Image.from_filename(SCANS / "odd/orient/mni_RAS.nii.gz")
    data = np.asarray(image.dataobj)
    turned = image.affine @ np.diag([-1.0, -1.0, 1.0, 1.0])
    turned[:3, 3] = (image.affine @ [data.shape[0] - 1, data.shape[1] - 1, 0, 1])[:3]
    nibabel.save(nibabel.Nifti1Image(data[::-1, ::-1], turned), tmp_path / "lps.nii.gz")
    stored = nibabel.Nifti1Image.from_filename(tmp_path / "lps.nii.gz")
    assert nibabel.aff2axcodes(stored.affine) == ("L", "P", "S")
    again = nibabel.as_closest_canonical(stored)
    assert fingerprint(np.asarray(again.dataobj)) == fingerprint(data)
