"""The figures of a study: their data taken from its trials, and drawn."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.cohorts.strata import UNKNOWN, people_of
from brainfoundry.core.errors import DataError
from brainfoundry.experiments.axes import REPEATED
from brainfoundry.experiments.report.compare import (
    Arm,
    estimate,
    in_same_repetitions,
    keyed,
    mean_over,
    repetitions,
)
from brainfoundry.experiments.report.figures_curves import (
    Bar,
    Curve,
    Point,
    difference_figure,
    few_shot_figure,
    loss_figure,
)  # fmt: skip
from brainfoundry.experiments.report.figures_groups import group_figure, rank_figure
from brainfoundry.experiments.report.figures_lineage import lineage_figure
from brainfoundry.experiments.report.figures_style import metric_name
from brainfoundry.experiments.report.lineage import boxes
from brainfoundry.experiments.report.results import Study
from brainfoundry.experiments.report.tables_grid import arms_of
from brainfoundry.experiments.report.tables_study import pairs
from brainfoundry.experiments.stats import GroupRow, bounds_of, by_group, rank_stability
from brainfoundry.experiments.stats.groups import ALL
from brainfoundry.reports.demographics import AGE_BANDS, SEXES, age_band
from brainfoundry.tasks.scores import higher_is_better

_ZOOM = 1.7
"""CSS pixels a point of a figure."""
MOST_ARMS = 6
"""Arms in the figures by group; more cannot be told apart."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure.

    Args:
        name: file name without ending.
    """

    name: str
    caption: str
    png: bytes
    svg: bytes

    @property
    def width(self) -> int:
        """CSS pixels on the page: letters of one size in all figures."""
        found = re.search(rb'<svg[^>]* width="([0-9.]+)pt"', self.svg)
        return round(float(found[1]) * _ZOOM) if found else 600


def pictures_of(study: Study) -> list[Picture]:
    """Every figure that the study's files allow, the most telling first."""
    makers = (few_shot, differences, ranks, groups, losses, lineage)
    return [picture for make in makers if (picture := make(study)) is not None]


def _arms(study: Study, *across: str) -> list[Arm]:
    return arms_of(study, [axis for axis in study.varying if axis not in (*REPEATED, *across)])


def losses(study: Study) -> Picture | None:
    """Fig. 4: training and validation losses of the pretraining runs."""
    curves: list[Curve] = []
    records = [record for record in study.pretraining if record.losses]
    axes = [
        a
        for a in ("init", "size", "objective", "fold", "pretrain_seed")
        if len({str(r.point.get(a)) for r in records}) > 1
    ]
    for record in records:
        label = ", ".join(str(record.point.get(axis)) for axis in axes) or str(
            record.point.get("size", record.id)
        )
        for name, (steps, values) in study.losses(record).items():
            if name in ("train/total", "val/total"):
                curves.append(
                    Curve(label=label, validation=name.startswith("val/"), steps=steps, values=values)
                )
    if not curves:
        return None
    png, svg = loss_figure(curves)
    caption = (
        "Pretraining losses (the paper's Fig. 4): of training crops to the left, of held-out subjects to "
        "the right."
    )
    return Picture(name="fig4", caption=caption, png=png, svg=svg)


def few_shot(study: Study) -> Picture | None:
    """Fig. 5: the metric by share of the labels."""
    if "share" not in study.varying:
        return None
    metric = study.spec.main_metric
    points = []
    for arm in _arms(study, "share", "fold"):
        for share in study.values_of("share"):
            trials = study.scored({**arm.where, "share": share})
            found = estimate(trials, metric) if trials else None
            if found is not None:
                points.append(
                    Point(
                        arm=arm.name, share=share, estimate=found[0], draws=tuple(repetitions(trials, metric))
                    )
                )
    if not points:
        return None
    png, svg = few_shot_figure(points, metric)
    caption = (
        f"{_upper(metric_name(metric))} by share of the labels (the paper's Fig. 5): means with 95 % "
        "intervals over draws and test subjects (test subjects alone where there is one draw); every dot "
        "is one draw."
    )
    return Picture(name="fig5", caption=caption, png=png, svg=svg)


def differences(study: Study) -> Picture | None:
    """Paired differences to the comparator."""
    compared = pairs(study)
    if not compared:
        return None
    metric, primary = study.spec.main_metric, study.spec.primary
    bases = dict.fromkeys(base.name for _, base, _ in compared)
    alone = len(bases) == 1
    bars = [
        Bar(
            label=arm.name if alone else f"{arm.name} minus {base.name}",
            estimate=made.estimate,
            clear=made.clear,
        )
        for arm, base, made in compared
    ]
    smallest = primary.smallest_effect if primary is not None else None
    png, svg = difference_figure(
        bars, metric=metric, comparator=next(iter(bases)) if alone else "its comparator", smallest=smallest,
        better_right=higher_is_better(metric),
    )  # fmt: skip
    caption = "Paired differences with 95 % intervals; filled where the interval leaves out 0."
    if smallest:
        caption += f" Grey: differences smaller than the smallest of interest (±{smallest:g})."
    return Picture(name="differences", caption=caption, png=png, svg=svg)


