"""Who the included participants are: age, sex, ethnicity, brain tumours of every split; small counts hidden.

Everybody is counted once in every section ("unanswered" is a line of its own), so each section sums to the
number of participants.
"""

from __future__ import annotations

import bisect
import csv
import io
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from brainfoundry.cohorts.left_out import same_ids
from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.cohorts.participants import ETHNIC_GROUPS, Participants
from brainfoundry.reports import paper
from brainfoundry.reports.suppress import Shown, Sum, percent, protect, show_all

ALL = "all"
SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test", "": "no split"}
AGE_STARTS = (45, 50, 55, 60, 65)
"""Years at which a band begins (paper, Table 7)."""
AGE_BANDS = ("<45", "45-49", "50-54", "55-59", "60-64", "≥65")
UNANSWERED = "unanswered"
SEXES = {"F": "female", "M": "male"}
LINES: Mapping[str, tuple[str, ...]] = {
    "age": (*AGE_BANDS, UNANSWERED),
    "sex": (*SEXES.values(), UNANSWERED),
    "ethnicity": (*ETHNIC_GROUPS, UNANSWERED),
    "brain tumour": ("on record", "none on record"),
}
_WHY_NOT = {
    "age": "neither the manifest nor a participants table (field 21022) has it",
    "sex": "neither the manifest nor a participants table (field 31) has it",
    "ethnicity": "no participants table with field 21000 was given",
    "brain tumour": "no list of participants with brain tumours was given",
}
_PRINTED = {"<45": "Age <=45", "≥65": "Age >=65", UNANSWERED: "Age unanswered"}
PAPER_ROWS = {
    **{("age", line): _PRINTED.get(line, f"Age {line}") for line in LINES["age"]},
    ("sex", "female"): "Female",
    ("sex", "male"): "Male",
    ("sex", UNANSWERED): "Gender unanswered",
    **{("ethnicity", group): group for group in ETHNIC_GROUPS},
    ("ethnicity", UNANSWERED): "Race unanswered",
    ("brain tumour", "on record"): "Brain tumours",
    ("participants", ""): "Samples",
}
"""(section, line) of the table -> name of the row in the paper's Table 7."""

Key = tuple[str, str, str]
"""(section, line, split) of a count; of the counts by age and sex ("age and sex", band, sex)."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """A participant with at least one included session; None where nothing is known or was answered."""

    split: str
    age: float | None = None
    sex: str | None = None
    ethnicity: str | None = None
    tumour: bool = False


@dataclass(frozen=True, kw_only=True)
class People:
    """The included participants, without their ids.

    Args:
        persons: in no order that says who they are.
        sections: what is known of anybody: "age", "sex", "ethnicity", "brain tumour".
        age_kind: what the ages are.
        notes: what the reader of a table must know of its sources.
    """

    persons: tuple[Person, ...]
    sections: tuple[str, ...]
    age_kind: str = "age"
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that have anybody in them, in their usual order."""
        used = {person.split for person in self.persons}
        return tuple(split for split in SPLIT_NAMES if split in used)


