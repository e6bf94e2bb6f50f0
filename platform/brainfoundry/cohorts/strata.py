"""Who is in a cohort and in which stratum: subjects by sex, site, age band or a column of the user's table.

A stratum is a combination of the chosen columns' values. One that is too small to be shared out fairly is
pooled: first with its small neighbours that differ in the last column only, then in the last two, and so on.
"""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.cohorts.rows import Row
from brainfoundry.cohorts.tables import read_lines, subject_column
from brainfoundry.core.errors import ConfigError, DataError

AGE_BANDS = (45.0, 50.0, 55.0, 60.0, 65.0)
"""Years at which a new band begins: <45, 45-49, ..., 60-64, >=65 (paper, Table 1)."""
MANIFEST_COLUMNS = ("sex", "site", "age")
UNKNOWN, POOLED, JOIN = "unknown", "*", "|"

Source: TypeAlias = Manifest | pa.Table | Iterable[Row]
Columns = Mapping[str, Mapping[str, str]]
"""Column name -> subject -> value."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """A subject with at least one included session.

    Args:
        parts: every (split, fold) its sessions are in; more than one is a leak.
        values: sex, site and age of its first session that has them.
    """

    subject: str
    parts: frozenset[tuple[str, int | None]]
    values: Mapping[str, str | float] = field(default_factory=dict)

    @property
    def split(self) -> str:
        """The split of all its sessions."""
        return self.part[0]

    @property
    def part(self) -> tuple[str, int | None]:
        """(split, fold) of all its sessions.

        Raises:
            DataError: they are in several.
        """
        if len(self.parts) == 1:
            return next(iter(self.parts))
        names = " and ".join(sorted(f"{split or 'no split'}, fold {fold}" for split, fold in self.parts))
        raise DataError(
            f"sessions of one subject are in several splits or folds: {names}",
            subject=self.subject,
            fix="make the split again with jobs/split.py, which never parts a subject",
        )


def people_of(source: Source) -> dict[str, Person]:
    """The subjects with an included session, in ascending order, whatever the order of the rows."""
    sessions: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in _plain(source):
        sessions[row["subject"]].append(row)
    people = {}
    for subject in sorted(sessions):
        found = sorted(sessions[subject], key=lambda row: row["session"])
        values = {}
        for name in MANIFEST_COLUMNS:
            known = [row[name] for row in found if row.get(name) not in (None, "")]
            if known:
                values[name] = known[0]
        parts = frozenset((row["split"], row.get("fold")) for row in found)
        people[subject] = Person(subject=subject, parts=parts, values=values)
    return people


def _plain(source: Source) -> list[dict[str, Any]]:
    wanted = ("subject", "session", "verdict", "split", "fold", *MANIFEST_COLUMNS)
    if isinstance(source, Manifest):
        source = source.table
    if isinstance(source, pa.Table):
        if "verdict" in source.column_names:
            source = source.filter(pc.equal(source["verdict"], "included"))
        # A shard set's index has no demographics, which matters only where they are asked for.
        rows: list[dict[str, Any]] = source.select(
            [n for n in wanted if n in source.column_names]
        ).to_pylist()
        return rows
    return [{name: getattr(row, name) for name in wanted} for row in source if row.included]


def read_columns(uri: str, names: Sequence[str], wanted: Iterable[str]) -> dict[str, dict[str, str]]:
    """Columns of a user's table for the `wanted` subjects: column name -> subject -> value.

    Raises:
        DataError: no subject column, a column that is not there, or rows of one subject that differ.
    """
    wanted = set(wanted)
    columns: dict[str, dict[str, str]] = {name: {} for name in names}
    key = ""
    for number, cells in read_lines(uri):
        if not key:
            key = subject_column(cells, uri)
            missing = [name for name in names if name.lower() not in cells]
            if missing:
                raise DataError(
                    f"table has no column {missing[0]!r}; it has {', '.join(cells)}",
                    file=uri,
                    fix="stratify by a column that is there",
                )
        subject = cells.get(key, "")
        if subject in wanted:
            for name in names:
                value = cells.get(name.lower(), "")
                if value and columns[name].setdefault(subject, value) != value:
                    raise DataError(
                        f"line {number} contradicts an earlier row of this subject: {name} {value!r}",
                        file=uri,
                        subject=subject,
                        fix="keep one value a subject",
                    )
    return columns


def band(age: float, bands: Sequence[float] = AGE_BANDS) -> str:
    """The name of an age's band: "<45", "45-49", ">=65"."""
    place = bisect.bisect_right(bands, age)
    if place == 0:
        return f"<{bands[0]:g}"
    if place == len(bands):
        return f">={bands[-1]:g}"
    low, high = bands[place - 1], bands[place]
    return (
        f"{low:g}-{high - 1:g}"
        if float(low).is_integer() and float(high).is_integer()
        else f"{low:g}-<{high:g}"
    )


