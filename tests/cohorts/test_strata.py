"""Strata: bands of age, small ones pooled, columns of the user's own."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from brainfoundry.cohorts.manifest import Row
from brainfoundry.cohorts.strata import band, people_of, read_columns, strata_of
from brainfoundry.core.errors import DataError

from .people import many


@pytest.mark.parametrize(
    ("age", "name"), [(18, "<45"), (44.9, "<45"), (45, "45-49"), (49.9, "45-49"), (64, "60-64"), (65, ">=65")]
)
def test_age_bands_are_the_papers(age, name) -> None:
    assert band(age) == name


def test_small_strata_are_pooled_with_their_neighbours_and_told() -> None:
    rows = [
        *(Row(subject=f"a{i}", session="", cohort="c", sex="F", site="big") for i in range(20)),
        *(Row(subject=f"b{i}", session="", cohort="c", sex="F", site=f"small{i % 3}") for i in range(12)),
        *(Row(subject=f"c{i}", session="", cohort="c", sex="M", site="lone") for i in range(2)),
    ]
    strata = strata_of(people_of(rows), ("sex", "site"), smallest=10)
    assert Counter(strata.of.values()) == {"F|big": 20, "F|*": 12, "*|*": 2}
    assert strata.notes == (
        "4 strata of fewer than 10 subjects were pooled: F|small0, F|small1, F|small2, M|lone",
    )


def test_what_is_unknown_is_a_stratum_and_told() -> None:
    rows = [replace(row, sex=None) if i < 4 else row for i, row in enumerate(many(40))]
    strata = strata_of(people_of(rows), ("sex",))
    assert Counter(strata.of.values())["unknown"] == 4
    assert strata.notes == ("4 subjects have no sex; they count as unknown",)
    nobody = strata_of(people_of([replace(row, site=None) for row in rows]), ("site",))
    assert "all of them: it decides nothing" in nobody.notes[0]


def test_demographics_are_those_of_the_first_session_that_has_them() -> None:
    first = Row(subject="s", session="1", cohort="c", age=44.0)
    later = Row(subject="s", session="2", cohort="c", age=46.0, sex="F")
    for rows in ([first, later], [later, first]):
        assert people_of(rows)["s"].values == {"age": 44.0, "sex": "F"}


def test_a_column_of_the_users_own(tmp_path) -> None:
    table = tmp_path / "t.tsv"
    table.write_text("﻿# made by hand\nEID\tScanner\n9900001\tPrisma\n9900002\tSkyra\n\n9900003\t\nother\tx\n")
    columns = read_columns(str(table), ["scanner"], [row.subject for row in many(4)])
    assert columns == {"scanner": {"9900001": "Prisma", "9900002": "Skyra"}}
    strata = strata_of(people_of(many(4)), ("scanner",), columns=columns)
    assert list(strata.of.values()) == ["Prisma", "Skyra", "unknown", "unknown"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("subject,x\ns,1\n", "no column 'scanner'"),
        ("who,scanner\ns,1\n", "no subject column"),
        ("subject,scanner\ns,1\ns,2\n", "line 3 contradicts an earlier row"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, text, words) -> None:
    table = tmp_path / "t.csv"
    table.write_text(text)
    with pytest.raises(DataError, match=rf"{words}.*t\.csv.*Fix"):
        read_columns(str(table), ["scanner"], ["s"])
    with pytest.raises(DataError, match="no such table"):
        read_columns(str(tmp_path / "none.csv"), ["scanner"], ["s"])
    table.write_bytes(b"subject,scanner\n\xff\xfe\n")
    with pytest.raises(DataError, match="cannot be read"):
        read_columns(str(table), ["scanner"], ["s"])
