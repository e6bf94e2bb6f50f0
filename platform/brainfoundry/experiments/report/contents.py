"""Everything a report of studies consists of: tables and figures by name, and the files they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.core import files
from brainfoundry.experiments.report import tables_facts, tables_scores, tables_study
from brainfoundry.experiments.report.answer import Answer, answer_of
from brainfoundry.experiments.report.cells import Table
from brainfoundry.experiments.report.export import to_csv, to_latex
from brainfoundry.experiments.report.pictures import Picture, pictures_of
from brainfoundry.experiments.report.results import Study, StudyResults

PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class StudyContents:
    """What is told of one study.

    Args:
        main: the table of the first screen; None for a study without scores.
        scores: all tables of scores, those of the paper first.
        behind: comparisons, cost, trials, options that were tried, settings.
    """

    study: Study
    answer: Answer
    main: Table | None
    scores: tuple[Table, ...]
    behind: tuple[Table, ...]

    @cached_property
    def pictures(self) -> tuple[Picture, ...]:
        """Figures, the most telling first; drawn when they are asked for."""
        return tuple(pictures_of(self.study))

    @property
    def tables(self) -> tuple[Table, ...]:
        """Every table, each once."""
        every = ((self.main,) if self.main is not None else ()) + self.scores + self.behind
        return tuple({table.name: table for table in every}.values())

    def table(self, name: str) -> Table | None:
        """A table by its name."""
        return next((table for table in self.tables if table.name == name), None)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What is told of all studies of a report.

    Args:
        common: cohorts, sizes and demographics, which the studies share.
    """

    studies: tuple[StudyContents, ...]
    common: tuple[Table, ...]

    def parts(self) -> dict[str, bytes]:
        """File name -> bytes of every table (CSV, LaTeX) and figure (PNG, SVG)."""
        found: dict[str, bytes] = {}
        for table in self.common:
            found |= _table_files(table, "")
        for one in self.studies:
            prefix = f"{one.study.name}-" if len(self.studies) > 1 else ""
            for table in one.tables:
                found |= _table_files(table, prefix)
            for picture in one.pictures:
                found[f"figures/{prefix}{picture.name}.png"] = picture.png
                found[f"figures/{prefix}{picture.name}.svg"] = picture.svg
        return found

    def write(self, folder: str, page: str) -> list[str]:
        """Write every file, the page last; returns their URIs.

        Raises:
            DataError: the folder cannot be written.
        """
        files.check_writable(folder)
        parts = {**self.parts(), PAGE: page.encode()}
        for below in {name.rpartition("/")[0] for name in parts} - {""}:
            files.make_folder(files.join(folder, below))
        for name, data in parts.items():
            files.write_bytes(files.join(folder, name), data)
        return [files.join(folder, name) for name in parts]


def _table_files(table: Table, prefix: str) -> dict[str, bytes]:
    where = f"tables/{prefix}{table.name}"
    return {f"{where}.csv": to_csv(table), f"{where}.tex": to_latex(table).encode()}


def contents_of(results: StudyResults) -> Contents:
    """Tables and figures of the studies."""
    return Contents(
        studies=tuple(_study(study) for study in results.studies), common=tuple(_common(results.studies))
    )


def _study(study: Study) -> StudyContents:
    scores = tables_scores.score_tables(study)
    main = scores[0] if scores else None
    if main is not None and main.name == "table9":
        main = tables_scores.few_shot_table(study, each_draw=False)
    details = tables_scores.metric_details(study)
    if main is not None and details is not None and set(details.columns) <= set(main.columns):
        details = None
    behind = [
        tables_study.comparison_table(study), details, tables_study.choice_table(study),
        tables_facts.settings_table(study), tables_study.cost_table(study), tables_study.trial_table(study),
    ]  # fmt: skip
    return StudyContents(
        study=study, answer=answer_of(study), main=main, scores=tuple(scores),
        behind=tuple(table for table in behind if table is not None),
    )  # fmt: skip


def _common(studies: Sequence[Study]) -> list[Table]:
    sizes = {str(trial.point["size"]) for study in studies for trial in study.trials}
    tables = [tables_facts.cohort_table(studies), tables_facts.size_table(sizes)]
    manifests: dict[str, Manifest] = {}
    for study in studies:
        for name, manifest in study.manifests.items():
            if isinstance(manifest, Manifest):
                manifests.setdefault(name, manifest)
    people = [tables_facts.demographics_table(name, manifest) for name, manifest in manifests.items()]
    return tables + [table for table in people if table is not None]
