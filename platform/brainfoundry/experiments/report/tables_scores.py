"""The tables of scores: the paper's Tables 4, 5, 6, 8 and 9 beside the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from brainfoundry.experiments.axes import DEFAULTS, REPEATED
from brainfoundry.experiments.published import TABLE_NOTES, Published, published
from brainfoundry.experiments.report.cells import PUBLISHED, Cell, Table, number
from brainfoundry.experiments.report.compare import Arm, Difference, corrected, difference
from brainfoundry.experiments.report.figures_style import metric_name
from brainfoundry.experiments.report.results import Study
from brainfoundry.experiments.report.tables_grid import (
    EVERYTHING,
    KINDS,
    Column,
    Comparators,
    Grid,
    arms_of,
    bold_notes,
    cell_of,
    comparators,
    grid_table,
    renamed,
    value_name,
)  # fmt: skip
from brainfoundry.tasks.scores import higher_is_better
from brainfoundry.tasks.segmentation import SWINUNETR

AVERAGE = "Average"
_TITLES = {
    "4": "Table 4: {metric} of the models by fold",
    "5": "Table 5: {metric} from a single modality",
    "6": "Table 6: ATLAS v2.0, the challenge's metrics",
    "8": "Table 8: {metric} by size, one or two stages of pretraining, and fold",
    "9": "Table 9: {metric} from few labels",
}
_ATLAS = ("dice", "lesion_f1", "lesion_count_diff", "volume_diff")
_ACROSS = ("share", "fold", "modalities", "variant")
"""Axes that stand across in a study's own table, the first that varies."""


def score_tables(study: Study) -> list[Table]:
    """Every table of scores that the study asks for; one of its own axes where it asks for none."""
    if study.spec.finetune is None:
        return []
    makers: Mapping[str, Callable[[Study], Table]] = {
        "table4": lambda s: fold_table(s, "4"),
        "table5": lambda s: fold_table(s, "5"),
        "table6": metric_table,
        "table8": lambda s: fold_table(s, "8"),
        "table9": few_shot_table,
    }
    wanted = [makers[name](study) for name in study.spec.tables if name in makers]
    if study.spec.search is not None:
        return wanted
    return wanted or [own_table(study)]


# ---------------------------------------------------------------------------------------------------------
# The paper's


@dataclass(frozen=True, kw_only=True)
class _Beside:
    """The study's arms beside the paper's.

    Args:
        names: of the study's arms -> of their rows, which begin with the paper's name where it has one.
        rows: the study's, then those of the paper alone.
        figures: (row, column) -> what the paper prints.
        printed: row -> its name in the paper.
    """

    names: Mapping[str, str]
    rows: Sequence[Arm]
    figures: Mapping[tuple[str, str], Published]
    printed: Mapping[str, str]


def _beside(study: Study, arms: Sequence[Arm], table: str, place: Callable[[Published], str]) -> _Beside:
    """Put the arms beside a table of the paper; `place` is the column of a figure."""
    figures = published(table)
    same: dict[str, Arm] = {}
    for arm in arms:
        point = study.select(arm.where)[0].point
        name = next((f.column for f in figures if f.column not in same and _is(f, point)), None)
        if name is not None:
            same[name] = arm
    names = {arm.name: arm.name for arm in arms}
    names |= {
        arm.name: name if arm.name == EVERYTHING else f"{name}: {arm.name}" for name, arm in same.items()
    }
    alone = dict.fromkeys(figure.column for figure in figures if figure.column not in same)
    row_of = {name: names[arm.name] for name, arm in same.items()} | {name: name for name in alone}
    return _Beside(
        names=names,
        rows=[replace(arm, name=names[arm.name]) for arm in arms]
        + [Arm(n, {}, planned=False) for n in alone],
        figures={(row_of[figure.column], place(figure)): figure for figure in figures},
        printed={row: name for name, row in row_of.items()},
    )


def _is(figure: Published, point: Mapping[str, Any]) -> bool:
    """Whether a trial is what the paper calls by this name: also on the axes that the paper does not vary."""
    axes = {axis: value for axis, value in figure.axes.items() if axis not in ("fold", "draw", "share")}
    in_paper = point["family"] != SWINUNETR or point["size"] in ("tiny", "small", "big")
    wanted = {axis: DEFAULTS[axis] for axis in ("family", "objective", "modalities", "variant")} | axes
    return bool(axes) and in_paper and all(point[axis] == value for axis, value in wanted.items())


def fold_table(study: Study, table: str) -> Table:
    """Table 4, 5 or 8: arms by fold."""
    metric = study.spec.main_metric
    arms = arms_of(study, [axis for axis in study.varying if axis not in (*REPEATED, "fold")])
    beside = _beside(study, arms, table, lambda figure: figure.row)
    folds = sorted({*range(5), *(fold for fold in study.values_of("fold") if fold is not None)})
    columns = [Column(f"Fold {fold + 1}", {"fold": fold}, metric) for fold in folds]
    notes = ["Fold k of the paper is fold k - 1 of the shard set. " + _average_note(study)]
    return _paper_table(study, table, arms, beside, [*columns, Column(AVERAGE, {}, metric)], notes)


