"""What stands behind a study's scores: comparisons with their tests, cost, every trial, options tried."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from brainfoundry.experiments.axes import REPEATED
from brainfoundry.experiments.published import published
from brainfoundry.experiments.records import TrialRecord, by_run
from brainfoundry.experiments.report.cells import Cell, Table, number, table_of
from brainfoundry.experiments.report.compare import Arm, Difference, corrected, difference
from brainfoundry.experiments.report.figures_style import metric_name
from brainfoundry.experiments.report.results import Study
from brainfoundry.experiments.report.tables_grid import arms_of, comparators, name_of, value_name
from brainfoundry.tasks.scores import higher_is_better

HOLM = (
    "p: Wilcoxon's signed-rank test over the test subjects, on the mean over the draws of each; it does "
    "not know how much draws differ, which the interval does. Holm's correction is for all comparisons of "
    "this table; bold is better with the interval and the corrected p alike. d_z: mean over standard "
    "deviation of the differences. Rank-biserial: -1 to 1, above 0 where the arm is larger. The smallest "
    "detectable difference takes several draws."
)


def pairs(study: Study) -> list[tuple[Arm, Arm, Difference]]:
    """Every arm of every share (or other condition) with its comparator, where both have scores."""
    across = [axis for axis in ("share", "modalities") if axis in study.varying]
    primary = study.spec.primary
    across = [axis for axis in across if primary is None or axis != primary.axis]
    metric = study.spec.main_metric
    found = []
    for condition in arms_of(study, across):
        inside = [t for t in study.trials if t.matches(condition.where)]
        arms = [
            arm
            for arm in arms_of(study, [a for a in study.varying if a not in (*REPEATED, *across, "fold")])
            if any(trial.matches(arm.where) for trial in inside)
        ]
        for name, base in comparators(study, arms).of.items():
            arm = next(one for one in arms if one.name == name)
            both = [Arm(one.name, {**one.where, **condition.where}) for one in (arm, base)]
            made = difference(study.scored(both[0].where), study.scored(both[1].where), metric)
            if made is not None:
                suffix = f" at {condition.name}" if across else ""
                found.append((Arm(f"{arm.name}{suffix}", both[0].where), Arm(base.name, both[1].where), made))
    return found


def comparison_table(study: Study) -> Table | None:
    """Paired differences with tests and effect sizes; None where there is nothing to compare."""
    compared = pairs(study)
    if not compared:
        return None
    cells: list[Cell] = []
    for (arm, base, _), made in zip(compared, corrected([made for *_, made in compared]), strict=True):
        cells += _comparison(f"{arm.name} minus {base.name}", made)
    return table_of(
        "comparisons", f"Comparisons: {metric_name(study.spec.main_metric)}, paired by test subject", cells,
        corner="comparison", notes=(HOLM,),
    )  # fmt: skip


def _comparison(row: str, made: Difference) -> list[Cell]:
    test = made.test
    facts = {
        "Wilcoxon p": _p(test.p_wilcoxon),
        "p, Holm": _p(1.0 if test.p_holm is None else test.p_holm),
        "d_z": number(test.cohen_dz, 2),
        "rank-biserial": number(test.rank_biserial, 2),
        "better / equal / worse": f"{test.wins} / {test.ties} / {test.losses}",
        "smallest detectable": number(math.nan if made.detectable is None else made.detectable),
    }
    first = Cell(row=row, column="difference", measured=made.estimate, notes=made.warnings)
    return [first, *(Cell(row=row, column=column, measured=text) for column, text in facts.items())]


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


# ---------------------------------------------------------------------------------------------------------
# What it cost


def cost_table(study: Study) -> Table | None:
    """Time, device-hours and energy of every stage and arm, and of all; None where nothing was run."""
    if not study.records:
        return None
    rows: list[tuple[str, list[TrialRecord]]] = []
    of_trials = [r for r in study.records.values() if r.role == "trial"]
    for role, name in (("ancestor", "pretraining"), ("choice", "options tried on validation")):
        records = [r for r in study.records.values() if r.role == role]
        if role == "ancestor":
            stages = dict.fromkeys(_stage_label(r) for r in records)
            rows += [(f"{name}: {s}", [r for r in records if _stage_label(r) == s]) for s in stages]
        elif records:
            rows.append((name, records))
    for arm in arms_of(study, [axis for axis in study.varying if axis not in (*REPEATED, "fold", "share")]):
        mine = [r for r in of_trials if all(r.point.get(axis) == value for axis, value in arm.where.items())]
        if mine:
            rows.append((f"trials: {arm.name}", mine))
    rows.append(("everything", by_run(study.records.values())))
    cells: list[Cell] = []
    for row, records in rows:
        cells += _cost(row, records)
    for figure in published("text"):
        row = figure.row
        cells.append(Cell(row=row, column="training time", published=figure.text, published_note=figure.note))
    notes = (
        "Sums over runs and their attempts; a dash was not measured. Failed runs count as far as they got.",
    )
    return table_of("cost", "What it cost", cells, corner="runs", notes=notes)


def _stage_label(record: TrialRecord) -> str:
    point = record.point
    return ", ".join(str(point[axis]) for axis in ("init", "size") if point.get(axis)) or record.id


def _cost(row: str, records: Sequence[TrialRecord]) -> list[Cell]:
    devices = dict.fromkeys(record.device for record in records if record.device)
    facts = {
        "runs": f"{len(records):,}",
        "device": "; ".join(devices) or "–",
        "training time": _sum(records, "seconds", 1 / 3600, " h"),
        "GPU-hours": _sum(records, "device_hours"),
        "CPU-hours": _sum(records, "cpu_hours"),
        "energy, kWh": _sum(records, "energy_kwh"),
    }
    return [Cell(row=row, column=column, measured=text) for column, text in facts.items()]


def _sum(records: Sequence[TrialRecord], field: str, scale: float = 1.0, unit: str = "") -> str:
    known = [getattr(record, field) for record in records if getattr(record, field) is not None]
    if not known:
        return "–"
    part = "" if len(known) == len(records) else f" ({len(known)} of {len(records)} runs)"
    return f"{number(sum(known) * scale, 2)}{unit}{part}"


# ---------------------------------------------------------------------------------------------------------
# Every trial


def trial_table(study: Study) -> Table:
    """Every trial of the grid, run or not."""
    cells: list[Cell] = []
    for trial in study.trials:
        record = trial.record
        row = name_of({axis: trial.point[axis] for axis in study.varying})
        if record is not None and any(cell.row == row for cell in cells):
            row = f"{row} ({record.id})"
        facts: dict[str, str] = {"state": record.state if record else "not run"}
        if record is not None:
            facts |= _scored(study, record)
            facts |= {
                "chosen on": record.chosen_on or ("last step" if record.state == "finished" else "–"),
                "steps": f"{record.steps:,}",
                "options picked": _options(record),
                "attempts": str(record.attempts),
                "leaks": str(len(record.leaks) or "none"),
                "problem": record.error or "–",
            }
        cells += [Cell(row=row, column=column, measured=text) for column, text in facts.items()]
    title = "Every trial" if study.spec.finetune else "Every run"
    return table_of("trials", title, cells, corner="trial")


def _scored(study: Study, record: TrialRecord) -> dict[str, str]:
    """Test and validation of a trial; of a pretraining run its validation loss."""
    if study.spec.finetune is None:
        return {"validation loss": number(record.validation.get("val/total", math.nan))}
    metric = study.spec.main_metric
    name = metric_name(metric)
    return {
        f"{name}, test": number(record.metrics.get(metric, math.nan)),
        f"{name}, validation": number(record.validation.get(f"val/{metric}", math.nan)),
    }


def _options(record: TrialRecord) -> str:
    told = (
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in record.chosen.items()
    )
    return ", ".join(told) or "–"


def choice_table(study: Study) -> Table | None:
    """Options that were tried on validation, by grid or search, best first; None where none were."""
    records = [record for record in study.records.values() if record.role == "choice"]
    if not records:
        return None
    by = study.spec.choose.by if study.spec.choose is not None else study.spec.main_metric
    names = list(dict.fromkeys(name for record in records for name in record.chosen))

    def score(record: TrialRecord) -> float:
        return record.validation.get(f"val/{by}", math.nan)

    cells: list[Cell] = []
    sign = -1.0 if higher_is_better(by) else 1.0
    for record in sorted(records, key=lambda r: (math.isnan(score(r)), sign * np.nan_to_num(score(r)), r.id)):
        facts = {
            "for": ", ".join(value_name(axis, record.point[axis]) for axis in study.varying) or "–",
            **{name: str(record.chosen.get(name, "–")) for name in names},
            f"validation, {metric_name(by)}": number(score(record)),
            "steps": f"{record.steps:,}",
            "state": record.state,
        }
        cells += [Cell(row=record.id, column=column, measured=text) for column, text in facts.items()]
    spec = study.spec.search
    how = "by validation, never on the test set"
    if spec is not None:
        how += f"; {spec.algorithm} search of {spec.trials} points, scheduler {spec.scheduler}"
    return table_of("choices", f"Options that were tried ({how})", cells, corner="run")
