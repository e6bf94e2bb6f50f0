"""Tables of arms by columns: every cell pooled, compared, marked published, or missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from brainfoundry.experiments.axes import ALL, BASE, DEFAULTS, SCRATCH
from brainfoundry.experiments.published import Published
from brainfoundry.experiments.report import commands
from brainfoundry.experiments.report.cells import Cell, Estimate, Table, number
from brainfoundry.experiments.report.compare import Arm, Difference, corrected, difference, estimate
from brainfoundry.experiments.report.results import Study, Trial
from brainfoundry.tasks.segmentation import SWINUNETR
from brainfoundry.training.leak_gate import leak_note

BOLD = (
    "Bold: better than {comparator}. The interval of the paired difference leaves out 0, and Wilcoxon's p, "
    "corrected (Holm) for all comparisons of the table, is below 0.05. Intervals are of 95 %; n "
    "counts test subjects "
    "(draws × subjects where several draws were averaged)."
)
DISTANCES = (
    "A distance is known where truth and prediction both have the region. It is bold only where it is also "
    "the smaller one with a region that was missed counted as far away (374 mm), as the challenge does."
)
_PLAIN = ("objective", "modalities", "family", "variant")
EVERYTHING = "all trials"
"""Name of the only row of a study that varies nothing."""
KINDS = (
    'Lines and columns marked "published" are figures of the paper, made with other data, code and rules; '
    "they are shown for orientation and compared with nothing."
)


@dataclass(frozen=True)
class Column:
    """A column: the trials with some values, judged by a metric."""

    name: str
    where: Mapping[str, Any]
    metric: str


@dataclass(frozen=True)
class Comparators:
    """Which row each row is compared with.

    Args:
        of: name of a row -> its comparator; rows that nothing stands against are left out.
        said: the rule in words, such as "scratch, small".
    """

    of: Mapping[str, Arm]
    said: str


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What a table shows.

    Args:
        comparators: what each row is compared with; none: nothing is bold.
        named: our study that makes the paper's cells which this study's grid does not have; "" = none.
        published: (row, column) -> what the paper prints there.
    """

    name: str
    title: str
    corner: str
    arms: Sequence[Arm]
    columns: Sequence[Column]
    comparators: Comparators = field(default_factory=lambda: Comparators({}, ""))
    named: str = ""
    published: Mapping[tuple[str, str], Published] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    with_cost: bool = True
    published_rows: Mapping[str, str] = field(default_factory=dict)


def grid_table(study: Study, grid: Grid) -> Table:
    """The table, with what it cost in the last columns where that was measured."""
    cells = [_cell(study, grid, arm, column) for arm in grid.arms for column in grid.columns]
    cells = _marked(study, grid, cells)
    cost = _cost(study, grid.arms) if grid.with_cost else []
    notes = list(grid.notes)
    if grid.comparators.of and any(cell.measured is not None for cell in cells):
        notes[:0] = bold_notes(grid.comparators, [column.metric for column in grid.columns])
    if any(cell.published for cell in cells):
        notes.append(KINDS)
    if cost:
        notes.append("What it cost is of the trials in the row, without the pretraining they share.")
    names = [column.name for column in grid.columns]
    return Table(
        name=grid.name, title=grid.title, corner=grid.corner, rows=tuple(arm.name for arm in grid.arms),
        columns=(*names, *dict.fromkeys(cell.column for cell in cost)), cells=(*cells, *cost),
        notes=tuple(dict.fromkeys(notes)), published_rows=grid.published_rows,
    )  # fmt: skip


def bold_notes(against: Comparators, metrics: Sequence[str]) -> list[str]:
    """What bold type means in a table of these metrics."""
    distances = [DISTANCES] if any("hd95" in metric for metric in metrics) else []
    return [BOLD.format(comparator=against.said), *distances]


def _cell(study: Study, grid: Grid, arm: Arm, column: Column) -> Cell:
    published = grid.published.get((arm.name, column.name))
    planned = study.select({**arm.where, **column.where}) if arm.planned else []
    made = cell_of(study, arm.name, column.name, planned, column.metric)
    if published is not None:
        made = replace(made, published=published.text, published_note=published.note)
        if not planned and grid.named and published.axes:
            made = replace(made, command=commands.elsewhere(grid.named, study, published.axes))
    return made


def _marked(study: Study, grid: Grid, cells: Sequence[Cell]) -> list[Cell]:
    """The cells, bold where they are better than their comparator."""
    arms = {arm.name: arm for arm in grid.arms}
    columns = {column.name: column for column in grid.columns}
    compared: dict[tuple[str, str], Difference] = {}
    for cell in cells:
        base = grid.comparators.of.get(cell.row)
        if base is not None and isinstance(cell.measured, Estimate):
            column = columns[cell.column]
            own, other = (study.scored({**arm.where, **column.where}) for arm in (arms[cell.row], base))
            found = difference(own, other, column.metric)
            if found is not None:
                compared[cell.row, cell.column] = found
    better = dict(zip(compared, corrected(list(compared.values())), strict=True))
    return [
        replace(cell, measured=replace(cell.measured, better=better[cell.row, cell.column].better))
        if (cell.row, cell.column) in better and isinstance(cell.measured, Estimate)
        else cell
        for cell in cells
    ]