def _scores(study: Study, metric: str, limit: int) -> tuple[dict[str, dict[str, float]], str]:
    """Arm -> subject -> mean over its repetitions, the same for all, where the primary endpoint looks; and a
    sentence on the arms that have fewer."""
    primary = study.spec.primary
    across = {
        axis: value
        for axis, value in (primary.where if primary else {}).items()
        if axis in ("share", "modalities")
    }
    if "share" in study.varying and "share" not in across:
        across["share"] = max(study.values_of("share"))
    arms = {
        arm.name: keyed(study.scored({**arm.where, **across}), metric)
        for arm in _arms(study, "fold", *across)
    }
    alike = in_same_repetitions({name: scores for name, scores in arms.items() if scores})
    fewer = [name for name, scores in arms.items() if scores and name not in alike]
    found = {name: mean_over(list(scores.values())) for name, scores in list(alike.items())[:limit]}
    return found, f" Left out, without all of the same repetitions: {'; '.join(fewer)}." if fewer else ""


def _condition(study: Study) -> str:
    primary = study.spec.primary
    if "share" not in study.varying:
        return ""
    share = (primary.where if primary else {}).get("share", max(study.values_of("share")))
    return f" At {share:g} % of the labels."


def ranks(study: Study) -> Picture | None:
    """How stable the ranking of the arms is."""
    metric = study.spec.main_metric
    scores, fewer = _scores(study, metric, limit=20)
    try:
        found = rank_stability(scores, higher_is_better=higher_is_better(metric))
    except DataError:  # fewer than two arms, or no subject in all of them
        return None
    png, svg = rank_figure(found, metric)
    caption = (
        "Ranks of the arms over 2,000 bootstrap samples of the test subjects, with the subsets of labels as "
        "they were drawn: the area of a disc, and the number in it, is the per cent of samples with that "
        f"rank; in brackets the mean.{_condition(study)}{fewer}"
    )
    return Picture(name="ranks", caption=caption, png=png, svg=svg)


def groups(study: Study) -> Picture | None:
    """The metric by site, sex and age band of the test subjects."""
    metric = study.spec.main_metric
    test = next(
        (t.record.test for t in study.trials if t.scored and t.record is not None and t.record.test), None
    )
    manifest = study.manifest_of(test) if test is not None else None
    if manifest is None:
        return None
    scores, fewer = _scores(study, metric, MOST_ARMS)
    shared = set.intersection(*(set(of) for of in scores.values())) if scores else set()
    shared = {s for s in shared if not any(np.isnan(of[s]) for of in scores.values())}
    panels: dict[str, Mapping[str, Sequence[GroupRow]]] = {}
    for what, of in strata(manifest, shared).items():
        rows = {
            arm: sorted(by_group({s: mine[s] for s in shared}, of, bounds=bounds_of(metric)), key=_place)
            for arm, mine in scores.items()
        }
        # Everybody stands in the first panel; once is enough.
        panels[what] = {arm: own[1:] if panels else own for arm, own in rows.items()}
    if not panels:
        return None
    png, svg = group_figure(panels, metric)
    caption = (
        f"{_upper(metric_name(metric))} by {', '.join(panels)} of the test subjects, with 95 % intervals. "
        "Counts under 5, and those that would give one away, are hidden with their means. With many "
        f"groups some differ by chance.{_condition(study)}{fewer}"
    )
    return Picture(name="groups", caption=caption, png=png, svg=svg)


def strata(manifest: Manifest, subjects: set[str]) -> dict[str, dict[str, str]]:
    """What is known of the subjects: sex, age band, site (or scanner) -> subject -> group."""
    people = {name: person for name, person in people_of(manifest).items() if name in subjects}
    found: dict[str, dict[str, str]] = {}
    for column, title in (("sex", "sex"), ("age", "age"), ("site", "site or scanner")):
        known = {s: person.values[column] for s, person in people.items() if column in person.values}
        if known:
            found[title] = {s: _group(column, known.get(s)) for s in subjects}
    return found


def _place(row: GroupRow) -> int:
    """Age bands in order of age; everything else as it came."""
    return 1 + AGE_BANDS.index(row.group) if row.group in AGE_BANDS else 0 if row.group == ALL else 9


def _group(column: str, value: str | float | None) -> str:
    if value is None:
        return UNKNOWN
    if column == "age":
        return age_band(float(value))
    return SEXES.get(str(value), str(value)) if column == "sex" else str(value)


def lineage(study: Study) -> Picture | None:
    """Stages and lineage."""
    if not study.records:
        return None
    png, svg = lineage_figure(boxes(study))
    caption = (
        "Which weights came from which, and on how many subjects; dashed where test subjects were seen in "
        "training."
    )
    return Picture(name="lineage", caption=caption, png=png, svg=svg)


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]
