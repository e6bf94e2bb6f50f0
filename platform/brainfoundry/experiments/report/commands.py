"""The commands that fill what is missing in a table."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from brainfoundry.experiments.report.results import Study, Trial
from brainfoundry.experiments.spec import study_names

_JOB = ("ray", "job", "submit", "--", "python", "jobs/study.py")


def fill(study: Study, trials: Sequence[Trial]) -> str:
    """What runs these trials of a study, and no others that one value an axis tells apart from them."""
    only = {}
    for axis in study.varying:
        wanted = list(dict.fromkeys(_shown(trial.point[axis]) for trial in trials))
        if len(wanted) < len(study.values_of(axis)):
            only[axis] = ",".join(wanted)
    return _command(study, study.submitted or _which(study.spec.name), only)


def elsewhere(table: str, study: Study, axes: Mapping[str, Any]) -> str:
    """What makes a cell of the paper's tables that this study's grid does not have: our study of it."""
    return _command(study, (table,), {axis: _shown(value) for axis, value in axes.items()})


def _command(study: Study, named: Sequence[str], only: Mapping[str, str]) -> str:
    words = [*_JOB, *named, "--storage", study.folder.uri.rpartition("/")[0]]
    if study.cohorts:
        words += ["--cohorts", *(f"{cohort}={uri}" for cohort, uri in study.cohorts.items())]
    if only:
        words += ["--only", *(f"{axis}={values}" for axis, values in only.items())]
    return shlex.join(words)


def _which(name: str) -> tuple[str, ...]:
    """A study whose words were not kept: ours by name and preset, else a file that is named as the study."""
    for known in study_names():
        if name == known:
            return (known,)
        if name.startswith(f"{known}-"):
            return known, "--preset", name.removeprefix(f"{known}-")
    return (f"{name}.yaml",)


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
