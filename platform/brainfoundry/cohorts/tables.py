"""Text tables of the user's own: id lists, participants, fold lists, columns to stratify by."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import zip_longest

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


def text_lines(uri: str, what: str) -> list[tuple[int, str]]:
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
    lines = text_lines(uri, what)
    if not lines:
        raise DataError(f"{what} is empty", file=uri, fix="give a line of column names and one a subject")
    delimiter = delimiter_of(lines[0][1])
    split = [(number, cells_of(line, delimiter, uri, what)) for number, line in lines]
    columns = tuple(name.lower() for name in split[0][1])
    return Table(columns, tuple((n, dict(zip(columns, cells, strict=False))) for n, cells in split[1:]))


def delimiter_of(line: str) -> str:
    """What separates the cells: tabs, semicolons or commas, whichever the line has."""
    return next((mark for mark in ("\t", ";", ",") if mark in line), ",")


def cells_of(line: str, delimiter: str, uri: str, what: str) -> list[str]:
    """The stripped cells of a line.

    Raises:
        DataError: it is no line of a table.
    """
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error as error:
        fix = f"give the {what} as comma- or tab-separated text"
        raise DataError(f"{what} cannot be read: {error}", file=uri, fix=fix) from error


def read_lines(uri: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, cells by lower-case column name) of every row; blank and `#` lines are none.

    Line by line: a table to stratify by may be a whole UK Biobank export.

    Cells are separated by commas, tabs or semicolons, whichever the first line has.

    Raises:
        DataError: no such table, or it is no text.
    """
    uri = files.absolute(uri)
    fs, path = files.filesystem(uri)
    names: list[str] | None = None
    delimiter = ","
    try:
        with (
            fs.open_input_stream(path) as raw,
            io.TextIOWrapper(raw, encoding="utf-8-sig", newline=None) as text,
        ):
            for number, line in enumerate(text, start=1):
                if not line.strip() or line.startswith("#"):
                    continue
                if names is None:
                    delimiter = delimiter_of(line)
                cells = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))]
                if names is None:
                    names = [cell.lower() for cell in cells]
                else:
                    yield number, dict(zip_longest(names, cells[: len(names)], fillvalue=""))
    except FileNotFoundError as error:
        raise DataError("no such table", file=uri, fix="check the path") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        fix = "save it as tab- or comma-separated UTF-8 text"
        raise DataError(f"table cannot be read: {error}", file=uri, fix=fix) from error


def subject_column(names: dict[str, str], uri: str) -> str:
    """Which of a table's columns names the subject.

    Raises:
        DataError: none does.
    """
    for name in SUBJECT_COLUMNS:
        if name in names:
            return name
    raise DataError(
        f"table has no subject column (it has {', '.join(names) or 'none'})",
        file=uri,
        fix=f"name one column {' or '.join(SUBJECT_COLUMNS[:2])}",
    )
