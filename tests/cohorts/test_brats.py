"""The BraTS reader: both ways of naming, never both in one cohort."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfoundry.cohorts.brats import MODALITIES, read_brats
from brainfoundry.cohorts.intake import IntakeRules
from brainfoundry.cohorts.left_out import LeftOut
from brainfoundry.core.errors import ConfigError, DataError

from .builders import nifti_gz
from .layouts import BRATS21, BRATS23, put, put_case


def read(root: Path, rules: IntakeRules | None = None, **options):
    return read_brats(str(root), str(root.parent / "manifest.parquet"), rules, **options)


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "brats"
    folder.mkdir()
    return folder


def test_names_until_2021(root) -> None:
    put_case(root / "TrainingData", "BraTS2021_00000")
    put_case(root / "TrainingData", "BraTS2021_00002", seg=nifti_gz(dtype="u1"))
    manifest = read(root)
    meta = manifest.meta
    assert (meta.cohort, meta.modalities, meta.labels) == ("brats", MODALITIES, "brats2021")
    assert (meta.template_space, meta.skull_stripped) == ("SRI24", True)
    rows = list(manifest.rows())
    assert [row.key for row in rows] == [("BraTS2021_00000", ""), ("BraTS2021_00002", "")]
    assert all(row.included for row in rows)
    names = [Path(scan.uri).name.removeprefix("BraTS2021_00000_") for scan in rows[0].scans]
    assert names == ["flair.nii.gz", "t1ce.nii.gz", "t1.nii.gz", "t2.nii.gz"]
    assert [scan.modality for scan in rows[0].scans] == ["FLAIR", "T1ce", "T1w", "T2w"]
    assert rows[1].label is not None and rows[1].label.uri.endswith("BraTS2021_00002_seg.nii.gz")


def test_names_from_2023_on_have_visits(root) -> None:
    put_case(root, "BraTS-GLI-00003-000", BRATS23)
    put_case(root, "BraTS-GLI-00003-001", BRATS23)
    manifest = read(root)
    rows = list(manifest.rows())
    assert [row.key for row in rows] == [("BraTS-GLI-00003", "000"), ("BraTS-GLI-00003", "001")]
    assert manifest.meta.labels == "brats2023" and all(row.included and row.label for row in rows)
    names = [Path(scan.uri).name for scan in rows[1].scans]
    assert names == [f"BraTS-GLI-00003-001-{kind}.nii.gz" for kind in ("t2f", "t1c", "t1n", "t2w")]
    assert read(root, scheme="brats2021").meta.labels == "brats2021"


def test_uncompressed_and_flat(root) -> None:
    import gzip

    for kind in BRATS21:
        put(root / f"BraTS2021_00005_{kind}.nii", gzip.decompress(nifti_gz()))
    (row,) = read(root).rows()
    assert row.included and row.scans[0].uri == str(root / "BraTS2021_00005_flair.nii")


def test_both_namings_are_refused_with_an_example_of_each(root) -> None:
    put_case(root / "old", "BraTS2021_00000")
    put_case(root / "new", "BraTS-GLI-00003-000", BRATS23)
    with pytest.raises(DataError) as mixed:
        read(root)
    line = mixed.value.line()
    for words in (
        "label schemes are mixed",
        "BraTS2021_00000",
        "BraTS-GLI-00003",
        str(root),
        "Fix: give each",
    ):
        assert words in line
    assert not (root.parent / "manifest.parquet").exists()
    assert len(list(read(root / "old").rows())) == 1


def test_missing_pieces_and_other_files(root) -> None:
    put_case(root, "BraTS2021_00000", ("t1", "t1ce", "t2", "seg"))
    put_case(root, "BraTS2021_00001", ("t1", "t1ce", "t2", "flair"))
    put_case(root, "BraTS2021_00002")
    for name in (
        "BraTS2021_00002_T1.nii.gz",
        "BraTS2021_x_t1.nii.gz",
        "mean.nii.gz",
        "BraTS2021_00002_t1.nii.gz.part",
    ):
        put(root / "BraTS2021_00002" / name)
    manifest = read(root)
    rows = list(manifest.rows())
    assert [row.reason for row in rows] == ["missing_modality", "missing_label", ""]
    assert rows[0].detail == "FLAIR: no file"
    assert manifest.meta.notes == ("3 image files have no name of BraTS and were left alone",)
    t1 = IntakeRules(modalities=("T1w",), labels="optional")
    assert [row.reason for row in read(root, t1).rows()] == [""] * 3
    assert [row.reason for row in read(root, IntakeRules(modalities=("T1ce", "T1w"))).rows()] == [
        "", "missing_label", "",
    ]  # fmt: skip
    ignored = read(root, IntakeRules(modalities=("T1w",), labels="ignore"))
    assert ignored.meta.labels == "" and all(row.label is None for row in ignored.rows())


def test_a_case_delivered_twice(root) -> None:
    put_case(root / "a", "BraTS2021_00000")
    put_case(root / "b", "BraTS2021_00000", ("t1",))
    (row,) = read(root).rows()
    assert row.reason == "duplicate" and "T1w: 2 files, of equal size" in row.detail
    assert str(root / "b" / "BraTS2021_00000" / "BraTS2021_00000_t1.nii.gz") in row.detail


def test_a_label_on_another_grid(root) -> None:
    put_case(root, "BraTS2021_00000", seg=nifti_gz((2, 2, 99)))
    put_case(root, "BraTS2021_00001", flair=nifti_gz((2, 2, 99)))
    rows = list(read(root).rows())
    assert [row.reason for row in rows] == ["label_grid_mismatch", "grid_mismatch"]
    assert "BraTS2021_00000_seg.nii.gz" in rows[0].detail


def test_withdrawn_cases(root) -> None:
    put_case(root, "BraTS2021_00000")
    put_case(root, "BraTS2021_00001")
    rows = list(read(root, left_out=LeftOut(withdrawn=frozenset({"BraTS2021_00001"}))).rows())
    assert [(row.reason, len(row.scans)) for row in rows] == [("", 4), ("withdrawn", 0)]


def test_nothing_to_read(root) -> None:
    put(root / "T1.nii.gz")
    with pytest.raises(
        DataError, match=r"no BraTS case found.*Fix: give the folder that holds BraTS2021_00000/"
    ):
        read(root)
    with pytest.raises(DataError, match=r"no such folder.*Fix: give the folder that holds case folders"):
        read(root / "nowhere")
    with pytest.raises(ConfigError, match=r"unknown modality 'T1'.*choose of FLAIR, T1ce, T1w, T2w"):
        read(root, IntakeRules(modalities=("T1",)))
    with pytest.raises(ConfigError, match="unknown label scheme 'brats'"):
        read(root, scheme="brats")


KINDS = st.sampled_from(["t1", "t1ce", "t2", "flair", "seg", "t1n", "t2f", "T1", "", "t1.t1", "x"])
NAMES = st.one_of(
    st.builds("BraTS2021_{}_{}.nii.gz".format, st.integers(0, 99999), KINDS),
    st.builds("BraTS2021{}_{}.nii".format, st.text("0_-9", max_size=5), KINDS),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20).map(
        "{}.nii.gz".format
    ),
)


@settings(deadline=None, max_examples=40)
@given(names=st.sets(NAMES, max_size=6))
def test_any_names_cost_nothing(tmp_path_factory, names) -> None:
    root = tmp_path_factory.mktemp("names") / "brats"
    put_case(root, "BraTS2021_00000")
    for name in names:
        if name not in (".", "..") and len(name.encode()) < 200:
            put(root / "other" / name)
    rows = {row.subject: row for row in read(root, threads=1).rows()}
    assert set(rows) <= {"BraTS2021_00000"} | {name.rpartition("_")[0] for name in names}
    for row in rows.values():
        assert row.included or row.reason in ("missing_modality", "missing_label", "duplicate")
