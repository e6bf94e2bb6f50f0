"""Tiny cohorts in the layouts of BraTS, ATLAS and BIDS, and the real scans beside the checkout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cohorts.builders import nifti_gz

SCANS = Path(__file__).resolve().parents[2] / ".." / "shared" / "scans"
needs_real_scans = pytest.mark.skipif(
    not SCANS.is_dir(), reason="real scans are not on this machine: ../shared/scans"
)
BRATS21 = ("t1", "t1ce", "t2", "flair", "seg")
BRATS23 = ("t1n", "t1c", "t2w", "t2f", "seg")


def put(path: Path, data: bytes | None = None) -> Path:
    """Write a file, a whole tiny scan by default."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(nifti_gz() if data is None else data)
    return path


def put_all(root: Path, names: Mapping[str, bytes | None] | list[str]) -> None:
    """Write files by their path below `root`."""
    for name in names:
        put(root / name, names[name] if isinstance(names, Mapping) else None)


def put_case(folder: Path, case: str, kinds: tuple[str, ...] = BRATS21, **data: bytes) -> Path:
    """A BraTS case folder with these kinds of files; `data` replaces single ones."""
    mark = "-" if "-" in case else "_"
    for kind in kinds:
        put(folder / case / f"{case}{mark}{kind}.nii.gz", data.get(kind))
    return folder / case


def atlas_name(subject: str, kind: str = "T1w", session: str = "1") -> str:
    """ATLAS v2.0's file name."""
    return f"sub-{subject}_ses-{session}_space-MNI152NLin2009aSym_{kind}.nii.gz"


def put_atlas(folder: Path, subject: str, *, mask: bool = True, session: str = "1") -> Path:
    """A subject of ATLAS in its anat folder, below the site's folder."""
    anat = folder / f"sub-{subject}" / f"ses-{session}" / "anat"
    put(anat / atlas_name(subject, session=session))
    if mask:
        put(anat / atlas_name(subject, "label-L_desc-T1lesion_mask", session))
    return anat


def link(path: Path, scan: str) -> Path:
    """A symlink to a real scan."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to((SCANS / scan).resolve())
    return path
