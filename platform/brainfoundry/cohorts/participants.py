"""Age, sex and site of participants from a table: our own columns, or UK Biobank's field names."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from brainfoundry.core import files
from brainfoundry.core.errors import DataError

_MISSING = {"", "na", "n/a", "nan", "null", "none"}
# UK Biobank data coding 9 (field 31): 0 female, 1 male.
_SEX = {"0": "F", "1": "M", "f": "F", "m": "M", "female": "F", "male": "M"}
_SUBJECT = ("subject", "eid", "participant_id", "f.eid")
# 21003 age when attended the assessment centre of that instance; 21022 age at recruitment; 54 the centre.
_AGE = ("age", "21003-{instance}.0", "21022-0.0")
_SEX_COLUMN = ("sex", "31-0.0")
_SITE = ("site", "54-{instance}.0", "54-2.0", "54-0.0")


@dataclass(frozen=True, kw_only=True)
class Demographics:
    """What the table says of one participant: age in years, sex "F" or "M", site as written."""

    age: float | None = None
    sex: str | None = None
    site: str | None = None


class Participants:
    """The rows of a participants table, by subject.

    Args:
        rows: subject -> cells by lower-case column name.
    """

    def __init__(self, rows: Mapping[str, Mapping[str, str]], uri: str) -> None:
        self._rows, self._uri = rows, uri

    def __contains__(self, subject: str) -> bool:
        return subject in self._rows

    def of(self, subject: str, instance: int) -> Demographics:
        """Demographics of a subject at an instance; empty where the table does not know them.

        Raises:
            DataError: an age or sex that cannot be read.
        """
        cells = self._rows.get(subject, {})

        def first(names: Sequence[str]) -> str | None:
            keys = [name.format(instance=instance) for name in names]
            return next((cells[k] for k in keys if cells.get(k, "").lower() not in _MISSING), None)

        age, sex = first(_AGE), first(_SEX_COLUMN)
        return Demographics(
            age=None if age is None else self._age(age, subject),
            sex=None if sex is None else self._sex(sex, subject),
            site=first(_SITE),
        )

    def _age(self, text: str, subject: str) -> float:
        try:
            age = float(text)
        except ValueError:
            age = math.nan
        if not 0 <= age <= 130:
            raise DataError(f"age {text!r} is not a number of years", file=self._uri, subject=subject,
                            fix="correct the table or leave the cell empty")  # fmt: skip
        return age

    def _sex(self, text: str, subject: str) -> str:
        if text.lower() not in _SEX:
            raise DataError(f"sex {text!r} is not known", file=self._uri, subject=subject,
                            fix="write F or M, or UK Biobank's 0 (female) or 1 (male)")  # fmt: skip
        return _SEX[text.lower()]


@contextmanager
def _open_text(uri: str) -> Iterator[io.TextIOBase]:
    fs, path = files.filesystem(uri)
    try:
        with (
            fs.open_input_stream(path) as raw,
            io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text,
        ):
            yield text
    except FileNotFoundError as error:
        raise DataError("no such participants table", file=uri, fix="check the path") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        fix = "save it as tab- or comma-separated UTF-8 text"
        raise DataError(f"participants table cannot be read: {error}", file=uri, fix=fix) from error


def read_participants(uri: str, wanted: Collection[str]) -> Participants:
    """Read the rows of the `wanted` subjects (a full UK Biobank table has half a million others).

    Columns, in any letter case: `subject` or `eid`; `age`, `21003-I.0` of the instance or `21022-0.0`;
    `sex` or `31-0.0`; `site`, `54-I.0`, `54-2.0` or `54-0.0`. Others are ignored.

    Raises:
        DataError: no such table, no subject column, or two rows of one subject that differ.
    """
    uri = files.absolute(uri)
    patterns = (*_AGE, *_SEX_COLUMN, *_SITE)
    known = {p.format(instance=i) for p in patterns for i in range(10)}
    rows: dict[str, dict[str, str]] = {}
    with _open_text(uri) as text:
        first = text.readline()
        delimiter = "\t" if "\t" in first else ","
        names = [name.strip().lower() for name in next(csv.reader([first], delimiter=delimiter), [])]
        key = next((names.index(name) for name in _SUBJECT if name in names), None)
        if key is None:
            raise DataError("participants table has no subject column", file=uri,
                            fix=f"name one column {' or '.join(_SUBJECT[:2])}")  # fmt: skip
        for line, cells in enumerate(csv.reader(text, delimiter=delimiter), start=2):
            subject = cells[key].strip() if len(cells) > key else ""
            if subject not in wanted:
                continue
            row = {n: c.strip() for n, c in zip(names, cells, strict=False) if n in known}
            if rows.setdefault(subject, row) != row:
                raise DataError(f"line {line} contradicts an earlier row of this subject", file=uri,
                                subject=subject, fix="keep one row a subject")  # fmt: skip
    return Participants(rows, uri)
