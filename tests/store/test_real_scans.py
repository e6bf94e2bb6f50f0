"""Real scans through the store: promises kept on what scanners and pipelines really write."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest

from brainfoundry.cohorts.brats import read_brats
from brainfoundry.cohorts.exclusions import ScanError
from brainfoundry.cohorts.intake import IntakeRules
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.mask import read_mask
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.shard_task import ConvertSpec
from brainfoundry.store.volume import Volume, decode_nifti
from tests.store.builders import intake, put, stored_row, volume

SCANS = Path(__file__).parents[2] / "../shared/scans"
pytestmark = pytest.mark.skipif(
    not SCANS.is_dir(), reason="real scans are not on this machine: ../shared/scans"
)


def raw(name: str) -> bytes:
    return gzip.decompress((SCANS / name).read_bytes())


@pytest.mark.parametrize("mode", ["quantize", "lossless"])
def test_float_scans_with_negative_values_keep_their_promise(tmp_path: Path, mode: str) -> None:
    scans = {name: raw(f"lesion/ms-patient19/ms-patient19_{name}.nii.gz") for name in ("T1w", "FLAIR")}
    put(tmp_path / "ukb", 9_900_019, scans)
    spec = ConvertSpec(float_mode=mode, rows_per_shard=1)  # type: ignore[arg-type]
    done = convert(intake(tmp_path / "ukb", min_slices=100), str(tmp_path / "out"), spec, executor=inline)
    shards = ShardSet.open(str(tmp_path / "out"))
    assert shards.verify() == []
    (row,) = done.manifest.rows()
    for scan, info in zip(row.scans, shards.index["scans"][0].as_py(), strict=True):
        source = scans[scan.modality]
        assert scan.sha256 == hashlib.sha256(source).hexdigest()
        restored = shards.nifti_bytes(0, 0, scan.modality)
        if mode == "lossless":
            assert restored == source and info["coding"] == "float32"
            continue
        before, after = volume(source), volume(restored)
        assert restored[:352] == source[:352]  # header and extension flag, byte for byte
        assert after.raw_XYZ.dtype == np.float32 and before.raw_XYZ.min() < 0
        a, b = after.raw_XYZ.astype(np.float64), before.raw_XYZ.astype(np.float64)
        assert np.abs(a - b).max() <= (b.max() - b.min()) / 131_070
        assert (a[b == 0] == 0).all() and info["fixups"] < 0.01 * b.size
        image = shards.to_nifti(0, 0, scan.modality)
        assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (1, 0)
        codes = shards.read_volume(0, 0, scan.modality).astype(np.float64)
        assert np.abs(codes * info["slope"] + info["inter"] - b).max() <= info["error_bound"] * (1 + 1e-9)


@pytest.mark.parametrize(
    ("name", "reason", "words"),
    [
        ("odd/dmri_4d.nii.gz", "unsupported_image", "4D"),
        ("odd/complex64.nii.gz", "unsupported_image", "complex"),
    ],
)
def test_scans_that_are_refused(name: str, reason: str, words: str) -> None:
    with pytest.raises(ScanError, match=words) as caught:
        decode_nifti(raw(name), modality="T1w", file=name, subject="s")
    assert caught.value.reason == reason


def test_modalities_that_were_never_registered(tmp_path: Path) -> None:
    pair = [volume(raw(f"odd/ms-long-patient01/ms-long-patient01_{n}.nii.gz"), n) for n in ("T1w", "FLAIR")]
    with pytest.raises(
        ScanError, match="T1w and FLAIR lie on different grids: 320x320x39 against 320x320x36"
    ) as caught:
        stored_row(tmp_path, pair)
    assert caught.value.reason == "grid_mismatch"


@pytest.mark.parametrize(
    "name",
    [
        "odd/epi_int32_oblique.nii.gz",
        "odd/ms-long-patient01/ms-long-patient01_T1w.nii.gz",
        "healthy/IXI012-HH-1211_T1w.nii.gz",
        "stroke/sub-M2307/sub-M2307_T2w.nii.gz",
        "stroke/masks_mni/lesymap-001_lesion.nii.gz",
        "template/MNI152_2009_T1w_brain.nii.gz",
    ],
)
def test_whole_number_scans_come_back_byte_for_byte(tmp_path: Path, name: str) -> None:
    from brainfoundry.store import restore

    source = raw(name)
    row = stored_row(tmp_path, [volume(source)])
    assert row.head["scans"][0]["coding"] == "integer"
    assert restore.nifti_bytes(row, 0) == source


@pytest.mark.parametrize("mode", ["quantize", "lossless"])
@pytest.mark.parametrize("name", ["odd/dwi_b0_float64.nii.gz", "healthy/niimath_T1w_brain.nii.gz"])
def test_float_scans(tmp_path: Path, name: str, mode: str) -> None:
    from brainfoundry.store import restore

    source = raw(name)
    row = stored_row(tmp_path, [volume(source)], float_mode=mode)
    back = restore.nifti_bytes(row, 0)
    if row.head["scans"][0]["coding"] != "affine":
        assert back == source
        return
    a, b = (v.raw_XYZ.astype(np.float64) for v in (volume(back), volume(source)))
    assert np.abs(a - b).max() <= (b.max() - b.min()) / 131_070


def test_one_scene_in_four_orientations(tmp_path: Path) -> None:
    from brainfoundry.store import restore

    stored: dict[str, tuple[Volume, np.ndarray]] = {}
    for codes in ("RAS", "LPS", "PSR", "AIL"):
        source = raw(f"odd/orient/mni_{codes}.nii.gz")
        decoded = volume(source)
        assert decoded.header.orientation == codes
        row = stored_row(tmp_path, [decoded])
        assert restore.nifti_bytes(row, 0) == source
        stored[codes] = decoded, row.volume(0).astype(float)
    _, reference = stored["RAS"]
    for codes in ("LPS", "PSR", "AIL"):
        decoded, found = stored[codes]
        assert found.shape == reference.shape
        # Drawn anew in each orientation, so equal only up to resampling; any wrong flip is far off.
        assert np.corrcoef(found.ravel(), reference.ravel())[0, 1] > 0.98
        for axis in range(3):
            assert np.corrcoef(np.flip(found, axis).ravel(), reference.ravel())[0, 1] < 0.95
        np.testing.assert_allclose(decoded.affine, stored["RAS"][0].affine, atol=2.5)


def test_a_tumour_case_with_its_mask(tmp_path: Path) -> None:
    """LPS, and a scheme of which label 4 does not occur."""
    case = tmp_path / "brats" / "BraTS2021_90001"
    case.mkdir(parents=True)
    for kind in ("flair", "t1", "t1ce", "t2", "seg"):
        source = (SCANS / f"tumour/TCGA-DU-7294/TCGA-DU-7294_{kind}.nii.gz").resolve()
        (case / f"BraTS2021_90001_{kind}.nii.gz").symlink_to(source)
    rules = IntakeRules(modalities=("FLAIR", "T1ce"))
    manifest = read_brats(str(tmp_path / "brats"), str(tmp_path / "intake.parquet"), rules)
    done = convert(manifest, str(tmp_path / "out"), ConvertSpec(), executor=inline)
    (row,) = done.manifest.rows()
    shards = ShardSet.open(str(tmp_path / "out"))
    source = raw("tumour/TCGA-DU-7294/TCGA-DU-7294_seg.nii.gz")
    assert row.label is not None and row.label.sha256 == hashlib.sha256(source).hexdigest()
    assert shards.nifti_bytes(0, 0, "label") == source
    index = shards.index.to_pylist()[0]
    assert (index["has_label"], index["label_values"]) == (True, [1, 2]) and shards.meta.labels == "brats2021"
    codes = shards.read_volume(0, 0, "label")
    assert (codes == volume(source).raw_XYZ).all()  # in RAS, like the images
    # the lesion is where FLAIR is bright: a flip of one of the two would not be
    flair = shards.read_volume(0, 0, "FLAIR").astype(float)
    assert flair[codes == 2].mean() > 1.3 * flair[(flair > 0) & (codes == 0)].mean()


def test_a_lesion_mask_that_has_only_a_qform(tmp_path: Path) -> None:
    from brainfoundry.store import restore

    source = raw("lesion/ms-patient19/ms-patient19_lesion.nii.gz")
    mask = read_mask(volume(source, "label"), file="lesion.nii.gz", subject="9900001")
    image = volume(raw("lesion/ms-patient19/ms-patient19_FLAIR.nii.gz"), "FLAIR")
    row = stored_row(tmp_path, [image], labelled=True, mask=mask)
    assert mask.values == (1,) and restore.nifti_bytes(row, 1) == source
    assert int(row.volume(1).sum()) == int((volume(source).raw_XYZ > 0.5).sum()) > 100
