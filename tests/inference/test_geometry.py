"""Scans in, files out: every grid comes back to the bit, and what cannot be used is refused in words."""

from __future__ import annotations

import tempfile
import zlib
from pathlib import Path

import fsspec
import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, inv_ornt_aff

from brainfoundry.cohorts.exclusions import ScanError
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.inference import load_case
from tests.inference.builders import check_round_trip, load_one, put, space
from tests.store.builders import AFFINE, SHAPE, brain, nifti, nifti_file

SKEWED = np.array([[0.1, -1.9, 0.2, 30], [-0.05, 0.1, 2.2, -40], [1.1, 0.15, 0.1, -20], [0, 0, 0, 1]])


def scan(seed: int = 1, shape: tuple[int, int, int] = (20, 24, 18), dtype: str = "int16") -> np.ndarray:
    return brain(seed, shape, dtype, 120)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize(
    ("dtype", "suffix"), [("int16", ".nii"), ("uint8", ".nii.gz"), ("float64", ".nii.gz")]
)
def test_a_skewed_scan(tmp_path: Path, version: int, big_endian: bool, dtype: str, suffix: str) -> None:
    size = (16).to_bytes(4, "big" if big_endian else "little")
    extension = size + bytes(4) + b"dropped!"
    source = nifti_file(
        scan(dtype=dtype),
        SKEWED,
        version=version,
        big_endian=big_endian,
        scaling=(0.5, 0.0),
        extension=extension,
    )
    case = check_round_trip(put(tmp_path / f"scan{suffix}", source), source)
    assert case.reference.header.orientation == "SLA"
    assert case.spacing == pytest.approx(case.reference.spacing)
    image = (nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image).from_bytes(source)
    canonical = nibabel.as_closest_canonical(image)
    np.testing.assert_allclose(case.affine, canonical.affine)
    np.testing.assert_allclose(case.values("T1w"), canonical.get_fdata(), rtol=1e-6)
    assert case.values("T1w").dtype == np.float32


@settings(max_examples=40, deadline=None)
@given(
    axes=st.permutations(["RL", "AP", "SI"]),
    ends=st.tuples(*[st.integers(0, 1)] * 3),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    dtype=st.sampled_from(
        ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]
    ),
    version=st.integers(1, 2),
    big_endian=st.booleans(),
)
def test_any_orientation_dtype_and_byte_order(
    axes: list[str],
    ends: tuple[int, int, int],
    shape: tuple[int, int, int],
    dtype: str,
    version: int,
    big_endian: bool,
) -> None:
    codes = tuple(pair[end] for pair, end in zip(axes, ends, strict=True))
    affine = np.diag([0.9, 1.0, 1.1, 1]) @ np.linalg.inv(inv_ornt_aff(axcodes2ornt(codes), shape))
    data = np.arange(1, 1 + np.prod(shape)).reshape(shape).astype(dtype)
    source = nifti_file(data, affine, version=version, big_endian=big_endian)
    with tempfile.TemporaryDirectory() as folder:
        case = check_round_trip(put(Path(folder) / "scan.nii", source), source)
    assert "".join(codes) == case.reference.header.orientation


def test_the_box_is_that_of_all_scans(tmp_path: Path) -> None:
    first, second = np.zeros(SHAPE, np.int16), np.zeros(SHAPE, np.int16)
    first[10:20, 5:9, 7] = 3
    second[12:14, 30, 20:25] = -2
    scans = {"T1w": put(tmp_path / "a.nii", nifti(first)), "FLAIR": put(tmp_path / "b.nii", nifti(second))}
    case = load_case(scans, space("T1w", "FLAIR", intensity="ct_window"), subject="s")
    # stored L, the first axis is turned: voxels 10..20 of 40 are 20..30
    assert case.box == ((20, 5, 7), (30, 31, 25))
    assert case.x_CDHW[0, 0, 0, 0] == 0.5  # the rule's background is not what the box is made of