def people(
    manifest: Manifest, table: Participants | None = None, tumours: Collection[str] | None = None
) -> People:
    """The included participants of a manifest.

    Args:
        table: their participants table; what it does not have is taken from the manifest.
        tumours: ids of those with a brain tumour on record; None: not asked.

    Raises:
        DataError: a cell of the table that cannot be read.
    """
    columns = ("subject", "session", "verdict", "split", "age", "sex")
    rows = [row for row in manifest.table.select(columns).to_pylist() if row["verdict"] == "included"]
    first: dict[str, dict[str, object]] = {}
    for row in rows:  # in order of sessions: the first visit counts, a later one fills its gaps
        known = first.setdefault(row["subject"], row)
        known.update({name: row[name] for name in ("age", "sex") if known[name] is None})
    at_recruitment = table is not None and table.has_recruitment_age
    at_visit = table is not None and table.has_age and not at_recruitment
    persons = []
    for subject, row in first.items():
        session, age, sex, ethnicity = str(row["session"]), row["age"], row["sex"], None
        if table is not None and subject in table:
            told = table.at_recruitment(subject)
            ethnicity = told.ethnicity
            sex = told.sex if table.has_sex else sex
            if at_recruitment:
                age = told.age
            elif at_visit:
                age = table.of(subject, int(session) if session.isdecimal() else 0).age
        elif at_recruitment or at_visit:
            age = None  # the manifest's may be another age: at the visit, or at recruitment
        persons.append(
            Person(
                split=str(row["split"] or ""), age=None if age is None else float(str(age)),
                sex=str(sex) if sex in SEXES else None, ethnicity=ethnicity,
                tumour=bool(tumours) and not same_ids(subject).isdisjoint(tumours or ()),
            )
        )  # fmt: skip
    has = {
        "age": at_recruitment or at_visit or any(p.age is not None for p in persons),
        "sex": (table is not None and table.has_sex) or any(p.sex for p in persons),
        "ethnicity": table is not None and table.has_ethnicity,
        "brain tumour": tumours is not None,
    }
    notes = [f"{name} is not reported: {why}" for name, why in _WHY_NOT.items() if not has[name]]
    if table is not None and any(subject not in table for subject in first):
        notes.append(
            "participants whom the table does not know are counted as unanswered, but for the manifest's sex"
        )
    kind = (
        "age at recruitment" if at_recruitment else "age at the visit" if at_visit else "age in the manifest"
    )
    persons.sort(key=repr)
    return People(
        persons=tuple(persons), sections=tuple(name for name, found in has.items() if found), age_kind=kind,
        notes=tuple(notes),
    )  # fmt: skip


def age_band(age: float) -> str:
    """The band of Table 7 that an age in years falls into."""
    return AGE_BANDS[bisect.bisect_right(AGE_STARTS, age)]


def line_of(person: Person, section: str) -> str:
    """The line of a section on which a participant is counted."""
    if section == "age":
        return UNANSWERED if person.age is None else age_band(person.age)
    if section == "sex":
        return SEXES.get(person.sex or "", UNANSWERED)
    if section == "ethnicity":
        return person.ethnicity or UNANSWERED
    return "on record" if person.tumour else "none on record"


