"""Modalities a session may lack: who joins, who still does not, and what the manifest says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from brainfoundry.cohorts.brats import read_brats
from brainfoundry.cohorts.intake import IntakeRules, optional_of
from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.cohorts.ukb import UKBRules, read_ukb
from brainfoundry.core.errors import ConfigError
from tests.cohorts.builders import nifti_gz, put_subject, put_zip
from tests.cohorts.layouts import put_case

TWO = ("FLAIR", "T1w")


def brats(root: Path, optional: tuple[str, ...], **options: object) -> Manifest:
    rules = IntakeRules(modalities=TWO, optional=optional, labels="optional", **options)  # type: ignore[arg-type]
    return read_brats(str(root), str(root.parent / "manifest.parquet"), rules)


def ukb(root: Path, optional: tuple[str, ...]) -> Manifest:
    return read_ukb(str(root), str(root.parent / "manifest.parquet"), UKBRules(optional=optional))


def verdicts(manifest: Manifest) -> list[tuple[str, list[str]]]:
    return [(row.reason, [scan.modality for scan in row.scans]) for row in manifest.rows()]


def test_a_case_without_an_optional_modality_joins(tmp_path: Path) -> None:
    root = tmp_path / "cohort"
    put_case(root, "BraTS2021_00001", ("t1", "flair", "seg"))
    put_case(root, "BraTS2021_00002", ("t1", "seg"))
    put_case(root, "BraTS2021_00003", ("flair", "seg"))
    put_case(root, "BraTS2021_00004", ("seg",))
    found = brats(root, ("FLAIR",))
    assert verdicts(found) == [
        ("", ["FLAIR", "T1w"]), ("", ["T1w"]), ("missing_modality", ["FLAIR"]), ("missing_modality", []),
    ]  # fmt: skip
    assert found.meta.modalities == TWO and found.meta.rules["optional_modalities"] == ["FLAIR"]
    assert optional_of(found.meta) == ("FLAIR",)
    assert "FLAIR is optional: 1 of the 2 included sessions lack it" in found.meta.notes
    either = brats(root, TWO)
    assert [reason for reason, _ in verdicts(either)] == ["", "", "", "missing_modality"]
    assert list(either.rows())[3].detail == "no file of any modality (FLAIR, T1w)"
    assert "T1w is optional: 1 of the 3 included sessions lack it" in either.meta.notes


def test_without_optional_modalities_all_is_as_before(tmp_path: Path) -> None:
    root = tmp_path / "cohort"
    put_case(root, "BraTS2021_00001", ("t1", "flair", "seg"))
    put_case(root, "BraTS2021_00002", ("t1", "seg"))
    found = brats(root, ())
    assert verdicts(found) == [("", ["FLAIR", "T1w"]), ("missing_modality", ["T1w"])]
    assert "optional_modalities" not in found.meta.rules and optional_of(found.meta) == ()
    assert not any("is optional" in note for note in found.meta.notes)


def test_an_optional_scan_that_is_there_must_be_sound(tmp_path: Path) -> None:
    root = tmp_path / "cohort"
    put_case(root, "BraTS2021_00001", ("t1", "flair"), flair=b"junk")
    put_case(root, "BraTS2021_00002", ("t1", "flair"), flair=nifti_gz((2, 3, 100)))
    put_case(root, "BraTS2021_00003", ("t1",), t1=nifti_gz((2, 2, 90)))
    reasons = [row.reason for row in brats(root, ("FLAIR",)).rows()]
    assert reasons[0] and reasons[1:] == ["grid_mismatch", "too_few_slices_header"]


def test_uk_biobank_too(tmp_path: Path) -> None:
    root = tmp_path / "ukb"
    put_subject(root, 9_900_001)
    put_zip(root, 9_900_002, "T1w")
    put_zip(root, 9_900_003, "FLAIR")
    assert verdicts(ukb(root, ())) == [
        ("", ["T1w", "FLAIR"]), ("missing_modality", ["T1w"]), ("missing_modality", ["FLAIR"]),
    ]  # fmt: skip
    found = ukb(root, ("FLAIR",))
    assert [reason for reason, _ in verdicts(found)] == ["", "", "missing_modality"]
    assert found.meta.rules["optional_modalities"] == ["FLAIR"]
    assert "FLAIR is optional: 1 of the 2 included sessions lack it" in found.meta.notes
    assert [reason for reason, _ in verdicts(ukb(root, ("T1w", "FLAIR")))] == ["", "", ""]


@pytest.mark.parametrize("optional", [("T2w",), ("T1w", "T1w")])
def test_optional_modalities_are_some_of_the_cohorts(optional: tuple[str, ...]) -> None:
    for rules in (IntakeRules, UKBRules):
        with pytest.raises(ConfigError, match=r"optional modalities .* are not some of T1w, FLAIR"):
            rules(modalities=("T1w", "FLAIR"), optional=optional)
