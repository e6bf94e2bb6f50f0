"""Demographics: everybody counted once a section, from the right source, small counts hidden together."""

from __future__ import annotations

import csv
import io
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from brainfoundry.cohorts.participants import ETHNIC_GROUPS, read_participants
from brainfoundry.reports import paper
from brainfoundry.reports.demographics import (
    AGE_BANDS,
    ALL,
    LINES,
    PAPER_ROWS,
    UNANSWERED,
    People,
    Person,
    line_of,
    people,
    tabulate,
)
from brainfoundry.reports.demographics_figure import _ages_by_sex, draw
from tests.reports.builders import FIRST, manifest, person

SECTIONS = ("age", "sex", "ethnicity", "brain tumour")


def table_file(tmp_path, text: str, n: int = 20):
    path = tmp_path / "table.csv"
    path.write_text(text)
    return read_participants(str(path), {str(FIRST + i) for i in range(n)})


@pytest.mark.parametrize(
    ("age", "band"),
    [(44, "<45"), (44.9, "<45"), (45, "45-49"), (49.99, "45-49"), (50, "50-54"), (59, "55-59"), (60, "60-64"),
     (64, "60-64"), (65, "≥65"), (90, "≥65"), (0, "<45"), (None, UNANSWERED)],
)  # fmt: skip
def test_age_bands(age, band) -> None:
    assert line_of(Person(split="", age=age), "age") == band


