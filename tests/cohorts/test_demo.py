"""The demo cohort: brains, in UK Biobank's files, with each oddity in its place; made once, at full size."""

from __future__ import annotations

import gzip
import json
import math
import zipfile
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from brainfoundry.cohorts import demo
from brainfoundry.cohorts.demo import DemoSpec, make_demo_cohort
from brainfoundry.cohorts.phantom import (
    HEALTHY,
    MNI_AFFINE,
    MNI_SHAPE,
    Contrast,
    Lesions,
    Part,
    PhantomRanges,
    make_anatomy,
    render,
    template,
)
from brainfoundry.cohorts.ukb import UKBRules, read_ukb
from brainfoundry.core.errors import ConfigError, DataError

# One of each kind, save those that differ from another only in what is missing.
SPEC = DemoSpec(
    n_healthy=2, n_repeat=1, n_no_flair=1, n_truncated_grid=1, n_few_slices=1, n_cut_zip=1, n_damaged=1
)
T1W, FLAIR = "20252", "20253"
MEMBER = {T1W: "T1/T1_brain_to_MNI.nii.gz", FLAIR: "T2_FLAIR/T2_FLAIR_brain_to_MNI.nii.gz"}


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    """The demo cohort of `SPEC`, made in this process."""
    root = tmp_path_factory.mktemp("demo") / "ukb"
    made = make_demo_cohort(str(root), SPEC, workers=1)
    assert (made.made, made.zips, made.sessions) == (15, 15, 8)
    return root


def gz_of(root: Path, eid: int, field: str, instance: int = 2) -> bytes:
    with zipfile.ZipFile(root / f"{eid}_{field}_{instance}_0.zip") as archive:
        assert archive.testzip() is None and archive.namelist() == [MEMBER[field]]
        return archive.read(MEMBER[field])


def image_of(root: Path, eid: int, field: str, instance: int = 2) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(gz_of(root, eid, field, instance)))


def voxels(root: Path, eid: int, field: str, instance: int = 2) -> np.ndarray:
    return np.asarray(image_of(root, eid, field, instance).dataobj)


def test_intake_finds_each_oddity(cohort, tmp_path) -> None:
    manifest = read_ukb(
        str(cohort),
        str(tmp_path / "m.parquet"),
        UKBRules(instances=(2, 3)),
        participants=str(cohort / "participants.tsv"),
    )
    verdicts = {row.key: row.reason for row in manifest.rows()}
    assert verdicts == {
        ("9900001", "2"): "",
        ("9900001", "3"): "",
        ("9900002", "2"): "",
        ("9900003", "2"): "missing_modality",
        ("9900004", "2"): "too_few_slices_header",
        ("9900005", "2"): "",  # few slices with brain: only the voxels show it
        ("9900006", "2"): "unreadable_archive",
        ("9900007", "2"): "",  # damaged inside the gzip stream: only reading it all shows it
    }
    assert "1 of the other 1" in manifest.meta.notes[0]
    for row in manifest.rows():
        assert row.age is not None and 45 <= row.age <= 82 and row.sex in ("F", "M")
        assert row.site in ("11025", "11026", "11027", "11028")


@pytest.mark.parametrize("field", [T1W, FLAIR])
def test_volumes_are_what_uk_biobank_delivers(cohort, field) -> None:
    image = image_of(cohort, 9900001, field)
    data = np.asarray(image.dataobj)
    assert (image.shape, image.get_data_dtype()) == (MNI_SHAPE, np.int16)
    assert nibabel.aff2axcodes(image.affine) == ("L", "A", "S")
    np.testing.assert_array_equal(
        image.affine, [[-1, 0, 0, 90], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1]]
    )
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (4, 4)
    # The template's brain has 1.88 litres; registration leaves sizes within some 15 % of it.
    assert 1.5e6 < np.count_nonzero(data) < 2.2e6 and data.min() == 0 and data.max() < 32767
    assert np.count_nonzero(data.any((0, 1))) > 130
    assert not data[0].any() and not data[:, 0].any() and not data[:, :, -1].any()
    assert 1.5e6 < len(gz_of(cohort, 9900001, field)) < 4.5e6


