"""The page of a report: question, answer, main table and figure on the first screen; then their grounds."""

from __future__ import annotations

from importlib.metadata import version

from brainfoundry.experiments.report import commands
from brainfoundry.experiments.report.contents import Contents, StudyContents
from brainfoundry.experiments.report.pictures import Picture
from brainfoundry.experiments.report.results import Study
from brainfoundry.experiments.report.table_html import StudyPage
from brainfoundry.reports.paper import SOURCE

_FIRST = ("fig5", "differences", "fig4")
"""Figures for the first screen; the first that there is."""


def report_page(contents: Contents, *, notes: tuple[str, ...] = ()) -> str:
    """The page as HTML, self-contained.

    Args:
        notes: sentences on how it was made.
    """
    studies = contents.studies
    alone = len(studies) == 1
    title = (
        studies[0].study.spec.title if alone else "Studies: " + ", ".join(one.study.name for one in studies)
    )
    page = StudyPage(title, lead="; ".join(_lead(one.study) for one in studies))
    for one in studies:
        if not alone:
            page.heading(one.study.spec.title)
        _first_screen(page, one)
    for one in studies:
        _details(page, one, "" if alone else f"{one.study.name}: ")
    page.heading("Cohorts, sizes, demographics")
    for table in contents.common:
        page.cells(table)
    page.heading("How this was made")
    page.items(
        [
            f"Made by BrainFoundry {version('brainfoundry')} from the studies' records, score tables, "
            "cards and manifests alone.",
            f'Figures marked "published" are from {SOURCE}.',
            "Intervals of a mean are Student's with the skewness removed (Hall 1992); of a paired "
            "difference Student's; over several draws two-level (draws and test subjects). How well they "
            "cover was measured by simulation.",
            *notes,
        ]
    )
    return page.html()


def _lead(study: Study) -> str:
    done = sum(trial.scored or bool(trial.record and trial.record.done) for trial in study.trials)
    failed = sum(bool(trial.record and trial.record.state == "failed") for trial in study.trials)
    told = f"study {study.name}: {done} of {len(study.trials)} trials done"
    if failed:
        told += f", {failed} failed"
    last = max((record.ended for record in study.records.values() if record.ended), default="")
    return told + (f", the last on {last[:10]}" if last else "")


def _first_figure(one: StudyContents) -> Picture | None:
    by_name = {picture.name: picture for picture in one.pictures}
    return next((by_name[name] for name in _FIRST if name in by_name), None)


def _first_screen(page: StudyPage, one: StudyContents) -> None:
    answer, figure = one.answer, _first_figure(one)
    page.first_screen(
        answer.question,
        answer.sentence,
        answer.cautions,
        figure.svg if figure else b"",
        figure.caption if figure else "",
    )
    if answer.command:
        page.commands("What makes the missing trials of the primary endpoint", [answer.command])
    if one.main is not None:
        page.cells(one.main)


def _details(page: StudyPage, one: StudyContents, prefix: str) -> None:
    if one.study.spec.finetune is not None:
        page.heading(_capital(f"{prefix}rules of the scores"))
        policies = one.study.policies
        page.items([f"{name.replace('_', ' ')}: {text}" for name, text in policies.items()])
        if not policies:
            page.text("No trial has been scored yet.")
    _missing(page, one.study)
    tables = [table for table in (*one.scores, *one.behind) if table is not one.main]
    page.heading(_capital(f"{prefix}further figures"))
    for picture in one.pictures:
        if picture is not _first_figure(one):
            page.figure(picture.svg, picture.caption, width=picture.width)
    page.heading(_capital(f"{prefix}further tables"))
    for table in tables:
        page.cells(table)


def _missing(page: StudyPage, study: Study) -> None:
    missing = [
        trial for trial in study.trials if not trial.scored and not (trial.record and trial.record.done)
    ]
    if not missing:
        return
    page.text(
        f"{len(missing)} of {len(study.trials)} trials are missing. Submitting the study again makes them; "
        "what is done is not run again."
    )
    page.commands("The command that makes all of them", [commands.fill(study, missing)])


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
