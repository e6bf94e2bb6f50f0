"""Who is left out by a list of the user's own: withdrawn consent, brain tumours on record."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from brainfoundry.cohorts.tables import SUBJECT_COLUMNS, cells_of, delimiter_of, text_lines
from brainfoundry.core import files
from brainfoundry.core.errors import DataError


def read_ids(uri: str) -> frozenset[str]:
    """The subject ids of a list: one a line, or a table with one of `SUBJECT_COLUMNS`.

    Blank lines and lines that begin with # do not count; a byte order mark does not matter.

    Raises:
        DataError: no such file, no text, no id in it, or several columns of which none is known.
    """
    uri = files.absolute(uri)
    lines = text_lines(uri, "id list")
    ids = frozenset(_ids(lines, uri)) if lines else frozenset()
    if not ids:
        raise DataError("id list holds no id", file=uri, fix="write one id a line, or leave the option out")
    return ids


def _ids(lines: list[tuple[int, str]], uri: str) -> Iterator[str]:
    delimiter = delimiter_of(lines[0][1])
    header = [name.lower() for name in cells_of(lines[0][1], delimiter, uri, "id list")]
    column = next((header.index(name) for name in SUBJECT_COLUMNS if name in header), None)
    for number, line in lines if column is None else lines[1:]:
        cells = cells_of(line, delimiter, uri, "id list")
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
