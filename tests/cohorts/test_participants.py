"""Participants tables: our columns, UK Biobank's, and what is wrong with a table."""

from __future__ import annotations

import pytest

from brainfoundry.cohorts.participants import Demographics, read_participants
from brainfoundry.core.errors import DataError


def table(tmp_path, text: str, wanted=("1", "2", "3")):
    path = tmp_path / "participants.txt"
    path.write_text(text)
    return read_participants(str(path), set(wanted))


def test_own_columns(tmp_path) -> None:
    found = table(tmp_path, "Subject\tAge\tSex\tSite\n1\t61.5\tfemale\tLeeds\n2\tNA\t\t\n9\tbad\t\t\n")
    assert found.of("1", 2) == Demographics(age=61.5, sex="F", site="Leeds")
    assert found.of("2", 2) == found.of("3", 2) == Demographics()
    assert "2" in found and "3" not in found and "9" not in found


def test_uk_biobank_columns_by_instance(tmp_path) -> None:
    names = "eid,31-0.0,21022-0.0,21003-2.0,21003-3.0,54-2.0,54-3.0"
    found = table(tmp_path, f'{names}\n"1",1,50,61,64,11025,11027\n2,0,55,,,11026,\n')
    assert found.of("1", 2) == Demographics(age=61.0, sex="M", site="11025")
    assert found.of("1", 3) == Demographics(age=64.0, sex="M", site="11027")
    assert found.of("2", 3) == Demographics(age=55.0, sex="F", site="11026")


def test_only_wanted_subjects_are_kept(tmp_path) -> None:
    found = table(tmp_path, "eid,age\n" + "".join(f"{i},50\n" for i in range(1000)), wanted=("5", "7"))
    assert sorted(s for s in map(str, range(1000)) if s in found) == ["5", "7"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("person,age\n1,50\n", "no subject column.*Fix: name one column subject or eid"),
        ("", "no subject column"),
        ("eid,age\n1,old\n", "age 'old' is not a number of years.*subject 1"),
        ("eid,age\n1,-3\n", "age '-3' is not a number of years"),
        ("eid,sex\n1,x\n", "sex 'x' is not known.*Fix: write F or M"),
        ("eid,age\n1,50\n2,50\n1,51\n", "line 4 contradicts an earlier row.*subject 1"),
    ],
)
def test_wrong_tables_are_named(tmp_path, text, problem) -> None:
    with pytest.raises(DataError, match=problem):
        table(tmp_path, text).of("1", 2)


def test_files_that_are_no_table(tmp_path) -> None:
    with pytest.raises(DataError, match="no such participants table"):
        read_participants(str(tmp_path / "none.tsv"), {"1"})
    (tmp_path / "x.xlsx").write_bytes(b"PK\x03\x04\xff\xfe" * 100)
    with pytest.raises(DataError, match=r"cannot be read.*Fix: save it as"):
        read_participants(str(tmp_path / "x.xlsx"), {"1"})
