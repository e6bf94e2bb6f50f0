"""The ATLAS reader: sites, sessions, masks and the metadata table."""

from __future__ import annotations

from pathlib import Path

import pytest

from brainfoundry.cohorts.atlas import read_atlas
from brainfoundry.cohorts.intake import IntakeRules
from brainfoundry.cohorts.left_out import LeftOut
from brainfoundry.core.errors import ConfigError, DataError

from .layouts import atlas_name, put, put_atlas


def read(root: Path, rules: IntakeRules | None = None, **options):
    return read_atlas(str(root), str(root.parent / "manifest.parquet"), rules, **options)


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "ATLAS_2"
    folder.mkdir()
    return folder


def test_sites_sessions_and_masks(root) -> None:
    put_atlas(root / "Training" / "R001", "r001s001")
    put_atlas(root / "Training" / "R034", "r034s002")
    put_atlas(root / "Training" / "R034", "r034s002", session="2")
    manifest = read(root)
    meta = manifest.meta
    assert (meta.cohort, meta.modalities, meta.labels) == ("atlas", ("T1w",), "binary")
    assert (meta.template_space, meta.skull_stripped, meta.notes) == ("MNI152NLin2009aSym", False, ())
    rows = list(manifest.rows())
    assert [(row.subject, row.session, row.site) for row in rows] == [
        ("sub-r001s001", "1", "R001"), ("sub-r034s002", "1", "R034"), ("sub-r034s002", "2", "R034"),
    ]  # fmt: skip
    assert all(row.included for row in rows)
    assert rows[0].label is not None and rows[0].label.uri.endswith("_label-L_desc-T1lesion_mask.nii.gz")


def test_without_site_folders_and_older_mask_names(root) -> None:
    anat = put_atlas(root, "r009s010", mask=False)
    put(anat / atlas_name("r009s010", "T1lesion_mask"))
    anat = put_atlas(root, "r009s011", mask=False)
    put(anat / atlas_name("r009s011", "desc-T1lesion_mask"))
    rows = list(read(root).rows())
    assert [(row.site, row.included, row.label is not None) for row in rows] == [("R009", True, True)] * 2


def test_the_hidden_test_set_has_no_masks(root) -> None:
    put_atlas(root / "R001", "r001s001")
    put_atlas(root / "R001", "r001s002", mask=False)
    assert [row.reason for row in read(root).rows()] == ["", "missing_label"]
    optional = read(root, IntakeRules(modalities=("T1w",), labels="optional"))
    assert [row.included for row in optional.rows()] == [True, True]


def test_two_masks_are_a_duplicate_and_other_names_are_left_alone(root) -> None:
    anat = put_atlas(root / "R001", "r001s001")
    put(anat / atlas_name("r001s001", "label-R_desc-T1lesion_mask"))
    put_atlas(root / "R001", "r001s002")
    put(anat / "sub-r001s001_ses-1_T1w.nii.gz")
    manifest = read(root)
    assert [row.reason for row in manifest.rows()] == ["duplicate", ""]
    assert manifest.meta.notes == ("1 image files have no name of ATLAS and were left alone",)


@pytest.mark.parametrize(
    "text",
    [
        "Subject ID,Site,Session,Age,Sex\nr001s001,R001,1,61,M\nsub-r001s002,R001,1,,Female\n",
        "\ufeffSUBJECT_ID\tAGE\tGENDER\nsub-r001s001\t61.0\tmale\nr001s002\tn/a\tF\nr999s001\tx\tx\n",
    ],
)
def test_the_metadata_table(root, text) -> None:
    put_atlas(root / "R001", "r001s001")
    put_atlas(root / "R001", "r001s002")
    table = root.parent / "meta.csv"
    table.write_text(text, encoding="utf-8")
    one, two = read(root, metadata=str(table)).rows()
    assert (one.age, one.sex, one.site) == (61.0, "M", "R001")
    assert (two.age, two.sex, two.site) == (None, "F", "R001")


def test_a_metadata_table_with_gaps_is_noted_and_one_without_ids_refused(root) -> None:
    put_atlas(root / "R001", "r001s001")
    table = root.parent / "meta.csv"
    table.write_text("subject,age\nr777s001,61\n")
    manifest = read(root, metadata=str(table))
    assert manifest.meta.notes == (
        "participants table has no column sex",
        "participants table has no column site",
        "participants table does not have 1 of the 1 subjects",
    )
    table.write_text("name,age\nx,61\n")
    with pytest.raises(DataError, match=r"no subject column \(it has name, age\).*meta\.csv.*Fix: "):
        read(root, metadata=str(table))


def test_withdrawn_with_or_without_sub(root) -> None:
    for subject in ("r001s001", "r001s002", "r001s003"):
        put_atlas(root / "R001", subject)
    lists = LeftOut(withdrawn=frozenset({"r001s001", "sub-r001s002"}))
    assert [row.reason for row in read(root, left_out=lists).rows()] == ["withdrawn", "withdrawn", ""]


def test_nothing_to_read(root) -> None:
    put(root / "sub-01_T1w.nii.gz")
    with pytest.raises(DataError, match=r"no ATLAS session found.*R001/sub-r001s001/.*prepare_bids"):
        read(root)
    with pytest.raises(ConfigError, match="ATLAS has no modalities FLAIR"):
        read(root, IntakeRules(modalities=("FLAIR",)))