def test_channels_are_fed_by_name(tmp_path: Path) -> None:
    scans = {
        name: put(tmp_path / f"{name}.nii", nifti(brain(seed)))
        for name, seed in (("T1w", 1), ("FLAIR", 2), ("T2w", 3))
    }
    card = space("FLAIR", "T2w", "T1w", feeds={"FLAIR": "T1w"})
    case = load_case(scans, card, subject="s")
    assert list(case.volumes) == ["T1w", "T2w"] and case.reference.modality == "T1w"
    plain = load_case(scans, space("T1w", "T2w"), subject="s")
    for channel, other in ((0, 0), (1, 1), (2, 0)):
        assert (case.x_CDHW[channel] == plain.x_CDHW[other]).all()
    turned = load_case(scans, space("T2w", "T1w"), subject="s")
    assert turned.reference.modality == "T2w" and (turned.x_CDHW[0] == plain.x_CDHW[1]).all()


def test_scans_of_one_grid_in_two_axis_orders(tmp_path: Path) -> None:
    """The network sees them alike, and results go to the first one's axes."""
    image = nibabel.Nifti1Image(scan(), AFFINE)
    turned = image.as_reoriented(axcodes2ornt(("P", "S", "R")))
    scans = {
        "T1w": put(tmp_path / "a.nii", image.to_bytes()),
        "FLAIR": put(tmp_path / "b.nii.gz", turned.to_bytes()),
    }
    case = load_case(scans, space("FLAIR", "T1w"), subject="s")
    assert (case.x_CDHW[0] == case.x_CDHW[1]).all()
    back = nibabel.Nifti1Image.from_bytes(case.restore_labels(case.volumes["T1w"].raw_XYZ.astype(np.uint8)))
    np.testing.assert_array_equal(back.affine, turned.affine)
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(turned.dataobj))


# ---------------------------------------------------------------------------------------------------------
# Resampled


def test_maps_come_back_from_the_resampled_grid(tmp_path: Path) -> None:
    """A function that is linear in millimetres is the same function on either grid."""
    affine = np.array([[0, 0, 2.4, -30], [-1.0, 0, 0, 20], [0, 1.3, 0, -25], [0, 0, 0, 1.0]])
    source = nifti_file(brain(1, (36, 30, 17)), affine)
    case = load_one(put(tmp_path / "scan.nii.gz", source), spacing_mm=1.6)
    assert case.spacing == (1.6,) * 3 and case.x_CDHW.shape[1:] == (26, 22, 24)
    assert case.reference.raw_XYZ.shape == (17, 36, 30)
    assert np.linalg.norm(case.affine[:3, :3], axis=0) == pytest.approx([1.6] * 3)

    def ramp(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
        return (nibabel.affines.apply_affine(affine, voxels) @ [1.0, -0.5, 0.25]).astype(np.float32)

    maps = np.stack([ramp(case.affine, case.x_CDHW.shape[1:]), np.ones(case.x_CDHW.shape[1:], np.float32)])
    found = case.to_scan_grid(maps)
    assert found.shape == (2, 17, 36, 30) and found.dtype == np.float32
    expected = ramp(case.reference.affine, (17, 36, 30))
    inner = (slice(1, -1),) * 3  # beyond the last voxel centres, the nearest value goes on
    np.testing.assert_allclose(found[0][inner], expected[inner], atol=1e-4)
    assert (found[1] == 1).all()

    labels = (maps[0] > np.median(maps[0])).astype(np.uint8) * 4
    on_scan = case.labels_to_scan_grid(labels)
    assert on_scan.dtype == np.uint8 and set(np.unique(on_scan)) == {0, 4}
    truth = (expected > np.median(maps[0])) * 4
    assert (on_scan == truth).mean() > 0.95
    with pytest.raises(ValueError, match="on a scan grid of"):
        case.restore_labels(labels)
    with pytest.raises(ValueError, match="network grid is"):
        case.to_scan_grid(found)
    assert nibabel.Nifti1Image.from_bytes(case.restore_map(found[0])).shape == (36, 30, 17)


def test_resampling_to_the_same_voxels_is_no_resampling(tmp_path: Path) -> None:
    source = nifti(brain(1))
    case = check_round_trip(put(tmp_path / "scan.nii", source), source, spacing_mm=1.0)
    plain = load_one(str(tmp_path / "scan.nii"))
    np.testing.assert_allclose(case.x_CDHW.numpy(), plain.x_CDHW.numpy(), atol=1e-6)


# ---------------------------------------------------------------------------------------------------------
# Refused, or noted


def with_codes(data: bytes, qform: int, sform: int) -> bytes:
    """A little-endian NIfTI-1 file with other codes (bytes 252 to 256)."""
    return data[:252] + qform.to_bytes(2, "little") + sform.to_bytes(2, "little") + data[256:]


def test_an_unknown_orientation(tmp_path: Path) -> None:
    source = with_codes(nifti_file(scan(), SKEWED), 0, 0)
    path = put(tmp_path / "scan.nii", source)
    with pytest.raises(
        DataError, match=r"T1w is unknown: qform_code and sform_code are 0 \[subject s01; file .*fslorient"
    ):
        load_one(path)
    for codes in ("LAS", "RAS", "PIR"):
        case = load_case({"T1w": path}, space(), subject="s01", assume_orientation=codes)
        (note,) = case.notes
        assert "scan.nii: header says nothing of orientation" in note and codes in note
        assert case.reference.header.orientation == codes
        labels = (case.reference.raw_XYZ > 60).astype(np.uint8)
        restored = case.restore_labels(labels)
        assert restored[252:344] == source[252:344]  # still unknown: what was assumed is not written
        stored = np.frombuffer(restored, np.uint8, offset=352).reshape((20, 24, 18), order="F")
        np.testing.assert_array_equal(stored, scan() > 60)
    # LAS is what nibabel makes of such a file
    nibabels = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(source))
    case = load_case({"T1w": path}, space(), subject="s01", assume_orientation="LAS")
    np.testing.assert_allclose(case.affine, nibabels.affine, atol=1e-5)
    np.testing.assert_array_equal(case.values("T1w"), nibabels.get_fdata())


