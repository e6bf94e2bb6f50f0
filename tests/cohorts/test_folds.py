"""Folds from lists: the published five of BraTS 2021, a user's own tables, and what is wrong with them."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from brainfoundry.cohorts.datalists import read_parts
from brainfoundry.cohorts.folds import (
    case_number,
    folds_of,
    published_cases,
    published_folds,
    read_fold_list,
    write_fold_list,
)
from brainfoundry.cohorts.manifest import Manifest, Row
from brainfoundry.cohorts.splits import placed, verify_split
from brainfoundry.core.errors import ConfigError, DataError

from .people import in_manifest

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "brats21_folds.csv"


def cohort(folder: Path, subjects: list[str], sessions: int = 1, out: tuple[str, ...] = ()) -> Manifest:
    rows = [
        Row(subject=subject, session=str(session), cohort="brats")
        for subject in subjects
        for session in range(sessions)
    ]
    return in_manifest(folder, [r.excluded("duplicate", "twice") if r.subject in out else r for r in rows])


def listed(folder: Path, text: str) -> str:
    path = folder / "folds.csv"
    path.write_text(text)
    return str(path)


def test_published_folds_are_the_published_ones() -> None:
    cases = published_cases("brats21")
    assert Counter(cases.values()) == {0: 251, 1: 250, 2: 250, 3: 250, 4: 250}
    assert (cases[0], cases[2], cases[3], cases[5], cases[1619]) == (4, 1, 3, 0, 1)
    assert min(cases) == 0 and max(cases) == 1666
    if not REFERENCE.is_file():
        pytest.skip("the reference list is not there")
    with REFERENCE.open() as handle:
        assert cases == {case_number(r["subject_id"]): int(r["fold"]) for r in csv.DictReader(handle)}


def test_published_folds_of_a_cohort(tmp_path) -> None:
    subjects = ["BraTS2021_00000", "BraTS2021_00002", "BraTS2021_00001", "BraTS-GLI-00000", "x0"]
    found = published_folds(cohort(tmp_path, subjects, sessions=2))
    assert dict(found.parts) == {
        "BraTS-GLI-00000": ("", None),
        "BraTS2021_00000": ("train", 4),
        "BraTS2021_00001": ("", None),  # of the challenge's validation set
        "BraTS2021_00002": ("train", 1),
        "x0": ("", None),
    }
    (note,) = found.notes()
    assert "3 subjects of the cohort are not in the list" in note
    assert found.record["method"] == "published" and found.record["source"] == "brats21"


def test_published_folds_of_another_cohort_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=r"names no subject of this cohort.*published folds brats21.*Fix"):
        published_folds(cohort(tmp_path, ["9900001"]))
    with pytest.raises(ConfigError, match=r"no published folds 'brats20'.*Fix: choose of brats21"):
        published_cases("brats20")


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("BraTS2021_00000", 0),
        ("BraTS2021_01666", 1666),
        ("BraTS2021_0166", None),
        ("BraTS-GLI-00000-000", None),
        ("BraTS2021_00000_t1", None),
    ],
)
def test_case_numbers(name, case) -> None:
    assert case_number(name) == case


@pytest.mark.parametrize("head", ["subject_id,fold", "﻿Subject;FOLD", "# mine\n\nparticipant_id\tfold"])
def test_a_fold_list_in_any_of_its_spellings(tmp_path, head) -> None:
    mark = head.splitlines()[-1].lower().replace("fold", "")[-1]
    uri = listed(tmp_path, "\n".join([head, f"a{mark}0", f"b{mark} 4 ", f"a{mark}0", ""]))
    assert read_fold_list(uri) == {"a": ("train", 0), "b": ("train", 4)}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("a,5", r"fold '5': the 5 folds are 0 to 4 \[subject a; file .*folds.csv\]. Fix: correct the list"),
        ("a,-1", "fold '-1'"),
        ("a,1.5", "fold '1.5'"),
        ("a,", "fold ''"),
        ("a", "fold ''"),
        (
            "a,1\nb,1\na,2",
            r"two folds or splits: fold 1 and fold 2 \[subject a; file .*folds.csv\]. Fix: keep",
        ),
        ("a,1\n,2", "line 3 names no subject .*folds.csv"),
    ],
)
def test_fold_lists_that_are_wrong(tmp_path, lines, words) -> None:
    with pytest.raises(DataError, match=words):
        read_fold_list(listed(tmp_path, f"subject_id,fold\n{lines}\n"))


def test_fold_lists_without_their_columns(tmp_path) -> None:
    for head, words in (("subject_id,part", "no column fold"), ("name,fold", "no subject column")):
        with pytest.raises(DataError, match=rf"{words}.*folds.csv.*Fix"):
            read_fold_list(listed(tmp_path, f"{head}\na,1\n"))


def test_ten_folds_when_told(tmp_path) -> None:
    uri = listed(tmp_path, "subject_id,fold\na,9\n")
    assert read_fold_list(uri, 10) == {"a": ("train", 9)}


def test_unknown_subjects_are_refused_or_reported(tmp_path) -> None:
    manifest = cohort(tmp_path, ["a", "b", "c", "d"], sessions=2, out=("c",))
    uri = listed(tmp_path, "subject_id,fold\na,0\nb,1\nc,2\nzz,3\nyy,3\n")
    words = r"2 subjects that the cohort does not have: yy, zz \[subject yy; file .*folds.csv\]. Fix: correct"
    with pytest.raises(DataError, match=words):
        read_parts(uri, manifest)
    found = read_parts(uri, manifest, ignore_unknown=True)
    assert dict(found.parts) == {"a": ("train", 0), "b": ("train", 1), "d": ("", None)}
    assert (found.unlisted, found.unknown, found.excluded) == (("d",), ("yy", "zz"), ("c",))
    assert len(found.notes()) == 3 and found.record["sizes"] == {
        "fold 0": 1, "fold 1": 1, "none": 1, "train": 2,
    }  # fmt: skip


def test_a_list_of_strangers_only_is_refused(tmp_path) -> None:
    uri = listed(tmp_path, "subject_id,fold\nzz,3\n")
    with pytest.raises(DataError, match="names no subject of this cohort"):
        read_parts(uri, cohort(tmp_path, ["a"]), ignore_unknown=True)


def test_round_trip_and_record(tmp_path) -> None:
    manifest = cohort(tmp_path, ["a", "b", "c"], sessions=2)
    uri = str(tmp_path / "sub" / "folds.csv")
    write_fold_list(uri, {"b": 1, "a": 0, "c": 4})
    found = read_parts(uri, manifest)
    assert folds_of(found.parts) == {"a": 0, "b": 1, "c": 4} and not found.notes()
    rows = [placed(row, found.parts) for row in manifest.rows()]
    assert [row.fold for row in rows] == [0, 0, 1, 1, 4, 4]  # both sessions together
    assert verify_split(in_manifest(tmp_path, rows, found.record)) == []
