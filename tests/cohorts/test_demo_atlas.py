"""The ATLAS-like demo cohort: ATLAS v2.0's folders, names and grid; made once, at full size."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest

from brainfoundry.cohorts import demo_atlas
from brainfoundry.cohorts.atlas import read_atlas
from brainfoundry.cohorts.demo_atlas import AFFINE, GRID, AtlasSpec, make_atlas_cohort
from brainfoundry.cohorts.demo_files import on_grid
from brainfoundry.core.errors import ConfigError, DataError

SPEC = AtlasSpec(n_subjects=1, n_no_mask=1)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "atlas"
    made = make_atlas_cohort(str(root), SPEC, workers=1)
    assert (made.files, made.made) == (3, 3)
    assert made.kinds == {"with mask": 1, "without mask": 1}
    return root


def test_layout_is_atlas_v2s(cohort) -> None:
    names = sorted(str(p.relative_to(cohort)) for p in cohort.rglob("*.nii.gz"))
    pattern = re.compile(
        r"R(90[1-4])/(sub-r\1s(\d{3}))/ses-1/anat/\2_ses-1_space-MNI152NLin2009aSym_"
        r"(T1w|label-L_desc-T1lesion_mask)\.nii\.gz"
    )
    found = [pattern.fullmatch(name) for name in names]
    assert all(found), names
    assert sorted((m[3], m[4][:3]) for m in found if m) == [("001", "T1w"), ("001", "lab"), ("002", "T1w")]


def test_the_reader_finds_each_subject(cohort, tmp_path) -> None:
    manifest = read_atlas(
        str(cohort), str(tmp_path / "m.parquet"), metadata=str(cohort / demo_atlas.METADATA)
    )
    rows = {row.subject[-3:]: row for row in manifest.rows()}
    assert {number: row.reason for number, row in rows.items()} == {"001": "", "002": "missing_label"}
    for subject in SPEC.subjects():
        row = rows[subject.name[-3:]]
        assert (row.subject, row.session, row.site) == (subject.name, "1", subject.site)
        assert (row.age, row.sex) == (subject.age, subject.sex)


def test_volumes(cohort) -> None:
    first = next(iter(SPEC.subjects()))
    image, mask = (nibabel.load(cohort / first.path(kind)) for kind in ("T1w", "label-L_desc-T1lesion_mask"))
    for volume, dtype in ((image, np.int16), (mask, np.uint8)):
        assert volume.shape == GRID == (197, 233, 189) and volume.get_data_dtype() == dtype
        assert nibabel.aff2axcodes(volume.affine) == ("R", "A", "S")
        np.testing.assert_array_equal(volume.affine, AFFINE)
        assert int(volume.header["sform_code"]) == 4
    head, lesion = (np.asarray(v.dataobj) for v in (image, mask))
    assert set(np.unique(lesion)) == {0, 1} and (head[lesion > 0] > 0).all()
    assert 2.2e6 < np.count_nonzero(head) < 4.5e6  # brain, skull and scalp, and air that is 0
    # The cerebellum lies low and behind.
    low = np.argwhere(head[:, :, 10:25] > 0)
    assert AFFINE[1, 3] + low[:, 1].mean() < -15


def test_the_grid_keeps_places_in_space() -> None:
    # A voxel of the anatomy's grid (LAS) is at the same millimetre on ATLAS's (RAS).
    from brainfoundry.cohorts.phantom import MNI_AFFINE

    mark = np.zeros((182, 218, 182), np.int16)
    mark[150, 30, 100] = 1
    moved = on_grid(mark, demo_atlas._FIRST, demo_atlas._FLIP, GRID)
    there = np.argwhere(moved)[0]
    np.testing.assert_array_equal(AFFINE @ [*there, 1], MNI_AFFINE @ [150, 30, 100, 1])


def test_reused_and_other_specs_refused(cohort) -> None:
    before = {p: p.read_bytes() for p in cohort.rglob("*") if p.is_file()}
    assert make_atlas_cohort(str(cohort), SPEC).made == 0
    with pytest.raises(DataError, match="demo cohort of another spec"):
        make_atlas_cohort(str(cohort), AtlasSpec(n_subjects=2))
    assert {p: p.read_bytes() for p in cohort.rglob("*") if p.is_file()} == before
    mask = next(cohort.rglob("*mask.nii.gz"))
    mask.unlink()
    assert make_atlas_cohort(str(cohort), SPEC, workers=1).made == 1
    assert mask.read_bytes() == before[mask]


def test_subjects_do_not_depend_on_the_others() -> None:
    few, many = (list(AtlasSpec(n_subjects=n, n_no_mask=0).subjects()) for n in (9, 200))
    assert few == many[:9]
    assert {s.site for s in many} == {"R901", "R902", "R903", "R904"} and {s.sex for s in many} == {"F", "M"}
    assert len({s.name for s in many}) == 200


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"n_no_mask": -1}, "n_no_mask is -1"),
        ({"n_subjects": 0, "n_no_mask": 0}, "0 ATLAS subjects.*Fix: ask for 1 to 999"),
    ],
)
def test_impossible_specs(spec, problem) -> None:
    with pytest.raises(ConfigError, match=problem):
        AtlasSpec(**spec)
