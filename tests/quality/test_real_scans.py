"""Real scans in a BIDS dataset: what scanners and pipelines really deliver, each fault found where it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from brainfoundry.quality.sources import inspection_of
from brainfoundry.quality.thumbnails import Look, picture
from brainfoundry.quality.verify import verify

SCANS = Path(__file__).parents[2] / "../shared/scans"
pytestmark = pytest.mark.skipif(
    not SCANS.is_dir(), reason="real scans are not on this machine: ../shared/scans"
)


def put(root: Path, subject: str, **images: str) -> None:
    folder = root / f"sub-{subject}" / "anat"
    folder.mkdir(parents=True)
    for suffix, name in images.items():
        (folder / f"sub-{subject}_{suffix}.nii.gz").symlink_to((SCANS / name).resolve())


def test_a_dataset_of_odd_scans(tmp_path: Path) -> None:
    ms = "lesion/ms-patient19/ms-patient19_"
    long = "odd/ms-long-patient01/ms-long-patient01_"
    put(tmp_path, "01", T1w=f"{ms}T1w.nii.gz", FLAIR=f"{ms}FLAIR.nii.gz")
    put(tmp_path, "02", T1w=f"{long}T1w.nii.gz", FLAIR=f"{long}FLAIR.nii.gz")
    put(tmp_path, "03", T1w="odd/dmri_4d.nii.gz", FLAIR=f"{ms}T2w.nii.gz")
    put(tmp_path, "04", T1w="odd/complex64.nii.gz", FLAIR=f"{ms}T2w.nii.gz")
    put(tmp_path, "05", T1w=f"{ms}T1wpost.nii.gz", FLAIR=f"{ms}FLAIR.nii.gz")
    what = inspection_of(source=str(tmp_path), cohort="bids", modalities=("T1w", "FLAIR"), min_slices=20)
    done = verify(what)
    found = {(f.code, f.subject.removeprefix("sub-"), f.modality) for f in done.findings}
    assert found >= {
        ("grid_mismatch", "02", ""),
        ("unsupported_image", "03", ""),
        ("unsupported_image", "04", ""),
        ("duplicate_subjects", "05", "FLAIR"),
    }
    # These brains were stripped, which a BIDS dataset does not claim; nothing else is wrong with them.
    rest = {f.code for f in done.findings} - {"grid_mismatch", "unsupported_image", "duplicate_subjects"}
    assert rest <= {"looks_stripped"}
    assert (done.sessions, done.scans) == (2, 4)
    for target in what.targets:
        image = picture(Look(target=target, modality="T1w"))
        assert image is not None and len(image) < 60_000
