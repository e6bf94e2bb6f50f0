"""Age, sex and site from tables that others made for people to read, such as a BIDS participants.tsv.

What such a table does not say, or says in a way that is not understood, stays empty and is noted; only a
table without a subject column is refused. (UK Biobank's have a stricter reader of their own: `participants`.)
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from brainfoundry.cohorts.left_out import same_ids
from brainfoundry.cohorts.tables import SUBJECT_COLUMNS, Table, read_table
from brainfoundry.core.errors import DataError

_COLUMNS = {
    "age": ("age", "age_years", "age_at_scan", "age at scan", "age_at_visit", "participant_age"),
    "sex": ("sex", "gender"),
    "site": ("site", "site_id", "site id", "centre", "center", "institution"),
}
_UNANSWERED = {"", "na", "n/a", "nan", "null", "none", "unknown"}
_SEX = {"f": "F", "female": "F", "w": "F", "woman": "F", "m": "M", "male": "M", "man": "M"}


@dataclass(frozen=True, kw_only=True)
class Person:
    """What the table says of one subject: age in years, sex "F" or "M", site as written."""

    age: float | None = None
    sex: str | None = None
    site: str | None = None


class People:
    """A table's persons by subject id, written with or without "sub-".

    Raises:
        DataError: no subject column.
    """

    def __init__(self, table: Table, uri: str) -> None:
        subject = table.first(SUBJECT_COLUMNS)
        if subject is None:
            raise DataError(
                f"table has no subject column (it has {', '.join(table.columns[:8])})",
                file=uri,
                fix="name the column of ids participant_id",
            )
        self._columns = {what: table.first(names) for what, names in _COLUMNS.items()}
        self._people: dict[str, Person] = {}
        self._strange: list[str] = []
        self._contradictions: list[str] = []
        for line, cells in table.rows:
            who = cells.get(subject, "").removeprefix("sub-")
            person = self._person(cells, line)
            if who and self._people.setdefault(who, person) != person:
                self._contradictions.append(f"line {line}")

    @staticmethod
    def read(uri: str) -> People:
        """From a comma-, semicolon- or tab-separated file.

        Raises:
            DataError: no such file, no text, or no subject column.
        """
        return People(read_table(uri, "participants table"), uri)

    def of(self, subject: str) -> Person:
        """What is known of a subject; nothing where the table does not have them."""
        return next((self._people[s] for s in same_ids(subject) if s in self._people), Person())

    def notes(self, subjects: Collection[str]) -> list[str]:
        """Sentences on what the table leaves open."""
        notes = [
            f"participants table has no column {what}" for what, name in self._columns.items() if not name
        ]
        unknown = sum(not same_ids(subject) & self._people.keys() for subject in subjects)
        if unknown:
            notes.append(f"participants table does not have {unknown:,} of the {len(subjects):,} subjects")
        if self._strange:
            notes.append(
                f"participants table: {len(self._strange):,} cells were not understood and left empty, "
                f"for example {self._strange[0]}"
            )
        if self._contradictions:
            notes.append(
                f"participants table: {len(self._contradictions):,} rows contradict an earlier one of their "
                f"subject and were not used, for example {self._contradictions[0]}"
            )
        return notes

    def _person(self, cells: dict[str, str], line: int) -> Person:
        def cell(what: str) -> str | None:
            text = cells.get(self._columns[what] or "", "")
            return None if text.lower() in _UNANSWERED else text

        age, sex = cell("age"), cell("sex")
        years = None if age is None else _years(age)
        letter = None if sex is None else _SEX.get(sex.lower())
        for what, text, value in (("age", age, years), ("sex", sex, letter)):
            if text is not None and value is None:
                self._strange.append(f"{what} {text[:40]!r} on line {line}")
        return Person(age=years, sex=letter, site=cell("site"))


def _years(text: str) -> float | None:
    """Years; "89+", as BIDS asks to write high ages, is 89."""
    try:
        age = float(text.removesuffix("+"))
    except ValueError:
        return None
    return age if math.isfinite(age) and 0 <= age <= 130 else None
