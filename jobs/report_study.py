#!/usr/bin/env python
"""Report on studies: the paper's tables and figures from your own runs, with intervals, and one page.

Reads the studies' records, score tables, cards and manifests; no scan, no tracking server. Published figures
stand beside yours, marked so, and are compared with nothing. What is missing is shown with the command that
makes it.

    python jobs/report_study.py runs/studies/table9
    python jobs/report_study.py runs/studies/table4 runs/studies/table9 --out report
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError
from brainfoundry.core.job import run_job
from brainfoundry.experiments.report.contents import contents_of
from brainfoundry.experiments.report.mlflow_check import check_runs
from brainfoundry.experiments.report.page import report_page
from brainfoundry.experiments.report.results import StudyResults


@dataclass(frozen=True, kw_only=True)
class ReportStudyConfig:
    studies: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Folders of studies (STORAGE/NAME), as jobs/study.py printed them."""
    out: str = ""
    """Folder or URI for the report. Empty: report/ in the (first) study's folder."""
    mlflow: str = ""
    """Tracking URI: also check that every record's MLflow run is there. Empty: nothing is asked."""


def main(config: ReportStudyConfig) -> None:
    if not config.studies:
        raise ConfigError("no study was named", fix="name the folder of at least one, STORAGE/NAME")
    results = StudyResults.open(config.studies)
    contents = contents_of(results)
    notes = check_runs(results, config.mlflow) if config.mlflow else ()

    out = config.out or files.join(results.studies[0].folder.uri, "report")
    written = contents.write(out, report_page(contents, notes=notes))
    for one in contents.studies:
        print(f"{one.study.name}: {one.answer.sentence}")
        for caution in one.answer.cautions:
            print(f"- {caution}")
        if one.answer.command:
            print(f"  {one.answer.command}")
    for note in notes:
        print(f"- {note}")
    print(f"{len(written)} files in {out}; all on one page: {written[-1]}")


if __name__ == "__main__":
    run_job(ReportStudyConfig, main, description=__doc__)
