"""The BIDS reader: names, sessions, runs, contrast agents, masks in derivatives, participants.tsv."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfoundry.cohorts.bids import BidsChoice, entities_of, parse_name, read_bids
from brainfoundry.cohorts.intake import IntakeRules
from brainfoundry.cohorts.left_out import LeftOut
from brainfoundry.core.errors import ConfigError, DataError

from .layouts import put_all

PEOPLE = "participant_id\tage\tsex\tsite\nsub-01\t61\tF\tA\nsub-02\t89+\tm\tB\n"


def read(root: Path, *modalities: str, labels="optional", choice=None, **options):
    rules = IntakeRules(modalities=modalities or ("T1w",), labels=labels)
    return read_bids(str(root), str(root.parent / "manifest.parquet"), rules, choice, **options)


def rows(root: Path, *modalities: str, **options):
    return list(read(root, *modalities, **options).rows())


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "ds"
    folder.mkdir()
    return folder


def test_subjects_and_modalities(root) -> None:
    put_all(root, [
        "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_ce-gadolinium_T1w.nii.gz",
        "sub-01/anat/sub-01_T2w.nii.gz", "sub-01/anat/sub-01_acq-3D_FLAIR.nii.gz",
        "sub-01/func/sub-01_task-rest_bold.nii.gz", "sub-01/anat/sub-01_part-phase_T1w.nii.gz",
        "sub-02/anat/sub-02_T1w.nii", "sub-03/anat/sub-03_T2w.nii.gz", "code/sub-04/anat/sub-04_T1w.nii.gz",
        "sub-01/anat/sub-01_ce-other_T1w.nii.gz",
    ])  # fmt: skip
    found = rows(root, "T1w", "T1ce", "T2w", "FLAIR")
    assert [row.key for row in found] == [("sub-01", ""), ("sub-02", ""), ("sub-03", "")]
    assert [row.reason for row in found] == ["", "missing_modality", "missing_modality"]
    assert [Path(scan.uri).name for scan in found[0].scans] == [
        "sub-01_T1w.nii.gz", "sub-01_ce-gadolinium_T1w.nii.gz", "sub-01_T2w.nii.gz",
        "sub-01_acq-3D_FLAIR.nii.gz",
    ]  # fmt: skip
    assert found[1].detail == "T1ce: no file; T2w: no file; FLAIR: no file"
    manifest = read(root)
    assert [row.reason for row in manifest.rows()] == ["", "", "missing_modality"]
    meta = manifest.meta
    assert (meta.cohort, meta.template_space, meta.skull_stripped, meta.labels) == ("bids", "", False, "")


def test_sessions(root) -> None:
    put_all(root, [
        "sub-01/ses-pre/anat/sub-01_ses-pre_T1w.nii.gz", "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
        "sub-02/anat/sub-02_T1w.nii.gz",
    ])  # fmt: skip
    assert [row.key for row in rows(root)] == [("sub-01", "2"), ("sub-01", "pre"), ("sub-02", "")]


def test_runs_are_duplicates_unless_one_is_chosen(root) -> None:
    put_all(root, [
        "sub-01/anat/sub-01_run-01_T1w.nii.gz", "sub-01/anat/sub-01_run-02_T1w.nii.gz",
        "sub-02/anat/sub-02_T1w.nii.gz", "sub-03/anat/sub-03_run-1_T1w.nii.gz",
        "sub-04/anat/sub-04_T1w.nii.gz", "sub-04/anat/sub-04_run-2_T1w.nii.gz",
    ])  # fmt: skip
    assert [row.reason for row in rows(root)] == ["duplicate", "", "", "duplicate"]
    manifest = read(root, choice=BidsChoice(entities=entities_of((), 2)))
    found = list(manifest.rows())
    assert [row.subject for row in found if row.included] == ["sub-01", "sub-02", "sub-04"]
    assert found[0].scans[0].uri.endswith("sub-01_run-02_T1w.nii.gz")
    assert (
        found[-1].scans[0].uri.endswith("sub-04_run-2_T1w.nii.gz")
    )  # what has the run, before what has none
    assert "2 files of other entities than asked for were left alone" in manifest.meta.notes


def test_entities_choose_and_the_space_is_noted(root) -> None:
    put_all(root, [
        "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_space-MNI152NLin6Asym_desc-preproc_T1w.nii.gz",
    ])  # fmt: skip
    assert [row.reason for row in rows(root)] == ["duplicate"]
    manifest = read(
        root, choice=BidsChoice(entities=entities_of(["space-MNI152NLin6Asym"]), skull_stripped=True)
    )
    (row,) = manifest.rows()
    assert row.included and "desc-preproc" in row.scans[0].uri and manifest.meta.skull_stripped
    (root / "sub-01/anat/sub-01_T1w.nii.gz").unlink()
    assert read(root).meta.template_space == "MNI152NLin6Asym"
    assert read(root, choice=BidsChoice(space="MNI152")).meta.template_space == "MNI152"
    for text in ("space", "-x", "sub-01", "space-"):
        with pytest.raises(ConfigError, match="no entity to choose by"):
            entities_of([text])
    assert entities_of(["acq-a", "space=b"], 3) == {"run": "3", "acq": "a", "space": "b"}


def test_masks_of_derivatives(root) -> None:
    anat = "sub-0{0}/ses-1/anat/sub-0{0}_ses-1_"
    for i in (1, 2, 3, 4):
        put_all(root, [anat.format(i) + "T1w.nii.gz"])
    put_all(root / "derivatives", [
        "lesions/" + anat.format(1) + "space-orig_label-lesion_mask.nii.gz",
        "brains/" + anat.format(1) + "desc-brain_mask.nii.gz",
        "deep/er/sub-02_desc-Lesion_dseg.nii.gz",  # no session in its name: its subject has one only
        "raters/" + anat.format(3) + "T1w_label-lesion_roi.nii.gz",
        "raters/" + anat.format(1) + "desc-lesion_T1w.nii.gz",
    ])  # fmt: skip
    manifest = read(root, labels="required")
    found = list(manifest.rows())
    assert [row.reason for row in found] == ["", "", "", "missing_label"]
    assert [Path(row.label.uri).name for row in found if row.label] == [
        "sub-01_ses-1_space-orig_label-lesion_mask.nii.gz", "sub-02_desc-Lesion_dseg.nii.gz",
        "sub-03_ses-1_T1w_label-lesion_roi.nii.gz",
    ]  # fmt: skip
    assert manifest.meta.labels == "binary"
    brains = rows(root, choice=BidsChoice(masks=("*desc-BRAIN*",)), labels="required")
    assert [row.reason for row in brains] == ["", *["missing_label"] * 3]
    both = rows(root, choice=BidsChoice(masks=("*",)))
    assert both[0].reason == "duplicate" and "label: 2 files" in both[0].detail
    assert all(row.label is None for row in rows(root, labels="ignore"))


def test_masks_without_a_session_of_several_are_left_alone_and_orphans_told(root) -> None:
    put_all(root, [
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
        "derivatives/l/sub-01/anat/sub-01_desc-lesion_mask.nii.gz",
        "derivatives/l/sub-09/anat/sub-09_desc-lesion_mask.nii.gz",
    ])  # fmt: skip
    manifest = read(root)
    found = list(manifest.rows())
    assert [(row.subject, row.reason) for row in found] == [
        ("sub-01", ""), ("sub-01", ""), ("sub-09", "missing_modality"),
    ]  # fmt: skip
    assert any(note.startswith("1 files were left alone") for note in manifest.meta.notes)


def test_folders_and_names_must_agree(root) -> None:
    put_all(root, [
        "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-02_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_T1w.nii.gz", "sub-01/anat/T1w.nii.gz",
    ])  # fmt: skip
    manifest = read(root)
    assert [(row.subject, len(row.scans)) for row in manifest.rows()] == [("sub-01", 1)]
    assert any(
        note.startswith("2 files were left alone because their folder") for note in manifest.meta.notes
    )
    assert "1 image files have no name of BIDS and were left alone" in manifest.meta.notes
    assert "sub-0" not in " ".join(manifest.meta.notes)


def test_participants(root) -> None:
    put_all(root, [f"sub-0{i}/anat/sub-0{i}_T1w.nii.gz" for i in (1, 2, 3)])
    (root / "participants.tsv").write_text(PEOPLE)
    manifest = read(root)
    assert [(row.age, row.sex, row.site) for row in manifest.rows()] == [
        (61.0, "F", "A"), (89.0, "M", "B"), (None, None, None),
    ]  # fmt: skip
    assert "participants table does not have 1 of the 3 subjects" in manifest.meta.notes
    own = root.parent / "own.csv"
    own.write_text("subject,age\n01,50\n")
    assert next(read(root, participants=str(own)).rows()).age == 50.0
    with pytest.raises(DataError, match="no such file"):
        read(root, participants=str(root / "none.tsv"))


UNUSED = "participants.tsv was not used: "
POOR = {
    "none": (None, "the dataset has no participants.tsv: age, sex and site are unknown"),
    "empty": ("", UNUSED + "participants table is empty"),
    "binary": ("\0\0", UNUSED + "participants table is not text"),
    "no ids": ("name\tage\nx\t5\n", UNUSED + "table has no subject column (it has name, age)"),
    "ids only": ("participant_id\n01\n", "participants table has no column age"),
    "odd cells": (
        "participant_id\tage\tsex\n01\told\tother\n",
        "participants table: 2 cells were not understood and left empty, for example age 'old' on line 2",
    ),
    "two rows": (
        "participant_id\tage\n01\t5\n01\t6\n",
        "participants table: 1 rows contradict an earlier one of their subject and were not used, for "
        "example line 3",
    ),
}


@pytest.mark.parametrize(("text", "note"), POOR.values(), ids=POOR)
def test_a_poor_participants_table_is_a_note_not_an_error(root, text, note) -> None:
    put_all(root, ["sub-01/anat/sub-01_T1w.nii.gz"])
    if text is not None:
        (root / "participants.tsv").write_text(text)
    manifest = read(root)
    assert next(manifest.rows()).included
    assert note in manifest.meta.notes


def test_remote_dataset(root) -> None:
    put_all(root, [
        "sub-01/anat/sub-01_T1w.nii.gz", "derivatives/l/sub-01/anat/sub-01_desc-lesion_mask.nii.gz",
        "code/sub-02/anat/sub-02_T1w.nii.gz", ".git/annex/sub-03/anat/sub-03_T1w.nii.gz",
    ])  # fmt: skip
    (root / "participants.tsv").write_text(PEOPLE)
    fsspec.filesystem("memory").put(str(root), "/bids-ds", recursive=True)
    rules = IntakeRules(modalities=("T1w",), labels="required")
    manifest = read_bids("memory://bids-ds", "memory://bids-out/manifest.parquet", rules)
    (row,) = manifest.rows()
    assert (row.subject, row.included, row.age) == ("sub-01", True, 61.0)


def test_lists_and_nothing_to_read(root) -> None:
    put_all(root, [f"sub-0{i}/anat/sub-0{i}_T1w.nii.gz" for i in (1, 2, 3)])
    lists = LeftOut(withdrawn=frozenset({"01"}), brain_tumours=frozenset({"sub-02"}))
    assert [row.reason for row in rows(root, left_out=lists)] == ["withdrawn", "brain_tumour", ""]
    with pytest.raises(DataError, match=r"no T2w or FLAIR scan found.*Fix: give the dataset's root"):
        read(root, "T2w", "FLAIR")
    with pytest.raises(ConfigError, match=r"unknown modality 'T1'.*choose of T1w, T1ce, T2w, FLAIR"):
        read(root, "T1")
    with pytest.raises(ConfigError, match="unknown label scheme 'ms'"):
        BidsChoice(scheme="ms")


ENTITIES = st.lists(
    st.tuples(st.sampled_from(["ses", "acq", "run", "ce", "desc"]), st.text("ab01", min_size=1, max_size=3)),
    unique_by=lambda pair: pair[0], max_size=4,
)  # fmt: skip


@given(
    subject=st.text("abC019", min_size=1, max_size=4), pairs=ENTITIES, gz=st.sampled_from([".nii", ".nii.gz"])
)
def test_names_are_taken_apart_and_put_together(subject, pairs, gz) -> None:
    entities = {"sub": subject, **dict(pairs)}
    stem = "_".join(f"{key}-{value}" for key, value in entities.items())
    name = parse_name(f"{stem}_T1w{gz}")
    assert name is not None and dict(name.entities) == entities and name.suffix == "T1w" and name.strict


@settings(deadline=None, max_examples=40)
@given(names=st.sets(st.one_of(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20),
    st.text("sub-_019T1wmaskrunses", max_size=24).map("sub-{}".format),
), max_size=6))  # fmt: skip
def test_any_names_cost_nothing(tmp_path_factory, names) -> None:
    root = tmp_path_factory.mktemp("names") / "ds"
    put_all(root, ["sub-01/anat/sub-01_T1w.nii.gz"])
    put_all(root / "sub-01" / "anat", [f"{name}.nii.gz" for name in names if len(name.encode()) < 200])
    for name in names:
        parse_name(name)
    found = {row.subject: row for row in read(root, threads=1).rows()}
    assert "sub-01" in found and found["sub-01"].reason in ("", "duplicate")
