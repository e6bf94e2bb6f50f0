"""Who is left out by a list of the user's own: withdrawn consent, brain tumours on record."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from brainfoundry.core import files
from brainfoundry.core.errors import DataError

SUBJECT_COLUMNS = (
    "subject", "subject_id", "subject id", "participant_id", "participant id", "bids_id", "bids id", "eid",
    "f.eid", "n_eid", "id",
)  # fmt: skip
"""Names of the column that holds the ids, in any letter case, best first."""


@dataclass(frozen=True)
class Table:
    """A small text table.

    Args:
        columns: names, lower-case.
        rows: (line number in the file, cells by column name), cells stripped; blank lines and comments are
            not among them.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, str]], ...]

    def first(self, names: Collection[str]) -> str | None:
        """The first of `names` that is a column, or None."""
        return next((name for name in names if name in self.columns), None)


def read_lines(uri: str, what: str) -> list[tuple[int, str]]:
    """(number, text) of a text file's lines, without blank ones and comments (#), whatever wrote it.

    Raises:
        DataError: no such file, or no UTF-8 text.
    """
    fix = f"give the {what} as UTF-8 text"
    try:
        text = files.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{what} is not UTF-8 text: {error}", file=uri, fix=fix) from error
    except OSError as error:
        raise DataError(f"{what} cannot be read: {error}", file=uri, fix=fix) from error
    if "\0" in text:
        raise DataError(f"{what} is not text", file=uri, fix=fix)
    numbered = enumerate(text.splitlines(), start=1)
    return [(n, line) for n, line in numbered if line.strip() and not line.lstrip().startswith("#")]


def read_table(uri: str, what: str) -> Table:
    """A comma-, semicolon- or tab-separated table with a line of column names.

    Raises:
        DataError: no such file, no text, or empty.
    """
    uri = files.absolute(uri)
    lines = read_lines(uri, what)
    if not lines:
        raise DataError(f"{what} is empty", file=uri, fix="give a line of column names and one a subject")
    delimiter = _delimiter(lines[0][1])
    split = [(number, _cells(line, delimiter, uri, what)) for number, line in lines]
    columns = tuple(name.lower() for name in split[0][1])
    return Table(columns, tuple((n, dict(zip(columns, cells, strict=False))) for n, cells in split[1:]))


def _delimiter(line: str) -> str:
    return next((mark for mark in ("\t", ";", ",") if mark in line), ",")


def _cells(line: str, delimiter: str, uri: str, what: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error as error:
        fix = f"give the {what} as comma- or tab-separated text"
        raise DataError(f"{what} cannot be read: {error}", file=uri, fix=fix) from error


def read_ids(uri: str) -> frozenset[str]:
    """The subject ids of a list: one a line, or a table with one of `SUBJECT_COLUMNS`.

    Blank lines and lines that begin with # do not count; a byte order mark does not matter.

    Raises:
        DataError: no such file, no text, no id in it, or several columns of which none is known.
    """
    uri = files.absolute(uri)
    lines = read_lines(uri, "id list")
    ids = frozenset(_ids(lines, uri)) if lines else frozenset()
    if not ids:
        raise DataError("id list holds no id", file=uri, fix="write one id a line, or leave the option out")
    return ids


def _ids(lines: list[tuple[int, str]], uri: str) -> Iterator[str]:
    delimiter = _delimiter(lines[0][1])
    header = [name.lower() for name in _cells(lines[0][1], delimiter, uri, "id list")]
    column = next((header.index(name) for name in SUBJECT_COLUMNS if name in header), None)
    for number, line in lines if column is None else lines[1:]:
        cells = _cells(line, delimiter, uri, "id list")
        if column is None and len([cell for cell in cells if cell]) > 1:
            fix = f"name its id column {' or '.join(SUBJECT_COLUMNS[:2])}, or write one id a line"
            raise DataError(f"line {number} has several columns, none a subject column", file=uri, fix=fix)
        subject = cells[column or 0] if len(cells) > (column or 0) else ""
        if subject:
            yield subject


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Ids of the user's lists; None where there is no such list.

    An id with or without BIDS's "sub-" is the same id.
    """

    withdrawn: frozenset[str] | None = None
    brain_tumours: frozenset[str] | None = None

    @staticmethod
    def read(*, withdrawn: str | None = None, brain_tumours: str | None = None) -> LeftOut:
        """From the URIs of lists, as `read_ids` takes them.

        Raises:
            DataError: a list that cannot be read.
        """
        return LeftOut(
            withdrawn=None if withdrawn is None else read_ids(withdrawn),
            brain_tumours=None if brain_tumours is None else read_ids(brain_tumours),
        )

    def reason(self, subject: str) -> str:
        """`withdrawn`, `brain_tumour`, or "" for a subject on no list."""
        for reason, ids in self._lists():
            if same_ids(subject) & ids:
                return reason
        return ""

    def rules(self) -> dict[str, int]:
        """What was asked for, for the manifest's rules: the lengths of the lists, never their ids."""
        return {f"{reason}_ids": len(ids) for reason, ids in self._lists()}

    def notes(self, subjects: Collection[str]) -> list[str]:
        """One sentence a list with ids of nobody in the cohort."""
        known = {spelling for subject in subjects for spelling in same_ids(subject)}
        notes = []
        for reason, ids in self._lists():
            unknown = len(ids - known)
            if unknown:
                which = "withdrawal list" if reason == "withdrawn" else "list of brain tumours"
                notes.append(f"{unknown:,} of the {len(ids):,} ids of the {which} are of nobody here")
        return notes

    def _lists(self) -> list[tuple[str, frozenset[str]]]:
        lists = (("withdrawn", self.withdrawn), ("brain_tumour", self.brain_tumours))
        return [(reason, ids) for reason, ids in lists if ids is not None]


def same_ids(subject: str) -> frozenset[str]:
    """The spellings under which a list may hold a subject: with and without "sub-"."""
    return frozenset({subject, subject.removeprefix("sub-"), f"sub-{subject.removeprefix('sub-')}"})
