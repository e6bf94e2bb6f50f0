"""Real scans through a whole prediction: a tumour, multiple sclerosis, a stroke, and grids of every kind."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from brainfoundry.core import files
from brainfoundry.prediction.config import PredictConfig
from brainfoundry.prediction.outputs import Outputs
from brainfoundry.prediction.run import predict_all
from brainfoundry.prediction.sources import find_cases
from brainfoundry.prediction.spread import inline
from tests.cohorts.layouts import SCANS, link, needs_real_scans
from tests.inference.builders import assert_same_grid_to_the_bit
from tests.prediction.builders import ATLAS_TASK, BRATS, BRATS_TASK, job, save_checkpoint

pytestmark = needs_real_scans

CASES = {
    # folder's files by modality, the network's channels, the scan whose grid the mask has
    "tumour": (
        {kind: f"tumour/TCGA-DU-7294/TCGA-DU-7294_{kind}.nii.gz" for kind in ("flair", "t1ce", "t1", "t2")},
        BRATS,
    ),
    "ms": (
        {kind: f"lesion/ms-patient19/ms-patient19_{kind}.nii.gz" for kind in ("T1w", "FLAIR")},
        ("T1w", "FLAIR"),
    ),
    "stroke": ({"T2w": "stroke/sub-M2307/sub-M2307_T2w.nii.gz"}, ("T2w",)),
    "oblique": ({"T1w": "odd/epi_int32_oblique.nii.gz"}, ("T1w",)),
    "turned": ({"T1w": "odd/orient/mni_PSR.nii.gz"}, ("T1w",)),
    "no-qform": ({"T1w": "odd/dwi_b0_float64.nii.gz"}, ("T1w",)),
}


@pytest.mark.parametrize("name", CASES)
def test_masks_lie_on_the_scans_own_grid(name: str, tmp_path: Path) -> None:
    scans, modalities = CASES[name]
    for kind, scan in scans.items():
        link(tmp_path / "in" / f"case_{kind}.nii.gz", scan)
    task = BRATS_TASK if name == "tumour" else ATLAS_TASK
    # At 3 mm, so that a network at random is quick: resampled on the way in and on the way out.
    uri = save_checkpoint(tmp_path / "run", modalities=modalities, task=task, spacing_mm=3.0)
    the_job = job(tmp_path, uri, overlap=0.25)
    outputs = Outputs(the_job.out, the_job.models, the_job.options)
    source = find_cases(PredictConfig(input=str(tmp_path / "in")), the_job.space.sources)
    outputs.prepare(source.uri, overwrite=False)
    result = predict_all(the_job, source.cases, inline)
    assert not result.failed and result.predicted == 1

    line = json.loads(files.read_bytes(files.join(the_job.out, "predictions.jsonl")))
    written = gzip.decompress((tmp_path / "out" / line["mask"]).read_bytes())
    kind = {"FLAIR": "flair"}.get(modalities[0], modalities[0]) if name == "tumour" else modalities[0]
    given = gzip.decompress((SCANS / scans[kind]).read_bytes())
    assert_same_grid_to_the_bit(given, written)
    mask, scan_image = nibabel.Nifti1Image.from_bytes(written), nibabel.Nifti1Image.from_bytes(given)
    assert np.array_equal(mask.affine, scan_image.affine) and mask.get_data_dtype() == np.uint8
    labels = np.asarray(mask.dataobj)
    assert set(np.unique(labels)) <= ({0, 1, 2, 4} if name == "tumour" else {0, 1})
    # Nothing is marked far from the head: the box of the scan, a coarse voxel wider.
    assert (labels > 0).any()
    shown = np.argwhere(np.asarray(scan_image.dataobj) != 0)
    wide = np.ceil(3.0 / np.array(scan_image.header.get_zooms()[:3])).astype(int) + 1
    outside = labels.copy()
    lo, hi = np.maximum(shown.min(axis=0) - wide, 0), shown.max(axis=0) + 1 + wide
    outside[tuple(slice(a, b) for a, b in zip(lo, hi, strict=True))] = 0
    assert not outside.any()
