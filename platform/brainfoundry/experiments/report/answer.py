"""What a study found, in a sentence that claims no more than the interval of its primary endpoint does."""

from __future__ import annotations

import math
from dataclasses import dataclass

from brainfoundry.experiments.axes import DEFAULTS, REPEATED
from brainfoundry.experiments.report import commands
from brainfoundry.experiments.report.cells import digits_of, interval, number
from brainfoundry.experiments.report.compare import Difference, difference
from brainfoundry.experiments.report.figures_style import metric_name
from brainfoundry.experiments.report.results import Study, Trial
from brainfoundry.experiments.report.tables_grid import leaks, value_name
from brainfoundry.experiments.study import PrimarySpec
from brainfoundry.tasks.scores import higher_is_better


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A study's question, and what its trials say to it.

    Args:
        sentence: for the first screen.
        cautions: what a reader must know with it: missing trials, leaks, what the interval does not cover.
        command: what makes the missing trials; "" where none are.
        found: the difference; None where there is none yet.
    """

    question: str
    sentence: str
    cautions: tuple[str, ...] = ()
    command: str = ""
    found: Difference | None = None


def answer_of(study: Study) -> Answer:
    """What the primary endpoint of a study says so far."""
    primary = study.spec.primary
    if primary is None:
        what = "its trials" if study.spec.finetune is not None else "its pretraining runs"
        return Answer(
            question=study.spec.title,
            sentence=f"This study names no primary endpoint: the tables describe {what}, no more.",
        )
    shared = _shared(study, primary)
    first, second = (study.select({**shared, primary.axis: arm}) for arm in primary.arms)
    names = tuple(_said(primary.axis, arm) for arm in primary.arms)
    at = ", ".join(_said(axis, value) for axis, value in shared.items())
    at = f" at {at}" if at else ""
    question = f"Does {names[1]} change {metric_name(primary.metric)}{at}, against {names[0]}?"
    missing = [trial for trial in (*first, *second) if not trial.scored]
    command = commands.fill(study, missing) if missing else ""
    found = difference([t for t in second if t.scored], [t for t in first if t.scored], primary.metric)
    if found is None:
        done = len(first) + len(second) - len(missing)
        sentence = (
            f"Not answered yet: {done} of {len(first) + len(second)} trials of the primary endpoint are done"
        )
        none = ", and they share no test subject with a score" if done and not missing else ""
        return Answer(question=question, sentence=f"{sentence}{none}.", command=command)
    sentence = f"{names[1]} minus {names[0]}{at}: {_told(found)}: {verdict(found, primary)}"
    cautions = list(_cautions(study, [*first, *second], missing, found))
    return Answer(
        question=question, sentence=sentence, cautions=tuple(cautions), command=command, found=found
    )


def _shared(study: Study, primary: PrimarySpec) -> dict[str, object]:
    """What the trials of both arms have in common: what the endpoint says, and of every other axis one value.

    That is the default, else the first that both arms have; a repetition (and a fold) has all its values.
    """
    where = dict(primary.where)
    for axis in study.varying:
        if axis in (*where, primary.axis, *REPEATED, "fold"):
            continue
        first, second = (
            list(dict.fromkeys(trial.point[axis] for trial in study.select({**where, primary.axis: arm})))
            for arm in primary.arms
        )
        both = [value for value in first if value in second]
        if both and max(len(first), len(second)) > 1:
            where[axis] = DEFAULTS[axis] if DEFAULTS[axis] in both else both[0]
    return where


def _said(axis: str, value: object) -> str:
    """A condition in words, such as "5 % labels" or "size small"."""
    return f"{axis} {value}" if axis in ("size", "variant", "family") else value_name(axis, value)


def _told(found: Difference) -> str:
    e = found.estimate
    sample = f"{e.n:,} test subject{'' if e.n == 1 else 's'}"
    if found.draws is not None:
        sample = (
            f"{found.draws.draws} {found.draws.repeated}s × {sample}" if found.draws.draws > 1 else sample
        )
        sample = f"{found.draws.seeds} pretraining seeds × {sample}" if found.draws.seeds > 1 else sample
    return f"{number(e.value, digits_of(e, 3), signed=True)} ({interval(e) or 'no interval'}), {sample}"


def verdict(found: Difference, primary: PrimarySpec) -> str:
    """What the interval allows to say, and nothing beyond it."""
    e, smallest = found.estimate, primary.smallest_effect
    if math.isnan(e.low):
        return "without an interval nothing can be concluded."
    detectable = found.detectable
    power = ""
    if detectable is not None and not math.isnan(detectable):
        power = f"; smallest detectable difference {number(detectable)}"
    if e.low <= 0 <= e.high:
        said = "the interval contains 0"
        if smallest and max(abs(e.low), abs(e.high)) < smallest:
            said += f" and lies within ±{smallest:g}, the smallest difference of interest"
        elif smallest:
            said += f", and differences of interest (±{smallest:g}) are not ruled out"
        return f"{said}{power}."
    if found.flattered:
        return f"the interval leaves out 0, but no longer where a missed region counts as far away{power}."
    side = "above" if e.low > 0 else "below"
    better = (e.low > 0) == higher_is_better(primary.metric)
    said = f"the interval lies {side} 0, in favour of {primary.arms[1] if better else primary.arms[0]}"
    if smallest:
        least, most = sorted((abs(e.low), abs(e.high)))
        where = (
            "wholly beyond" if least >= smallest else "wholly within" if most < smallest else "partly within"
        )
        said += f", and {where} the smallest difference of interest (±{smallest:g})"
    return f"{said}{power}."


def _cautions(study: Study, trials: list[Trial], missing: list[Trial], found: Difference) -> list[str]:
    said = []
    if missing:
        said.append(
            f"Preliminary: {len(missing)} of {len(trials)} trials of the primary endpoint are missing."
        )
    said += leaks([trial for trial in trials if trial.scored])
    if found.draws is not None:
        covers = found.draws.covers
        said.append(f"The interval {covers[0].lower()}{covers[1:]}")
    else:
        said.append(
            "Each arm was trained once: the interval speaks of test subjects alone, and another subset of "
            "labels or another training may give another difference."
        )
    said += [f"On the interval: {warning}." for warning in found.warnings]
    if study.spec.notes:
        said += list(study.spec.notes)
    return said