def test_contrasts_and_sides_are_right(cohort) -> None:
    t1w, flair = voxels(cohort, 9900001, T1W), voxels(cohort, 9900001, FLAIR)
    np.testing.assert_array_equal(t1w > 0, flair > 0)
    maps = template()
    sure = {name: (maps[name] > 0.95).numpy() & (t1w > 0) for name in ("grey", "white")}
    fluid = ((maps["t1"] > 0.2) & (maps["t1"] < 0.35)).numpy() & (t1w > 0)
    grey, white, csf = (np.median(t1w[mask]) for mask in (sure["grey"], sure["white"], fluid))
    assert csf < grey < white
    grey, white, csf = (np.median(flair[mask]) for mask in (sure["grey"], sure["white"], fluid))
    assert csf < white < grey
    # Front and top are where the affine says: the brain's foot (cerebellum) lies low and behind.
    low = np.argwhere(t1w[:, :, 10:25] > 0)
    assert MNI_AFFINE[1, 3] + low[:, 1].mean() < -25


def test_subjects_and_visits_differ(cohort) -> None:
    first, again, other = (
        voxels(cohort, eid, T1W, instance).astype(np.float32)
        for eid, instance in ((9900001, 2), (9900001, 3), (9900002, 2))
    )

    def overlap(a, b):
        return 2 * np.count_nonzero((a > 0) & (b > 0)) / (np.count_nonzero(a) + np.count_nonzero(b))

    def likeness(a, b):
        inside = (a > 0) & (b > 0)
        return np.corrcoef(a[inside], b[inside])[0, 1]

    assert not np.array_equal(first, again)
    assert overlap(first, again) > 0.99 > 0.97 > overlap(first, other) > 0.85
    assert likeness(first, again) > 0.9 > likeness(first, other) > 0.3


def test_truncated_grid_keeps_its_place_in_space(cohort) -> None:
    image = image_of(cohort, 9900004, T1W)
    assert image.shape == (182, 218, 90) and image_of(cohort, 9900004, FLAIR).shape == (182, 218, 90)
    assert image.affine[2, 3] == -72 + 45
    assert np.asarray(image.dataobj).any((0, 1)).all()


def test_few_slices_have_brain_on_a_full_grid(cohort) -> None:
    data = voxels(cohort, 9900005, FLAIR)
    assert data.shape == MNI_SHAPE and np.count_nonzero(data.any((0, 1))) == 60


def test_damage_is_inside_a_zip_that_is_whole(cohort) -> None:
    packed = gz_of(cohort, 9900007, FLAIR)  # testzip found nothing
    with pytest.raises((zlib.error, gzip.BadGzipFile, EOFError)):
        gzip.decompress(packed)
    assert np.count_nonzero(voxels(cohort, 9900007, T1W)) > 1e6


def test_cut_zip_has_no_directory(cohort) -> None:
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(cohort / "9900006_20252_2_0.zip")
    assert np.count_nonzero(voxels(cohort, 9900006, FLAIR)) > 1e6


def test_finished_cohort_is_reused_and_a_half_made_one_completed(cohort) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in cohort.iterdir()}
    assert make_demo_cohort(str(cohort), SPEC).made == 0
    assert {path.name: path.stat().st_mtime_ns for path in cohort.iterdir()} == before

    # As an interrupted call leaves it: a record without sizes, some zips missing.
    record = json.loads((cohort / "demo.json").read_text())
    (cohort / "demo.json").write_text(json.dumps({**record, "sizes": {}}))
    lost, short = cohort / "9900002_20253_2_0.zip", cohort / "9900003_20252_2_0.zip"
    bytes_before = {path: path.read_bytes() for path in (lost, short)}
    lost.unlink()
    assert make_demo_cohort(str(cohort), SPEC, workers=1).made == 1
    assert json.loads((cohort / "demo.json").read_text()) == record
    # A zip that lost bytes since is made again, alone, and as it was: a pure function of seed and index.
    short.write_bytes(b"cut")
    assert make_demo_cohort(str(cohort), SPEC, workers=1).made == 1
    assert {path: path.read_bytes() for path in (lost, short)} == bytes_before
    assert {path.name for path in cohort.iterdir()} == set(before)


