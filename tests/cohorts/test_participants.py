"""Participants tables: our columns, UK Biobank's, and what is wrong with a table."""

from __future__ import annotations

import pytest

from brainfoundry.cohorts.participants import Demographics, Recruitment, read_participants
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


# --- UK Biobank's fields at recruitment, in every spelling


SPELLINGS = {
    "converter to CSV": ("eid", "31-0.0", "21022-0.0", "21000-0.0"),
    "converter to R": ("f.eid", "f.31.0.0", "f.21022.0.0", "f.21000.0.0"),
    "converter to Stata": ("n_eid", "n_31_0_0", "n_21022_0_0", "n_21000_0_0"),
    "platform": ("eid", "p31", "p21022", "p21000_i0"),
    "platform, by entity": (
        "participant.eid",
        "participant.p31",
        "participant.p21022",
        "participant.p21000_i0",
    ),
    "titles": ("Participant ID", "Sex", "Age at recruitment", "Ethnic background | Instance 0"),
    "ukbtools": ("eid", "sex_f31_0_0", "age_at_recruitment_f21022_0_0", "ethnic_background_f21000_0_0"),
    "own": ("subject", "sex", "age_at_recruitment", "ethnicity"),
}


@pytest.mark.parametrize("names", SPELLINGS.values(), ids=SPELLINGS)
def test_fields_in_every_spelling(tmp_path, names) -> None:
    found = table(tmp_path, ",".join(names) + "\n1,1,47,1001\n2,0,66.0,5\n")
    assert found.at_recruitment("1") == Recruitment(age=47.0, sex="M", ethnicity="White")
    assert found.at_recruitment("2") == Recruitment(age=66.0, sex="F", ethnicity="Asian")
    assert found.has_recruitment_age and found.has_age and found.has_sex and found.has_ethnicity
    assert found.of("1", 2).sex == "M" and found.of("1", 2).age == 47.0


@pytest.mark.parametrize(
    ("code", "group"),
    [
        ("1", "White"), ("1003", "White"), ("2", "Mixed"), ("2004", "Mixed"), ("3", "Asian"),
        ("3004", "Asian"),
        ("4", "Black"), ("4002", "Black"), ("5", "Asian"), ("6", "Other"), ("1001.0", "White"),
        ("British", "White"), ("Any other mixed background", "Mixed"), ("chinese", "Asian"),
        ("-1", None), ("-3", None), ("-3.0", None), ("Prefer not to answer", None), ("Do not know", None),
        ("", None), ("NA", None),
    ],
)  # fmt: skip
def test_ethnic_groups_of_field_21000(tmp_path, code, group) -> None:
    assert table(tmp_path, f"eid,p21000_i0\n1,{code}\n").at_recruitment("1").ethnicity == group


def test_unanswered_is_not_an_error(tmp_path) -> None:
    found = table(tmp_path, "eid,p31,p21022,p21000_i0\n1,-3,-1,-3\n2,,,\n")
    assert (
        found.at_recruitment("1") == found.at_recruitment("2") == found.at_recruitment("9") == Recruitment()
    )


def test_a_visit_s_age_is_no_age_at_recruitment(tmp_path) -> None:
    found = table(tmp_path, "eid,21003-2.0\n1,61\n")
    assert found.at_recruitment("1").age is None and found.of("1", 2).age == 61.0
    assert found.has_age and not found.has_recruitment_age
    assert not found.has_sex and not found.has_ethnicity


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "eid,p21000_i0\n1,7\n",
            "ethnic background '7' is not known.*subject 1.*Fix: use the codes of field 21000",
        ),
        ("eid,p21000_i0\n1,10011\n", "ethnic background '10011' is not known"),
        ("eid,p21022\n1,young\n", "age 'young' is not a number"),
        ("eid,p31\n1,2\n", "sex '2' is not known"),
    ],
)
def test_answers_that_cannot_be_read(tmp_path, text, problem) -> None:
    with pytest.raises(DataError, match=problem):
        table(tmp_path, text).at_recruitment("1")
