"""Small tables of the user's own: fold lists, columns to stratify by."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import zip_longest

from brainfoundry.core import files
from brainfoundry.core.errors import DataError

SUBJECT_COLUMNS = ("subject", "subject_id", "participant_id", "eid", "f.eid", "id")


def read_lines(uri: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, cells by lower-case column name) of every row; blank and `#` lines are none.

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
                    delimiter = next((d for d in "\t;" if d in line), ",")
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
