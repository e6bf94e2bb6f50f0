"""A table of a study: cells that are measured, published, or missing, and the footnotes they need.

Measured and published numbers never share a line: where a row has both, its published line follows the
measured one and says so. A cell that should be there and is not keeps the command that fills it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["measured", "published"]
MISSING, MINUS, NOTHING = "missing", "\N{MINUS SIGN}", "–"
PUBLISHED = "published"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over subjects with its 95 % interval.

    Args:
        low: ends of the interval; NaN where there are too few subjects for one.
        n: subjects.
        draws: repetitions (label subsets, seeds) that were averaged.
        sd: standard deviation over the draws; NaN with one.
        better: better than the comparator of its table: the interval of the paired difference leaves out 0.
        signed: a difference, shown with its sign.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int
    draws: int = 1
    sd: float = math.nan
    better: bool = False
    signed: bool = False


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a table says at a place.

    Args:
        measured: of the user's own runs: an estimate, a fact as text, or None.
        published: as the paper prints it; "" where it prints nothing.
        notes: footnotes of the measured cell.
        published_note: footnote of the published one.
        command: what fills a measured cell that is missing, or rests on some of its trials; "" where nothing
            is missing.
    """

    row: str
    column: str
    measured: Estimate | str | None = None
    published: str = ""
    notes: tuple[str, ...] = ()
    published_note: str = ""
    command: str = ""

    @property
    def missing(self) -> bool:
        """True where a measured cell should be and is not."""
        return self.measured is None and bool(self.command)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A printed line of a table: one kind of numbers of one row."""

    row: str
    kind: Kind
    cells: tuple[tuple[Cell, Kind], ...]
    """Each with what is shown of it: a published column is so on every line."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table, in no particular format.

    Args:
        name: file name without ending, such as "table4".
        title: caption.
        corner: what the rows are.
        digits: behind the point.
        published_rows: names of rows on their published lines, where those are other ones.
        published_columns: columns that hold nothing but published figures; they need no lines of their own.
        notes: what the reader must know of the whole table.
    """

    name: str
    title: str
    corner: str = ""
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[Cell, ...]
    digits: int = 3
    notes: tuple[str, ...] = ()
    published_rows: Mapping[str, str] = field(default_factory=dict)
    published_columns: tuple[str, ...] = ()
    _at: dict[tuple[str, str], Cell] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        at = {(cell.row, cell.column): cell for cell in self.cells}
        odd = [key for key in at if key[0] not in self.rows or key[1] not in self.columns]
        if odd or len(at) != len(self.cells):
            raise ValueError(f"table {self.name}: cells twice, or outside its rows and columns: {odd}")
        object.__setattr__(self, "_at", at)

    def cell(self, row: str, column: str) -> Cell:
        """The cell at a place; one that says nothing where there is none."""
        return self._at.get((row, column), Cell(row=row, column=column))

    def lines(self) -> Iterator[Line]:
        """The lines in order: of a row the measured one, then the published one where there is any."""
        for row in self.rows:
            cells = [self.cell(row, column) for column in self.columns]
            own = [cell for cell in cells if cell.column not in self.published_columns]
            published = any(cell.published for cell in own)
            if any(cell.measured is not None or cell.command for cell in own) or not published:
                yield Line(
                    row=row, kind="measured", cells=tuple((c, self._kind(c, "measured")) for c in cells)
                )
            if published:
                name = self.published_rows.get(row, row)
                yield Line(row=name, kind="published", cells=tuple((c, "published") for c in cells))

    def _kind(self, cell: Cell, kind: Kind) -> Kind:
        return "published" if cell.column in self.published_columns else kind

    def footnotes(self) -> dict[str, str]:
        """Footnote -> its mark ("a", "b", ...), in the order of appearance."""
        notes: dict[str, str] = {}
        for line in self.lines():
            for cell, kind in line.cells:
                for note in notes_of(cell, kind):
                    notes.setdefault(note, mark(len(notes)))
        return notes

    def missing(self) -> dict[str, list[Cell]]:
        """Command -> the cells that it fills, wholly or in part, in order."""
        found: dict[str, list[Cell]] = {}
        for row in self.rows:
            for column in self.columns:
                cell = self.cell(row, column)
                if cell.command:
                    found.setdefault(cell.command, []).append(cell)
        return found

    @property
    def measured(self) -> int:
        """Cells that hold something measured."""
        return sum(cell.measured is not None for cell in self.cells)


def notes_of(cell: Cell, kind: Kind) -> tuple[str, ...]:
    """The footnotes of a cell on a line of a kind."""
    if kind == "measured":
        return cell.notes
    return (cell.published_note,) if cell.published and cell.published_note else ()


def mark(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    rest, letter = divmod(number, 26)
    return (mark(rest - 1) if rest else "") + chr(ord("a") + letter)


def number(value: float, digits: int = 3, *, signed: bool = False) -> str:
    """A number for people: a real minus sign, thousands, fewer digits where it is large; a dash for NaN."""
    if math.isnan(value):
        return NOTHING
    digits = digits if abs(value) < 100 else 1 if abs(value) < 10_000 else 0
    rounded = round(value, digits) + 0.0  # without the sign of -0.0
    return f"{rounded:{'+' if signed and rounded else ''},.{digits}f}".replace("-", MINUS)


def digits_of(estimate: Estimate, digits: int) -> int:
    """Enough digits for an end of a difference's interval not to look like the 0 it leaves out."""
    ends = [end for end in (estimate.low, estimate.high) if estimate.signed and end and not math.isnan(end)]
    while digits < 6 and any(not round(end, digits) for end in ends):
        digits += 1
    return digits


def interval(estimate: Estimate, digits: int = 3) -> str:
    """Its interval as "0.905 to 0.919"; empty where there is none."""
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return ""
    digits = digits_of(estimate, digits)
    return f"{number(estimate.low, digits)} to {number(estimate.high, digits)}"


def sample(estimate: Estimate) -> str:
    """What it was measured on, such as "n = 200" or "n = 5 x 200"."""
    return f"n = {estimate.n:,}" if estimate.draws == 1 else f"n = {estimate.draws} × {estimate.n:,}"


def main_text(cell: Cell, kind: Kind, digits: int) -> str:
    """The first thing a cell says on a line."""
    if kind == "published":
        return cell.published
    if isinstance(cell.measured, Estimate):
        return number(cell.measured.value, digits_of(cell.measured, digits), signed=cell.measured.signed)
    if cell.measured is not None:
        return cell.measured
    return MISSING if cell.missing else NOTHING


def details(cell: Cell, kind: Kind, digits: int) -> tuple[str, ...]:
    """What is told in small type below it: interval, then spread over draws and sample; none for a fact."""
    if kind == "published" or not isinstance(cell.measured, Estimate):
        return ()
    estimate = cell.measured
    spread = "" if math.isnan(estimate.sd) else f"SD {number(estimate.sd, digits + 1)}, "
    return interval(estimate, digits) or "no interval", spread + sample(estimate)


def ordered(cells: Iterable[Cell], axis: Literal["row", "column"]) -> tuple[str, ...]:
    """Names of the rows or columns in the order in which cells name them first."""
    return tuple(dict.fromkeys(getattr(cell, axis) for cell in cells))


def table_of(name: str, title: str, cells: Sequence[Cell], **more: object) -> Table:
    """A table whose rows and columns come in the order of its cells."""
    return Table(
        name=name, title=title, rows=ordered(cells, "row"), columns=ordered(cells, "column"),
        cells=tuple(cells), **more,  # type: ignore[arg-type]
    )  # fmt: skip