@dataclass(frozen=True, kw_only=True)
class Strata:
    """Who is in which stratum.

    Args:
        of: subject -> name of its stratum, such as "F|11025".
        notes: what was pooled or unknown, as sentences.
    """

    of: Mapping[str, str]
    notes: tuple[str, ...] = ()


def strata_of(
    people: Mapping[str, Person],
    by: Sequence[str],
    *,
    bands: Sequence[float] = AGE_BANDS,
    smallest: int = 1,
    columns: Columns | None = None,
) -> Strata:
    """The stratum of every subject.

    Args:
        by: columns: sex, site, age (in bands), or names in `columns`.
        bands: years at which an age band begins, ascending.
        smallest: a stratum of fewer subjects is pooled with others.
        columns: columns of the user's own.

    Raises:
        ConfigError: a column nobody knows, or bands that do not ascend.
    """
    columns = columns or {}
    known = [*MANIFEST_COLUMNS, *(name for name in columns if name not in MANIFEST_COLUMNS)]
    for name in by:
        if name not in known:
            raise ConfigError(
                f"cannot stratify by {name!r}", fix=f"choose of {', '.join(known)}, or give a table with it"
            )
    if "age" in by and (not bands or list(bands) != sorted(set(bands))):
        raise ConfigError(f"age bands {bands} do not ascend", fix="such as 45,50,55,60,65")
    notes = []
    for name in by:
        without = sum(_value(person, name, bands, columns) == UNKNOWN for person in people.values())
        if without:
            everybody = " (all of them: it decides nothing)" if without == len(people) else ""
            notes.append(f"{without:,} subjects have no {name}{everybody}; they count as {UNKNOWN}")
    keys = {s: tuple(_value(p, name, bands, columns) for name in by) for s, p in people.items()}
    pooled, pool_notes = _pool(keys, smallest)
    return Strata(of={s: JOIN.join(key) for s, key in pooled.items()}, notes=(*notes, *pool_notes))


def _value(person: Person, name: str, bands: Sequence[float], columns: Columns) -> str:
    if name in columns:  # the user's own column wins over the manifest's
        return (columns[name].get(person.subject) or UNKNOWN).replace(JOIN, "/")
    value = person.values.get(name)
    if value is None:
        return UNKNOWN
    return band(float(value), bands) if name == "age" else str(value).replace(JOIN, "/")


def _pool(
    keys: Mapping[str, tuple[str, ...]], smallest: int
) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Keys with small strata pooled, and a note on it."""
    sizes = Counter(keys.values())
    small = sorted(key for key, n in sizes.items() if n < smallest)
    if not small or len(sizes) == 1:
        return dict(keys), ()
    to: dict[tuple[str, ...], tuple[str, ...]] = {}
    left = list(small)
    for kept in range(len(small[0]) - 1, -1, -1):
        pools: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
        for key in left:
            pools[key[:kept] + (POOLED,) * (len(key) - kept)].append(key)
        left = []
        for pool, members in pools.items():
            # The last pool has no larger one to go to, and stays whatever its size.
            if kept == 0 or sum(sizes[key] for key in members) >= smallest:
                to.update(dict.fromkeys(members, pool))
            else:
                left += members
    names = ", ".join(JOIN.join(key) for key in small[:5]) + (", ..." if len(small) > 5 else "")
    note = f"{len(small):,} strata of fewer than {smallest} subjects were pooled: {names}"
    return {subject: to.get(key, key) for subject, key in keys.items()}, (note,)