def test_other_folders_are_refused(cohort, tmp_path) -> None:
    with pytest.raises(
        DataError, match=r"demo cohort of another spec.*\"seed\": 2024.*Fix: choose another folder"
    ):
        make_demo_cohort(str(cohort), DemoSpec(n_healthy=2, seed=5))
    (tmp_path / "1000001_20252_2_0.zip").write_bytes(b"somebody's scan")
    with pytest.raises(DataError, match="not empty and holds no demo cohort"):
        make_demo_cohort(str(tmp_path), SPEC)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        make_demo_cohort(str(tmp_path / "file" / "demo"), SPEC)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"n_healthy": -1}, "n_healthy is -1"),
        ({"n_healthy": 1, "n_repeat": 2}, "n_repeat 2 is more than n_healthy 1"),
        ({"n_healthy": 100_000}, "participants.*Fix: ask for 1 to 99,999"),
    ],
)
def test_impossible_specs(spec, problem) -> None:
    with pytest.raises(ConfigError, match=problem):
        DemoSpec(**spec)


def test_eids_are_outside_the_real_range() -> None:
    spec = DemoSpec(n_healthy=5_000)
    eids = [int(subject.eid) for subject in spec.subjects()]
    assert eids == list(range(9_900_001, 9_900_001 + spec.n_subjects))
    assert all(len(str(eid)) == 7 and eid > 6_200_000 for eid in eids)
    assert demo.MAX_SUBJECTS + demo.FIRST_EID <= 10_000_000


def test_participants_do_not_depend_on_the_others() -> None:
    few = {s.eid: s for s in DemoSpec(n_healthy=3, seed=5).subjects() if s.kind == "healthy"}
    many = {s.eid: s for s in DemoSpec(n_healthy=30, seed=5).subjects() if s.kind == "healthy"}
    assert all(many[eid] == subject for eid, subject in few.items())
    assert {s.sex for s in many.values()} == {"F", "M"} and len({s.site for s in many.values()}) == 4
    assert len({s.age for s in DemoSpec(n_healthy=3, seed=6).subjects()} & {s.age for s in few.values()}) == 0


def test_age_opens_ventricles_and_lesions_can_join() -> None:
    young, old = (make_anatomy(HEALTHY, seed=3, subject=0, age=age) for age in (45.0, 82.0))
    assert old.fluid.sum() > 1.1 * young.fluid.sum()
    for part in (young.grey, young.white, young.fluid):
        assert part.shape == MNI_SHAPE and float(part.min()) >= 0 and not part[~young.brain].any()
    total = (young.grey + young.white + young.fluid)[young.brain]
    assert float((total - 1).abs().max()) < 1e-5

    axes = torch.meshgrid(*[torch.arange(n) for n in MNI_SHAPE], indexing="ij")
    ball = sum((a - c) ** 2 for a, c in zip(axes, (60, 120, 95), strict=True)) < 8**2
    box = (slice(40, 80), slice(100, 140), slice(80, 120))
    part = Part(box=box, weight=ball[box].float(), intensity={"FLAIR": 2.0})
    lesions = Lesions(parts=(part,), label=ball.to(torch.uint8))

    flair = HEALTHY.contrasts["FLAIR"]
    quiet = Contrast(
        white=(300.0, 300.0), grey=flair.grey, fluid=flair.fluid, noise=(0.0, 0.0), bias=(0.0, 0.0)
    )
    ranges = PhantomRanges(contrasts={"FLAIR": quiet, "T1w": HEALTHY.contrasts["T1w"]})
    with_lesion = render(young, ranges, "FLAIR", 3, 0, lesions=lesions)
    changed = with_lesion != render(young, ranges, "FLAIR", 3, 0)
    where = ball & young.brain
    assert np.array_equal(changed, where.numpy())
    unseen = render(young, ranges, "T1w", 3, 0, lesions=lesions)  # a modality the lesion does not show in
    assert np.array_equal(unseen, render(young, ranges, "T1w", 3, 0))
    gain = with_lesion[where.numpy()] / 600.0
    assert math.isclose(gain.min(), gain.max(), abs_tol=0.01) and 0.94 < gain.mean() < 1.06


@pytest.mark.slow
def test_processes_give_the_same_bytes(cohort, tmp_path) -> None:
    spec = DemoSpec(
        n_healthy=2, n_repeat=1, n_no_flair=0, n_truncated_grid=0, n_few_slices=0, n_cut_zip=0, n_damaged=0
    )
    made = make_demo_cohort(str(tmp_path / "demo"), spec, workers=2)
    assert made.made == 6
    for path in (tmp_path / "demo").glob("*.zip"):
        assert path.read_bytes() == (cohort / path.name).read_bytes()
