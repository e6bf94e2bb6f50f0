"""Age, sex, site and ethnicity of participants from a table: our columns, or UK Biobank's in any spelling."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from brainfoundry.cohorts.left_out import same_ids
from brainfoundry.core import files
from brainfoundry.core.errors import DataError

_MISSING = {"", "na", "n/a", "nan", "null", "none"}
# UK Biobank data coding 9 (field 31): 0 female, 1 male.
_SEX = {"0": "F", "1": "M", "f": "F", "m": "M", "female": "F", "male": "M"}
_SUBJECT = ("subject", "eid", "participant_id", "participant id", "f.eid", "participant.eid", "n_eid")
# 21003 age when attended the assessment centre of that instance; 21022 age at recruitment; 54 the centre.
_RECRUITED = "21022-0.0"
_AGE = ("age", "21003-{instance}.0", _RECRUITED)
_SEX_COLUMN = ("sex", "31-0.0")
_SITE = ("site", "54-{instance}.0", "54-2.0", "54-0.0")
_ETHNICITY = "21000-0.0"
# Do not know, prefer not to answer (UK Biobank data coding 1001 and most others), as codes and as words.
_UNANSWERED = {"-1", "-3", "do not know", "prefer not to answer"}

# Spellings of field F, instance I, array A, beside F-I.A of UK Biobank's own converter to CSV.
_SPELLINGS = tuple(
    re.compile(pattern)
    for pattern in (
        r"f\.(?P<field>\d+)\.(?P<instance>\d+)\.(?P<array>\d+)",  # its converter to R
        r"[nscx]_(?P<field>\d+)_(?P<instance>\d+)_(?P<array>\d+)",  # its converter to Stata
        r"(?:participant\.)?p(?P<field>\d+)(?:_i(?P<instance>\d+))?(?:_a(?P<array>\d+))?",  # its platform
        r"\w+_f(?P<field>\d+)_(?P<instance>\d+)_(?P<array>\d+)",  # ukbtools
        r"(?P<field>\d{2,5})",
    )
)
_WORDS = {
    "age at recruitment": _RECRUITED,
    "age_at_recruitment": _RECRUITED,
    "ethnic background": _ETHNICITY,
    "ethnic background | instance 0": _ETHNICITY,
    "ethnicity": _ETHNICITY,
}

ETHNIC_GROUPS = ("White", "Mixed", "Asian", "Black", "Other")
"""Groups of field 21000 as the paper's Table 7 has them: Chinese (code 5) is counted with Asian."""
_GROUP_OF_CODE = {"1": "White", "2": "Mixed", "3": "Asian", "4": "Black", "5": "Asian", "6": "Other"}
# Data coding 1001 in words, lower-case, for tables that were decoded.
_GROUP_OF_WORDS = {
    **dict.fromkeys(("white", "british", "irish", "any other white background"), "White"),
    **dict.fromkeys(("mixed", "white and black caribbean", "white and black african", "white and asian",
                     "any other mixed background"), "Mixed"),
    **dict.fromkeys(("asian", "asian or asian british", "indian", "pakistani", "bangladeshi", "chinese",
                     "any other asian background"), "Asian"),
    **dict.fromkeys(("black", "black or black british", "caribbean", "african",
                     "any other black background"), "Black"),
    **dict.fromkeys(("other", "other ethnic group"), "Other"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Demographics:
    """What the table says of one participant: age in years, sex "F" or "M", site as written."""

    age: float | None = None
    sex: str | None = None
    site: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recruitment:
    """What a participant was at recruitment; None where it is missing or was not answered.

    Args:
        age: years (field 21022).
        sex: "F" or "M" (field 31).
        ethnicity: one of `ETHNIC_GROUPS` (field 21000).
    """

    age: float | None = None
    sex: str | None = None
    ethnicity: str | None = None


class Participants:
    """The rows of a participants table, by subject.

    Args:
        rows: subject -> cells by column name, lower-case, UK Biobank's fields as F-I.A.
        columns: those of the table that are known here.
    """

    def __init__(
        self, rows: Mapping[str, Mapping[str, str]], uri: str, columns: Collection[str] = ()
    ) -> None:
        self._rows, self._uri = rows, uri
        self._columns = frozenset(columns)

    def __contains__(self, subject: str) -> bool:
        return subject in self._rows

    @property
    def has_recruitment_age(self) -> bool:
        """True where there is a column of the age at recruitment (field 21022)."""
        return _RECRUITED in self._columns

    @property
    def has_age(self) -> bool:
        """True where there is any column of ages."""
        return any(c == "age" or c.startswith("21003-") or c == _RECRUITED for c in self._columns)

    @property
    def has_sex(self) -> bool:
        """True where there is a column of sex (field 31)."""
        return not self._columns.isdisjoint(_SEX_COLUMN)

    @property
    def has_ethnicity(self) -> bool:
        """True where there is a column of ethnic background (field 21000)."""
        return _ETHNICITY in self._columns

    def of(self, subject: str, instance: int) -> Demographics:
        """Demographics of a subject at an instance; empty where the table does not know them.

        Raises:
            DataError: an age or sex that cannot be read.
        """
        age = self._first(subject, [name.format(instance=instance) for name in _AGE])
        sex = self._first(subject, _SEX_COLUMN)
        return Demographics(
            age=None if age is None else self._age(age, subject),
            sex=None if sex is None else self._sex(sex, subject),
            site=self._first(subject, [name.format(instance=instance) for name in _SITE]),
        )

    def at_recruitment(self, subject: str) -> Recruitment:
        """Age at recruitment, sex and ethnic group; "do not know" and "prefer not to answer" are None.

        Raises:
            DataError: a value that cannot be read.
        """
        age, sex = self._answer(subject, (_RECRUITED,)), self._answer(subject, _SEX_COLUMN)
        ethnicity = self._answer(subject, (_ETHNICITY,))
        return Recruitment(
            age=None if age is None else self._age(age, subject),
            sex=None if sex is None else self._sex(sex, subject),
            ethnicity=None if ethnicity is None else self._ethnicity(ethnicity, subject),
        )

    def _first(self, subject: str, names: Sequence[str]) -> str | None:
        cells = self._rows.get(subject, {})
        return next((cells[name] for name in names if cells.get(name, "").lower() not in _MISSING), None)

    def _answer(self, subject: str, names: Sequence[str]) -> str | None:
        text = self._first(subject, names)
        return None if text is None or _plain(text) in _UNANSWERED else text

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

    def _ethnicity(self, text: str, subject: str) -> str:
        code = _plain(text)
        # Coding 1001 is a tree: 1 White, 1001 British, ...; the first of one or four digits is the group.
        group = _GROUP_OF_CODE.get(code[:1]) if re.fullmatch(r"\d(\d{3})?", code) else None
        group = group or _GROUP_OF_WORDS.get(code)
        if group is None:
            raise DataError(f"ethnic background {text!r} is not known", file=self._uri, subject=subject,
                            fix=f"use the codes of field 21000, or {', '.join(ETHNIC_GROUPS)}")  # fmt: skip
        return group


def _plain(text: str) -> str:
    """Lower-case, and "1001.0" as "1001": tables that went through floats."""
    return re.sub(r"\.0+$", "", text.strip().lower())


def _canonical(name: str) -> str:
    """A column's name, lower-case; of a UK Biobank field, in any of its spellings, F-I.A."""
    name = name.strip().lower()
    if name in _WORDS:
        return _WORDS[name]
    for pattern in _SPELLINGS:
        if found := pattern.fullmatch(name):
            parts = {"instance": "0", "array": "0", **{k: v for k, v in found.groupdict().items() if v}}
            return f"{parts['field']}-{parts['instance']}.{parts['array']}"
    return name


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
    `sex` or `31-0.0`; `site`, `54-I.0`, `54-2.0` or `54-0.0`; `ethnicity` or `21000-0.0`. Others are ignored.
    A field may be spelled 21022-0.0, f.21022.0.0, n_21022_0_0, p21022 (p21000_i0) or by its title.

    Raises:
        DataError: no such table, no subject column, or two rows of one subject that differ.
    """
    uri = files.absolute(uri)
    patterns = (*_AGE, *_SEX_COLUMN, *_SITE, _ETHNICITY)
    known = {p.format(instance=i) for p in patterns for i in range(10)}
    rows: dict[str, dict[str, str]] = {}
    spelled = {spelling: subject for subject in wanted for spelling in same_ids(subject)}
    with _open_text(uri) as text:
        first = text.readline()
        delimiter = "\t" if "\t" in first else ","
        titles = [name.strip().lower() for name in next(csv.reader([first], delimiter=delimiter), [])]
        key = next((titles.index(name) for name in _SUBJECT if name in titles), None)
        if key is None:
            raise DataError("participants table has no subject column", file=uri,
                            fix=f"name one column {' or '.join(_SUBJECT[:2])}")  # fmt: skip
        names = [_canonical(title) for title in titles]
        for line, cells in enumerate(csv.reader(text, delimiter=delimiter), start=2):
            subject = spelled.get(cells[key].strip() if len(cells) > key else "")
            if subject is None:
                continue
            row = {n: c.strip() for n, c in zip(names, cells, strict=False) if n in known}
            if rows.setdefault(subject, row) != row:
                raise DataError(f"line {line} contradicts an earlier row of this subject", file=uri,
                                subject=subject, fix="keep one row a subject")  # fmt: skip
    return Participants(rows, uri, known.intersection(names))
