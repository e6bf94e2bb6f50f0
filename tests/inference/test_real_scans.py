"""Real scans through inference's geometry and back: headers to the bit, labels to the voxel."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from brainfoundry.cohorts.exclusions import ScanError
from brainfoundry.inference import load_case
from tests.inference.builders import (
    assert_same_grid_to_the_bit,
    check_round_trip,
    decoded,
    fields,
    load_one,
    space,
)

SCANS = Path(__file__).parents[2] / "../shared/scans"
pytestmark = pytest.mark.skipif(
    not SCANS.is_dir(), reason="real scans are not on this machine: ../shared/scans"
)


def raw(name: str) -> bytes:
    return gzip.decompress((SCANS / name).read_bytes())


def path(name: str) -> str:
    return str(SCANS / name)


@pytest.mark.parametrize(
    ("name", "qform", "sform"),
    [
        ("odd/orient/mni_RAS.nii.gz", 0, 1),
        ("odd/orient/mni_LPS.nii.gz", 0, 1),
        ("odd/orient/mni_PSR.nii.gz", 0, 1),
        ("odd/orient/mni_AIL.nii.gz", 0, 1),
        ("odd/epi_int32_oblique.nii.gz", 1, 1),
        ("odd/dwi_b0_float64.nii.gz", 0, 2),
        ("odd/ms-long-patient01/ms-long-patient01_T1w.nii.gz", 2, 1),
        ("healthy/IXI012-HH-1211_T1w.nii.gz", 1, 1),
        ("template/MNI152_2009_T1w_brain.nii.gz", 4, 4),
    ],
)
def test_every_grid_comes_back(name: str, qform: int, sform: int) -> None:
    source = raw(name)
    header = fields(source)
    assert (header["qform_code"], header["sform_code"]) == (qform, sform)
    case = check_round_trip(path(name), source)
    assert case.notes == ()


@pytest.mark.parametrize(
    ("scan", "mask"),
    [
        ("stroke/sub-M2307/sub-M2307_T2w.nii.gz", "stroke/sub-M2307/sub-M2307_lesion.nii.gz"),
        ("lesion/ms-patient19/ms-patient19_FLAIR.nii.gz", "lesion/ms-patient19/ms-patient19_lesion.nii.gz"),
    ],
)
def test_a_mask_comes_back_voxel_for_voxel(scan: str, mask: str) -> None:
    """The second pair has a qform only."""
    check_round_trip(path(scan), raw(scan), raw(mask))


def test_a_tumour_case_whose_scans_have_different_codes() -> None:
    kinds = {"FLAIR": "flair", "T1ce": "t1ce", "T1w": "t1", "T2w": "t2"}
    names = {m: f"tumour/TCGA-DU-7294/TCGA-DU-7294_{k}.nii.gz" for m, k in kinds.items()}
    codes = {m: int(fields(raw(n))["qform_code"]) for m, n in names.items()}
    assert codes == {"FLAIR": 2, "T1ce": 1, "T1w": 2, "T2w": 2}
    scans = {modality: path(name) for modality, name in names.items()}
    mask = raw("tumour/TCGA-DU-7294/TCGA-DU-7294_seg.nii.gz")
    labels = decoded(mask).raw_XYZ
    for first in ("FLAIR", "T1ce"):
        order = (first, *(m for m in names if m != first))
        case = load_case(scans, space(*order), subject="TCGA-DU-7294")
        restored = case.restore_labels(labels)
        assert_same_grid_to_the_bit(raw(names[first]), restored)
        assert restored[352:] == mask[-labels.nbytes :]
        assert int(fields(restored)["qform_code"]) == codes[first]
    # the box holds the brain, of which the lesion is a part
    inside = tuple(slice(lo, hi) for lo, hi in zip(*case.box, strict=True))
    assert labels[inside].sum() == labels.sum() > 0 and labels[inside].size < 0.5 * labels.size
    brain = case.x_CDHW[case.x_CDHW != 0]
    assert abs(float(brain.mean())) < 0.01 and abs(float(brain.std()) - 1) < 0.01


def test_labels_through_a_resampled_grid() -> None:
    """A mask goes to 2 mm and back to 1 mm: its rim is smoothed, its volume and place are kept."""
    name = "stroke/sub-M2307/sub-M2307_T2w.nii.gz"
    case = load_one(path(name), spacing_mm=2.0)
    assert case.x_CDHW.shape[1:] == (72, 84, 74)
    truth = decoded(raw("stroke/sub-M2307/sub-M2307_lesion.nii.gz")).raw_XYZ > 0
    coarse = truth.reshape(72, 2, 84, 2, 74, 2).mean(axis=(1, 3, 5), dtype=np.float32)
    back = case.to_scan_grid(coarse[None])[0]
    assert back.sum() == pytest.approx(truth.sum(), rel=1e-4)
    where = np.stack(np.meshgrid(*map(np.arange, truth.shape), indexing="ij"))
    centres = [(where * mask).sum(axis=(1, 2, 3)) / mask.sum() for mask in (back, truth)]
    np.testing.assert_allclose(*centres, atol=0.01)  # voxels
    found = back > 0.5
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.85
    image = nibabel.Nifti1Image.from_bytes(case.restore_labels(found))
    np.testing.assert_array_equal(image.affine, nibabel.load(path(name)).affine)


@pytest.mark.parametrize(
    ("name", "words"), [("odd/dmri_4d.nii.gz", "4D"), ("odd/complex64.nii.gz", "complex")]
)
def test_scans_that_are_refused(name: str, words: str) -> None:
    with pytest.raises(ScanError, match=words):
        load_one(path(name))


def test_modalities_that_were_never_registered() -> None:
    scans = {m: path(f"odd/ms-long-patient01/ms-long-patient01_{m}.nii.gz") for m in ("T1w", "FLAIR")}
    with pytest.raises(ScanError, match=r"320x320x39 against 320x320x36.*_T1w.nii.gz and .*_FLAIR.nii.gz"):
        load_case(scans, space("T1w", "FLAIR"), subject="patient01")