def test_what_is_assumed_does_not_touch_scans_that_say(tmp_path: Path) -> None:
    path = put(tmp_path / "scan.nii", nifti(scan()))
    case = load_case({"T1w": path}, space(), subject="s", assume_orientation="RPI")
    assert case.notes == () and case.reference.header.orientation == "LAS"


def test_sform_and_qform_that_disagree(tmp_path: Path) -> None:
    header = nibabel.Nifti1Image(scan(), AFFINE).header
    moved = AFFINE.copy()
    for shift, noted in ((0.5, False), (3.0, True)):
        moved[0, 3] = AFFINE[0, 3] + shift
        image = nibabel.Nifti1Image(scan(), AFFINE, header)
        image.set_qform(moved, code=1)
        image.set_sform(AFFINE, code=2)
        source = image.to_bytes()
        case = check_round_trip(put(tmp_path / "scan.nii", source), source)
        assert (case.notes == ()) is not noted
        if noted:
            assert "scan.nii: sform and qform are up to 3 mm apart; sform is used" in case.notes[0]
    only_q = with_codes(source, 1, 0)
    case = check_round_trip(put(tmp_path / "q.nii", only_q), only_q)
    assert case.notes == () and case.affine[0, 3] == pytest.approx(moved[0, 3] - 19)  # L is turned to R


def test_a_qform_that_makes_no_sense(tmp_path: Path) -> None:
    source = nifti_file(scan(), AFFINE)
    broken = source[:256] + np.array([2.0, 2.0, 2.0], "<f4").tobytes() + source[268:]
    case = load_one(put(tmp_path / "scan.nii", broken))
    assert "qform makes no sense" in case.notes[0]


def test_pixdim_that_is_not_the_affines(tmp_path: Path) -> None:
    source = with_codes(nifti_file(scan(), np.diag([2.0, 2, 2, 1])), 0, 1)
    thin = source[:80] + np.array([1.0, 1.0, 1.0], "<f4").tobytes() + source[92:]
    (note,) = load_one(put(tmp_path / "scan.nii", thin)).notes
    assert "voxels are 2x2x2 mm by the affine and 1x1x1 mm by pixdim" in note


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.zeros((8, 8, 8), np.int16), "T1w is nothing but background"),
        (np.full((8, 8, 8), np.nan, np.float32), "NaN or infinite"),
        (np.ones((8, 8, 8, 3), np.int16), "4D"),
        (np.ones((8, 8, 8), np.complex64), "complex"),
    ],
)
def test_voxels_that_cannot_be_used(tmp_path: Path, data: np.ndarray, words: str) -> None:
    path = put(tmp_path / "bad.nii.gz", nibabel.Nifti1Image(data, AFFINE).to_bytes())
    with pytest.raises(ScanError, match=words) as caught:
        load_one(path)
    assert caught.value.file == path and caught.value.subject == "s01"