PERSONS = st.lists(
    st.builds(
        Person,
        split=st.sampled_from(["train", "train", "val", "test"]),
        age=st.none() | st.integers(40, 70),
        sex=st.sampled_from(["F", "M", None]),
        ethnicity=st.sampled_from([*ETHNIC_GROUPS, None]),
        tumour=st.booleans(),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=15, deadline=None)
@given(PERSONS)
def test_every_section_counts_everybody_once(persons) -> None:
    found = tabulate(People(persons=tuple(persons), sections=SECTIONS), show_small_counts=True)
    sizes = Counter(p.split for p in persons)
    for column in found.columns:
        assert found.size(column) == (len(persons) if column == ALL else sizes[column])
        for section in SECTIONS:
            counted = sum(found.shown.counts[section, line, column] for line in LINES[section])
            assert counted == found.size(column)
    assert not found.shown.hidden


@settings(max_examples=5, deadline=None)
@given(PERSONS)
def test_no_small_count_in_any_output(persons) -> None:
    found = tabulate(People(persons=tuple(persons), sections=SECTIONS))
    for data in (found.csv(), found.figure_csv()):
        for row in csv.DictReader(io.StringIO(data.decode())):
            if row.get("source", "this cohort") == "this cohort" and row.get("section") != "participants":
                assert row["count"] not in ("1", "2", "3", "4"), row
                assert not (row["count"].startswith(("<", "≥")) and row.get("percent")), row
    for row in found.printed()[1]:
        assert not any(cell.split(" ")[0] in ("1", "2", "3", "4") for cell in row[2:]), row


def test_a_lone_small_band_is_not_the_difference_of_the_others() -> None:
    ages = [42] * 3 + [47] * 20 + [62] * 30
    persons = tuple(Person(split="train", age=age, sex="F") for age in ages)
    found = tabulate(People(persons=persons, sections=("age", "sex")))
    assert found.text("age", "<45", ALL) == "<5"
    hidden = [line for line in LINES["age"] if ("age", line, ALL) in found.shown.hidden]
    assert len(hidden) >= 2
    # The figure's counts by age and sex tell no more than the table.
    assert ("age and sex", "<45", "female") in found.shown.hidden


def test_a_band_that_is_hidden_is_drawn() -> None:
    """Everybody answered: a missing "not answered" would give the hidden small band away."""
    ages = [42] * 3 + [47] * 41 + [52] * 45 + [57] * 52 + [62] * 45 + [67] * 48
    persons = tuple(Person(split="train", age=age, sex="FM"[i % 2]) for i, age in enumerate(ages))
    found = tabulate(People(persons=persons, sections=("age", "sex")))
    assert found.text("age", "<45", ALL) == "<5" and found.text("age", UNANSWERED, ALL) == "<5"
    axes = Figure().add_subplot()
    _ages_by_sex(axes, found)
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert any("answered" in label for label in labels)


def test_a_table_may_leave_out_the_prefix_of_ids(tmp_path) -> None:
    table = table_file(tmp_path, f"eid,p31\n{FIRST},1\n")
    uri = table._uri
    assert read_participants(uri, {f"sub-{FIRST}"}).of(f"sub-{FIRST}", 2).sex == "M"


def test_the_manifest_keeps_the_sex_of_whom_the_table_lacks(tmp_path) -> None:
    table = table_file(tmp_path, f"eid,p31,p21022\n{FIRST},1,47\n")
    found = people(manifest(tmp_path, [person(0), person(1, age=61.0, sex="F")]), table)
    assert Person(split="train", sex="F") in found.persons


# --- where the figures come from


def test_fields_at_recruitment_come_first(tmp_path) -> None:
    table = table_file(
        tmp_path, f"eid,p31,p21022,21003-2.0,p21000_i0\n{FIRST},1,47,61,4001\n{FIRST + 1},-3,,60,-1\n"
    )
    made = manifest(tmp_path, [person(0, age=61.0, sex="F"), person(1, "val", age=60.0, sex="F"), person(2)])
    found = people(made, table, {str(FIRST + 1)})
    assert found.age_kind == "age at recruitment" and found.sections == SECTIONS
    assert set(found.persons) == {
        Person(split="train", age=47.0, sex="M", ethnicity="Black"),
        Person(split="val", tumour=True),
        Person(split="train"),  # whose age in the manifest, if any, would be another one
    }
    assert any("counted as unanswered" in note for note in found.notes)


def test_ages_at_the_visit_are_called_so(tmp_path) -> None:
    table = table_file(tmp_path, f"eid,21003-2.0,21003-3.0\n{FIRST},61,64\n")
    found = people(manifest(tmp_path, [person(0, session="3"), person(0, session="2")]), table)
    assert found.age_kind == "age at the visit"
    assert found.persons == (Person(split="train", age=61.0),)
    assert found.sections == ("age",)


def test_without_a_table_the_manifest_speaks(tmp_path) -> None:
    rows = [
        person(0, age=None, sex="M"),
        person(0, session="3", age=70.0),
        person(1, reason="not_nifti", age=50.0),
    ]
    found = people(manifest(tmp_path, rows))
    assert found.age_kind == "age in the manifest"
    assert found.persons == (Person(split="train", age=70.0, sex="M"),)
    assert found.sections == ("age", "sex")
    assert any(note.startswith("ethnicity is not reported") for note in found.notes)


def test_tumours_under_any_spelling_of_the_id(tmp_path) -> None:
    found = people(manifest(tmp_path, [person(0), person(1)]), tumours={f"sub-{FIRST}"})
    assert sorted(p.tumour for p in found.persons) == [False, True]


def test_nothing_known_and_nobody_there(tmp_path) -> None:
    for rows in ([person(0)], [person(0, reason="not_nifti")]):
        found = tabulate(people(manifest(tmp_path, rows)))
        assert found.people.sections == () and not found.printed()[1]
        assert draw(found, beside_paper=True)[0].startswith(b"\x89PNG")


# --- beside the paper


def test_the_paper_s_table_7() -> None:
    cohort, entire = paper.table7(paper.COHORT), paper.table7(paper.ENTIRE)
    assert set(PAPER_ROWS.values()) == set(cohort) == set(entire)

    def total(printed, section):
        return sum(printed[name] for (where, _), name in PAPER_ROWS.items() if where == section)

    assert [total(cohort, s) for s in ("age", "sex", "ethnicity")] == [41_400] * 3
    # The misprint that the footnote tells.
    assert [total(entire, s) for s in ("age", "sex", "ethnicity")] == [502_410, 502_410, 502_309]
    assert cohort["Brain tumours"] == 42
    assert paper.subjects() == {"UK Biobank": 41_400, "BraTS": 1_251, "ATLAS": 655}


def test_our_rows_stand_beside_the_paper_s() -> None:
    persons = tuple(Person(split="train", age=47, sex="F", ethnicity="White") for _ in range(10))
    headers, rows = tabulate(People(persons=persons, sections=("age", "sex", "ethnicity"))).beside_paper()
    assert len(headers) == 5 and all(len(row) == 5 for row in rows)
    assert [row[1] for row in rows[:7]] == [*AGE_BANDS, UNANSWERED]
    assert rows[1][2:] == ["10 (100.0 %)", "51,866 (10.3 %)", "5,031 (12.2 %)"]
    assert rows[-1][2:] == ["", "1,210 (0.2 %)", "42 (0.1 %)"]