def _paper_table(
    study: Study,
    table: str,
    arms: Sequence[Arm],
    beside: _Beside,
    columns: Sequence[Column],
    notes: Sequence[str],
) -> Table:
    grid = Grid(
        name=f"table{table}",
        title=_TITLES[table].format(metric=metric_name(study.spec.main_metric)),
        corner="model",
        arms=beside.rows,
        columns=columns,
        comparators=renamed(comparators(study, arms), beside.names),
        named=f"table{table}",
        published=beside.figures,
        published_rows=beside.printed,
        notes=(*notes, *study.spec.notes, *TABLE_NOTES.get(table, ())),
    )
    return grid_table(study, grid)


def _average_note(study: Study) -> str:
    if study.spec.test == "fold":
        return (
            "Measured averages are over the subjects of all folds together; the paper's are means of the "
            "folds."
        )
    return "All folds were scored on one test set, and count as repetitions."


def metric_table(study: Study) -> Table:
    """Table 6: arms by metric."""
    arms = arms_of(study, [axis for axis in study.varying if axis not in (*REPEATED, "fold")])
    beside = _beside(study, arms, "6", lambda figure: metric_name(figure.metric))
    columns = [Column(metric_name(metric), {}, metric) for metric in _ATLAS]
    return _paper_table(study, "6", arms, beside, columns, ())


def few_shot_table(study: Study, *, each_draw: bool = True) -> Table:
    """Table 9: every draw of every share, the mean over the draws, and the paired difference of the arms.

    Args:
        each_draw: with a line a draw; else the means alone.
    """
    metric = study.spec.main_metric
    arms = arms_of(study, [axis for axis in study.varying if axis not in (*REPEATED, "share", "fold")])
    against = comparators(study, arms)
    paper = _few_shot_paper(study, arms)
    alone = tuple(dict.fromkeys(name for name, *_ in paper if name not in {arm.name for arm in arms}))
    cells: list[Cell] = []
    compared: dict[tuple[str, str], Difference] = {}
    printed: dict[str, str] = {}
    for row, at, draws in _few_shot_rows(study, each_draw):
        share, draw = at["share"], at.get("draw")
        printed[row] = f"{share:g} %, " + ("mean of 5 repeats" if draw is None else f"repeat {draw + 1}")
        for arm in arms:
            made = cell_of(study, row, arm.name, study.select({**arm.where, **at}), metric)
            figure = paper.get((arm.name, share, draw))
            if figure is not None:
                made = replace(made, published=figure.text, published_note=figure.note)
            cells.append(made)
        figures = {name: paper.get((name, share, draw)) for name in alone}
        cells += [
            Cell(row=row, column=name, published=figure.text, published_note=figure.note)
            for name, figure in figures.items()
            if figure is not None
        ]
        found = _few_shot_differences(study, arms, against, at, metric)
        compared |= {(row, column): made for column, made in found.items()}
        cells += [
            _detectable(row, column, made) for column, made in found.items() if draw is None or draws == 1
        ]
    alone = tuple(name for name in alone if any(cell.column == name for cell in cells))
    for (row, column), one in zip(compared, corrected(list(compared.values())), strict=True):
        cells.append(Cell(row=row, column=column, measured=one.estimate, notes=one.warnings))
    notes = [*study.spec.notes, *_FEW_SHOT_NOTES]
    if against.of:
        notes[:0] = bold_notes(against, [metric])
    if any(cell.published for cell in cells):
        notes += [
            *TABLE_NOTES.get("9", ()),
            KINDS,
            "Draws and the paper's repeats share a line and nothing else.",
        ]
    differences = dict.fromkeys(column for _, column in compared)
    pairs = [name for column in differences for name in (column, _detectable_of(column))]
    return Table(
        name="table9" if each_draw else "table9-means",
        title=_TITLES["9"].format(metric=metric_name(metric)) + ("" if each_draw else ", means of the draws"),
        corner="labels", rows=tuple(printed), columns=(*(arm.name for arm in arms), *pairs, *alone),
        cells=tuple(cells), notes=tuple(notes), published_rows=printed, published_columns=alone,
    )  # fmt: skip