def test_rgb(tmp_path: Path) -> None:
    data = np.zeros((8, 8, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(ScanError, match="RGB"):
        load_one(put(tmp_path / "rgb.nii", nibabel.Nifti1Image(data, AFFINE).to_bytes()))


def test_one_voxel_that_is_not_finite(tmp_path: Path) -> None:
    data = scan().astype(np.float32)
    data[3, 4, 5] = np.inf
    with pytest.raises(ScanError, match="1 of 8,640 voxels are NaN or infinite"):
        load_one(put(tmp_path / "bad.nii", nifti(data)))


def test_grids_that_differ_name_both_files(tmp_path: Path) -> None:
    moved = AFFINE.copy()
    moved[2, 3] += 2
    for name, data in (("shape", nifti(brain(2, (40, 44, 37)))), ("place", nifti(brain(2), moved))):
        scans = {
            "T1w": put(tmp_path / "a.nii", nifti(brain(1))),
            "FLAIR": put(tmp_path / f"{name}.nii", data),
        }
        with pytest.raises(ScanError, match=f"different grids.*a.nii and .*{name}.nii.*register"):
            load_case(scans, space("T1w", "FLAIR"), subject="s")


def test_a_missing_modality_names_what_is_there_and_what_is_wanted() -> None:
    card = space("T1w", "FLAIR", "T2w", feeds={"FLAIR": "T1w"})
    with pytest.raises(DataError) as caught:
        load_case({"FLAIR": "b.nii", "T1ce": "c.nii"}, card, subject="s07")
    line = caught.value.line()
    assert line.startswith("T1w, T2w missing: there is FLAIR, T1ce, and")
    assert "T1w, FLAIR (fed the T1w, says the card), T2w" in line and "s07" in line and "feeds" in line
    with pytest.raises(DataError, match="there is none"):
        load_case({}, space(), subject="s")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_one(str(tmp_path / "gone.nii"))
    with pytest.raises(DataError, match="T1w cannot be read"):
        load_one(str(tmp_path))
    whole = put(tmp_path / "scan.nii.gz", nifti(brain(1)))
    packed = Path(whole).read_bytes()
    for name, data, words in (
        ("short", packed[: len(packed) // 2], "cut short"),
        ("crc", packed[:-8] + bytes(8), "damaged"),
        ("text", b"not a scan", "not a NIfTI"),
        ("empty", b"", "empty"),
        ("bomb", zip_of(nifti(brain(1)) + bytes(80 << 20)), "unpacks to more"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ScanError, match=words):
            load_one(str(tmp_path / name))


def zip_of(data: bytes) -> bytes:
    pack = zlib.compressobj(1, wbits=31)
    return pack.compress(data) + pack.flush()


def test_a_scan_on_remote_storage() -> None:
    source = nifti(brain(1))
    fsspec.filesystem("memory").pipe("/case/t1.nii.gz", zip_of(source))
    case = load_one("memory://case/t1.nii.gz")
    assert case.reference.prefix == source[:352]


def test_an_unknown_intensity_rule(tmp_path: Path) -> None:
    path = put(tmp_path / "scan.nii", nifti(scan()))
    with pytest.raises(ConfigError, match="intensity rule 'minmax' does not exist"):
        load_one(path, intensity="minmax")


def test_only_labels_are_written_as_labels(tmp_path: Path) -> None:
    case = load_one(put(tmp_path / "scan.nii", nifti(scan())))
    with pytest.raises(TypeError, match="safe"):
        case.restore_labels(np.zeros((20, 24, 18), np.int64))
    mask = np.zeros((20, 24, 18), bool)
    assert case.restore_labels(mask) == case.restore_labels(mask.astype(np.uint8))
    assert len(case.restore_map(np.zeros((20, 24, 18)))) == 352 + 4 * mask.size


def test_the_box_of_results_reaches_beyond_a_resampled_brain(tmp_path: Path) -> None:
    path = put(tmp_path / "scan.nii", nifti(brain(1)))
    plain, coarse = load_one(path), load_one(path, spacing_mm=2.0)
    assert plain.result_box == plain.box
    (lo, hi), (more_lo, more_hi) = coarse.box, coarse.result_box
    shape = coarse.x_CDHW.shape[1:]
    assert more_lo == tuple(max(a - 1, 0) for a in lo)
    assert more_hi == tuple(min(b + 1, side) for b, side in zip(hi, shape, strict=True))
    assert coarse.result_box != coarse.box