def cell_of(study: Study, row: str, column: str, planned: Sequence[Trial], metric: str) -> Cell:
    """The measured part of a cell: the mean over its trials, and what is missing of them."""
    scored = [trial for trial in planned if trial.scored]
    missing = [trial for trial in planned if not trial.scored]
    found = estimate(scored, metric) if scored else None
    notes = [*failures(study, missing), *leaks(scored)]
    if found is not None:
        notes += found[1]
        if missing:
            notes.insert(0, f"{len(scored)} of {len(planned)} trials are there")
    elif scored:
        notes.append("not defined for any test subject")
    command = commands.fill(study, missing) if missing else ""
    if any(trial.point["family"] in study.spec.externals for trial in missing):
        notes.append("trained by another program: the command prints how")
    measured = found[0] if found else "undefined" if scored else None
    return Cell(row=row, column=column, measured=measured, notes=tuple(dict.fromkeys(notes)), command=command)


def failures(study: Study, trials: Sequence[Trial]) -> list[str]:
    """What stopped the trials that failed, or were given up."""
    said = []
    for trial in trials:
        name = name_of({axis: trial.point[axis] for axis in study.varying})
        if trial.record is not None and trial.record.state == "failed":
            said.append(f"{name} failed: {trial.record.error or 'no reason was recorded'}")
        elif trial.record is not None and trial.record.state == "stopped":
            said.append(f"{name} was stopped early by the scheduler")
    return said


def leaks(trials: Sequence[Trial]) -> list[str]:
    """That the weights of these trials have seen test subjects, where they have."""
    found = [leak_note(leak) for t in trials if t.record is not None for leak in t.record.leaks]
    return list(dict.fromkeys(found))


def _cost(study: Study, arms: Sequence[Arm]) -> list[Cell]:
    """Device-hours and energy of each row, where anybody measured them."""
    cells = []
    for column, measure in (
        ("GPU-hours", "device_hours"),
        ("CPU-hours", "cpu_hours"),
        ("energy, kWh", "energy_kwh"),
    ):
        for arm in arms:
            trials = study.select(arm.where) if arm.planned else []
            records = [trial.record for trial in trials if trial.record is not None]
            known = [getattr(record, measure) for record in records if getattr(record, measure) is not None]
            if known:
                known_of = f"measured in {len(known)} of {len(records)} trials"
                part = () if len(known) == len(records) else (known_of,)
                cells.append(Cell(row=arm.name, column=column, measured=number(sum(known), 2), notes=part))
    return cells


# ---------------------------------------------------------------------------------------------------------
# A study's own axes as rows and columns


def arms_of(study: Study, axes: Sequence[str]) -> list[Arm]:
    """The combinations of values on these axes that the study has, in its order."""
    found: dict[tuple[Any, ...], Arm] = {}
    for trial in study.trials:
        where = {axis: trial.point[axis] for axis in axes}
        found.setdefault(tuple(where.values()), Arm(name_of(where), where))
    arms = list(found.values())
    if len({arm.name for arm in arms}) == len(arms):
        return arms
    return [Arm(name_of(arm.where, short=False), arm.where) for arm in arms]


def name_of(where: Mapping[str, Any], *, short: bool = True) -> str:
    """Values on axes as people read them: "stage1, small, 5 % labels".

    Args:
        short: leaves out the base variant, and of a family that cannot be pretrained its
            size and start.
    """
    shown = dict(where)
    if short and where.get("family", SWINUNETR) != SWINUNETR:
        shown = {axis: value for axis, value in shown.items() if axis not in ("size", "init")}
    for axis, value in (("family", SWINUNETR), ("variant", BASE)):
        if short and shown.get(axis) == value and len(shown) > 1:
            del shown[axis]
    return ", ".join(value_name(axis, value) for axis, value in shown.items()) or EVERYTHING


def value_name(axis: str, value: Any) -> str:
    """One value of an axis, such as "5 % labels", "fold 2", "T1w"."""
    if axis == "share":
        return f"{value:g} % labels"
    if axis in ("fold", "draw", "seed"):
        return f"{axis} {'none' if value is None else value}"
    if axis == "pretrain_seed":
        return f"pretraining seed {value}"
    if axis == "modalities":
        return "all modalities" if value == ALL else str(value)
    return str(value)


def comparators(study: Study, arms: Sequence[Arm]) -> Comparators:
    """The rows that others are compared with.

    The first arm of the primary endpoint, else training from scratch: of the row that is alike on all other
    axes where there is one, else of the primary endpoint.
    """
    primary = study.spec.primary
    axis, value, where = (
        ("init", SCRATCH, {}) if primary is None else (primary.axis, primary.arms[0], primary.where)
    )
    bases = [
        arm
        for arm in arms
        if arm.where.get(axis, value) == value and study.select({**arm.where, axis: value})
    ]
    if len(arms) < 2 or not bases:
        return Comparators({}, "")
    asked = [arm for arm in bases if all(arm.where.get(k, v) == v for k, v in where.items())]
    # Of several the plainest, in whatever order the grid has them; of equals the first.
    first = min(
        asked or bases, key=lambda arm: sum(arm.where.get(a, DEFAULTS[a]) != DEFAULTS[a] for a in _PLAIN)
    )
    found = {}
    for arm in arms:
        alike = {**arm.where, axis: value} if axis in arm.where else {}
        base = next((other for other in bases if other.where == alike), first)
        base = first if base == arm else base
        if base != arm:
            found[arm.name] = base
    others = dict.fromkeys(base.name for base in found.values())
    said = (
        first.name
        if len(others) < 2
        else f"the row that differs in {axis} alone ({value}), else {first.name}"
    )
    return Comparators(found, said)


def renamed(found: Comparators, names: Mapping[str, str]) -> Comparators:
    """The same for rows under other names."""
    of = {names[name]: replace(base, name=names[base.name]) for name, base in found.of.items()}
    return Comparators(of, names.get(found.said, found.said))