@dataclass(frozen=True, kw_only=True)
class Table:
    """The demographics table as it may be given out.

    Args:
        shown: counts by (section, line, column); sizes of columns at ("participants", "", column), counts by
            age and sex at ("age and sex", band, sex).
        columns: `ALL` and the splits, where there are several.
    """

    people: People
    shown: Shown[Key]
    columns: tuple[str, ...]
    suppressed: bool
    titles: Mapping[str, str] = field(default_factory=lambda: {ALL: "all", **SPLIT_NAMES})

    def size(self, column: str) -> int:
        """Participants of a column."""
        return self.shown.counts["participants", "", column]

    def lines(self) -> Iterator[tuple[str, str]]:
        """(section, line) in order, without the sizes."""
        for section in self.people.sections:
            for line in LINES[section]:
                yield section, line

    def any_hidden(self, section: str) -> bool:
        """True where a count of the section is not shown."""
        return any(key[0] == section for key in self.shown.hidden)

    def text(self, section: str, line: str, column: str) -> str:
        """A count with its share, such as "12 (48.0 %)"."""
        key = (section, line, column)
        share = self.shown.percent(key, ("participants", "", column))
        return self.shown.text(key) + (f" ({share})" if share else "")

    def printed(self) -> tuple[list[str], list[list[str]]]:
        """Headers and rows as the page shows them."""
        headers = ["", "", *(f"{self.titles[c]} (n = {self.size(c):,})" for c in self.columns)]
        rows, last = [], ""
        for section, line in self.lines():
            title = self.people.age_kind if section == "age" else section
            texts = [self.text(section, line, column) for column in self.columns]
            rows.append([title if section != last else "", line, *texts])
            last = section
        return headers, rows

    def beside_paper(self) -> tuple[list[str], list[list[str]]]:
        """Headers and rows of this cohort beside both columns of the paper's Table 7."""
        printed = {name: paper.table7(name) for name in (paper.ENTIRE, paper.COHORT)}
        ours = f"this cohort (n = {self.size(ALL):,})"
        headers = ["", "", ours, *(f"paper: {n} (n = {v['Samples']:,})" for n, v in printed.items())]
        rows, last = [], ""
        for (section, line), name in PAPER_ROWS.items():
            if section == "participants":
                continue
            mine = self.text(section, line, ALL) if section in self.people.sections else ""
            theirs = [f"{v[name]:,} ({percent(v[name] / v['Samples'])})" for v in printed.values()]
            rows.append([section if section != last else "", line, mine, *theirs])
            last = section
        return headers, rows

    def csv(self) -> bytes:
        """The table as CSV: a line a count, its column, count and percentage as they are shown."""
        rows = [("section", "line", "split", "count", "percent", "source")]
        for column in self.columns:
            rows.append(("participants", "", column or "none", f"{self.size(column)}", "", "this cohort"))
        for section, line in self.lines():
            for column in self.columns:
                key = (section, line, column)
                share = self.shown.percent(key, ("participants", "", column)).removesuffix(" %")
                text = self.shown.text(key).replace(",", "")
                rows.append((section, line, column or "none", text, share, "this cohort"))
        for name in (paper.ENTIRE, paper.COHORT):
            values = paper.table7(name)
            for (section, line), printed in PAPER_ROWS.items():
                share = percent(values[printed] / values["Samples"]).removesuffix(" %")
                rows.append((section, line, ALL, str(values[printed]), share, f"paper, Table 7, {name}"))
        return csv_bytes(rows)

    def figure_csv(self) -> bytes:
        """The counts of the demographics figure: by age band and sex."""
        rows = [(self.people.age_kind, "sex", "count")]
        for line in LINES["age"]:
            for sex in LINES["sex"]:
                key = ("age and sex", line, sex)
                if key in self.shown.counts:
                    rows.append((line, sex, self.shown.text(key).replace(",", "")))
        return csv_bytes(rows)


def tabulate(found: People, *, show_small_counts: bool = False) -> Table:
    """Count, and hide what is small, in the table and in the figure at once."""
    splits = found.splits
    columns = (ALL, *splits) if len(splits) > 1 else (ALL,)
    counter: Counter[Key] = Counter()
    for person in found.persons:
        for column in {ALL, person.split} & set(columns):
            counter["participants", "", column] += 1
            for section in found.sections:
                counter[section, line_of(person, section), column] += 1
        counter["age and sex", line_of(person, "age"), line_of(person, "sex")] += 1
    sizes: list[Key] = [("participants", "", column) for column in columns]
    keys: list[Key] = [(s, line, c) for s in found.sections for line in LINES[s] for c in columns]
    sums = [Sum(("participants", "", c), tuple((s, line, c) for line in LINES[s]))
            for s in found.sections for c in columns]  # fmt: skip
    if len(columns) > 1:
        sums += [Sum((s, line, ALL), tuple((s, line, c) for c in splits))
                 for s in found.sections for line in LINES[s]]  # fmt: skip
    if {"age", "sex"} <= set(found.sections):
        keys += [("age and sex", band, sex) for band in LINES["age"] for sex in LINES["sex"]]
        sums += [Sum(("age", band, ALL), tuple(("age and sex", band, sex) for sex in LINES["sex"]))
                 for band in LINES["age"]]  # fmt: skip
        sums += [Sum(("sex", sex, ALL), tuple(("age and sex", band, sex) for band in LINES["age"]))
                 for sex in LINES["sex"]]  # fmt: skip
    counts = {key: counter[key] for key in (*sizes, *keys)}
    shown = show_all(counts) if show_small_counts else protect(counts, sums, always_shown=sizes)
    return Table(people=found, shown=shown, columns=columns, suppressed=not show_small_counts)


def csv_bytes(rows: Sequence[Sequence[str]]) -> bytes:
    """Rows as UTF-8 CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