def _few_shot_rows(study: Study, each_draw: bool) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Name of a row, what its trials have in common, and how many draws there are of the share."""
    for share in study.values_of("share"):
        draws = sorted({trial.point["draw"] for trial in study.select({"share": share})})
        for draw in draws if each_draw and len(draws) > 1 else []:
            yield f"{share:g} %, draw {draw}", {"share": share, "draw": draw}, len(draws)
        told = f"mean of {len(draws)} draws" if len(draws) > 1 else "one draw"
        yield f"{share:g} %, {told}", {"share": share}, len(draws)


def _detectable(row: str, column: str, made: Difference) -> Cell:
    known = made.detectable is not None and not math.isnan(made.detectable)
    told = number(made.detectable or 0.0) if known else "not known: one draw"
    return Cell(row=row, column=_detectable_of(column), measured=told)


def _detectable_of(difference_column: str) -> str:
    """Name of the column beside that of a difference."""
    return f"smallest detectable, {difference_column.partition(' minus ')[0]}"


_FEW_SHOT_NOTES = (
    "SD is over the draws. The interval of a single draw is over test subjects alone, also in the "
    "row of means where an arm has no more (n without a number of draws); that of a mean or a difference "
    "over draws and test subjects (two-level).",
    "Smallest detectable: the true difference that a study of this size and spread would find with 80 % "
    "power.",
)


def _few_shot_paper(study: Study, arms: Sequence[Arm]) -> dict[tuple[str, Any, int | None], Published]:
    """(arm, share, draw or None for the mean) -> the paper's figure; its own arms keep their names."""
    found: dict[tuple[str, Any, int | None], Published] = {}
    points = {arm.name: study.select(arm.where)[0].point for arm in arms}
    for figure in published("9"):
        name = next(
            (arm for arm, point in points.items() if _is(figure, point)),
            f"{PUBLISHED}: {figure.column.split()[0]}",
        )
        found.setdefault((name, figure.axes["share"], figure.axes.get("draw")), figure)
    return found


def _few_shot_differences(
    study: Study, arms: Sequence[Arm], against: Comparators, at: Mapping[str, Any], metric: str
) -> dict[str, Difference]:
    """Column -> paired difference of an arm to its comparator; those that the study asks for first."""
    primary, found = study.spec.primary, {}
    asked = [a for a in arms if primary is not None and a.where.get(primary.axis) in primary.arms[1:]]
    for arm in (*asked, *(arm for arm in arms if arm not in asked)):
        base = against.of.get(arm.name)
        if base is not None:
            own, other = (study.scored({**one.where, **at}) for one in (arm, base))
            made = difference(own, other, metric)
            if made is not None:
                found[f"{arm.name} minus {base.name}"] = made
    return found


# ---------------------------------------------------------------------------------------------------------
# Any other study's


def own_table(study: Study) -> Table:
    """A study's own axes: one of them across, the others down, repetitions averaged."""
    metric = study.spec.main_metric
    free = [axis for axis in study.varying if axis not in REPEATED]
    asked = study.spec.primary.axis if study.spec.primary is not None else "init"
    # What is compared stands one below the other.
    across = next((axis for axis in _ACROSS if axis in free and axis != asked and len(free) > 1), None)
    arms = arms_of(study, [axis for axis in free if axis not in (across, "fold")])
    columns = [Column(metric_name(name), {}, name) for name in (metric, *other_metrics(study, metric))]
    if across is not None:
        columns = [Column(value_name(across, v), {across: v}, metric) for v in study.values_of(across)]
    if across == "fold":
        columns.append(Column("all folds", {}, metric))
    title = metric_name(metric)
    grid = Grid(
        name="scores", title=f"{title[0].upper()}{title[1:]} by {_by(free)}", corner="trials", arms=arms,
        columns=columns, comparators=comparators(study, arms),
        notes=(*study.spec.notes, *((_average_note(study),) if "fold" in free else ())),
    )  # fmt: skip
    return grid_table(study, grid)


def _by(axes: Sequence[str]) -> str:
    words = {"share": "share of the labels", "init": "start"}
    return " and ".join(words.get(axis, axis) for axis in axes) or "trial"


def other_metrics(study: Study, metric: str) -> list[str]:
    """The further metrics worth a column: defined, and not a challenge's variant of another."""
    found = [
        name
        for name in study.metrics
        if name != metric and not name.endswith("_challenge") and not name.startswith("lesion_hd95")
    ]
    return sorted(found, key=lambda name: not higher_is_better(name))


def metric_details(study: Study) -> Table | None:
    """Every metric of every arm, repetitions and folds pooled; None where the main table says it all."""
    arms = arms_of(study, [axis for axis in study.varying if axis not in (*REPEATED, "fold")])
    metrics = [study.spec.main_metric, *other_metrics(study, study.spec.main_metric)]
    if len(metrics) < 2 or not any(study.scored(arm.where) for arm in arms):
        return None
    columns = [
        Column(metric_name(name) + ("" if higher_is_better(name) else ", less is better"), {}, name)
        for name in metrics
    ]
    grid = Grid(
        name="metrics",
        title="Every metric",
        corner="trials",
        arms=arms,
        columns=columns,
        comparators=comparators(study, arms),
        with_cost=False,
    )
    table = grid_table(study, grid)
    return replace(table, cells=tuple(replace(cell, command="") for cell in table.cells))
