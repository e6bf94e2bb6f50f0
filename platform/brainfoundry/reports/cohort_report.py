"""The report of a cohort: CONSORT diagram, demographics, balance of the splits; files, and one page."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib.metadata import version

from brainfoundry.cohorts.left_out import same_ids
from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.cohorts.participants import Participants
from brainfoundry.core import files
from brainfoundry.reports import consort, consort_figure, demographics, demographics_figure, paper
from brainfoundry.reports.balance import Balance, balance_csv, compare
from brainfoundry.reports.page import Page
from brainfoundry.reports.suppress import HIDDEN, SMALL, THRESHOLD

FILES = (
    "consort.png", "consort.svg", "consort.csv", "demographics.png", "demographics.svg", "demographics.csv",
    "table1.csv", "balance.csv", "report.html",
)  # fmt: skip
"""What a report consists of, the page last."""

_SUPPRESSION = (
    f"Counts of 1 to {THRESHOLD - 1} participants are shown as {SMALL}. Where a sum beside it would give "
    f"such a count away, others are hidden too: zeros as {SMALL}, larger counts as {HIDDEN}. Sizes of the "
    "cohort and of its splits are the study's own and are shown. Where a count of a section is hidden, its "
    "test is told without its n, and p as a range."
)
_NAMES = {"ukb": "UK Biobank", "brats": "BraTS", "atlas": "ATLAS"}


@dataclass(frozen=True)
class Report:
    """A report in memory: file name -> bytes."""

    parts: dict[str, bytes]
    balance: tuple[Balance, ...]

    def write(self, folder: str) -> list[str]:
        """Write all files, the page last; returns their URIs.

        Raises:
            DataError: the folder cannot be written.
        """
        files.check_writable(folder)
        for name in FILES:
            files.write_bytes(files.join(folder, name), self.parts[name])
        return [files.join(folder, name) for name in FILES]


def make_report(
    manifest: Manifest,
    *,
    participants: Participants | None = None,
    tumours: Collection[str] | None = None,
    show_small_counts: bool = False,
    notes: Iterable[str] = (),
) -> Report:
    """Everything there is to say of who is in a cohort, without any subject's id.

    Args:
        participants: their table, read for the manifest's subjects.
        tumours: ids with a brain tumour on record, to be counted; None: not asked.
        show_small_counts: show counts under 5 as well.
        notes: sentences on where the figures come from.

    Raises:
        DataError: a cell of the table that cannot be read.
    """
    ukb = manifest.meta.cohort == "ukb"
    flow = consort.flow(manifest, show_small_counts=show_small_counts)
    people = demographics.people(manifest, participants, tumours)
    table = demographics.tabulate(people, show_small_counts=show_small_counts)
    results = compare(table)
    consort_png, consort_svg = consort_figure.draw(flow)
    people_png, people_svg = demographics_figure.draw(table, beside_paper=ukb)

    name = _NAMES.get(manifest.meta.cohort, manifest.meta.cohort)
    lead = f"{manifest.meta.stage.capitalize()} manifest {manifest.hash[:12]}"
    page = Page(f"Cohort report: {name}", lead=lead)
    _say_what(page, manifest, table, [*notes, *people.notes], show_small_counts)
    _say_consort(page, manifest, flow, consort_svg, ukb)
    _say_people(page, table, people_svg, ukb)
    _say_balance(page, results)
    parts = {
        "consort.png": consort_png,
        "consort.svg": consort_svg,
        "consort.csv": flow.csv(),
        "demographics.png": people_png,
        "demographics.svg": people_svg,
        "demographics.csv": table.figure_csv(),
        "table1.csv": table.csv(),
        "balance.csv": balance_csv(results),
        "report.html": page.html().encode(),
    }
    return Report(parts, tuple(results))


def _say_what(
    page: Page, manifest: Manifest, table: demographics.Table, notes: Iterable[str], show_small_counts: bool
) -> None:
    meta = manifest.meta
    space = meta.template_space or "scanner space"
    state = "skull-stripped" if meta.skull_stripped else "with skull"
    page.text(f"Modalities {', '.join(meta.modalities)}; {space}, {state}. {table.size(demographics.ALL):,} "
              "participants are included.")  # fmt: skip
    page.text(
        "All counts are shown, small ones too: not for publication." if show_small_counts else _SUPPRESSION
    )
    page.items([note[0].upper() + note[1:] + "." for note in notes if note])
    made = f"Made by BrainFoundry {version('brainfoundry')} from the manifest, without any scan"
    page.text(f"{made}. Hash of the manifest: {manifest.hash}.")


def _say_consort(page: Page, manifest: Manifest, flow: consort.Flow, svg: bytes, ukb: bool) -> None:
    page.heading("Who was left out, and by which rule")
    page.figure(
        svg,
        "CONSORT diagram. A session is counted at the first rule it fails; a participant is included with at "
        "least one session, and else counted at the rule that its furthest session failed.",
        alt="Flow of participants: boxes down for who remains, boxes to the right for who was left out.",
    )
    rows = []
    for step in flow.steps:
        rows.append([step.text, step.subjects, step.sessions])
        rows += [
            [f"left out: {line.text}", line.subjects, line.sessions] for box in step.boxes for line in box
        ]
    rows += [[f"of these, {split.text}", split.subjects, split.sessions] for split in flow.splits]
    page.table(["", "subjects", "sessions"], rows, caption="The same as a table")
    if flow.suppressed:
        page.text("The manifest's own notes are not shown: they hold counts.")
    else:
        page.items(_notes_without_ids(manifest))
    if ukb:
        volumes = paper.fig3()["volumes"]
        page.heading("The paper's cohort", level=3)
        page.table(["paper, Fig. 3", "participants"], [list(entry) for entry in flow.paper])
        page.text(f"Two modalities each: {volumes:,} volumes ({paper.SOURCE}).")
        page.items(paper.FIG3_NOTES)
    elif manifest.meta.cohort in _NAMES:
        name = _NAMES[manifest.meta.cohort]
        page.text(f"The paper used {paper.subjects()[name]:,} subjects of {name} (Table 1; {paper.SOURCE}).")


def _notes_without_ids(manifest: Manifest) -> list[str]:
    """The manifest's notes, without any that names a subject."""
    subjects = {spelling for s in manifest.table["subject"].to_pylist() for spelling in same_ids(s)}
    return [note for note in manifest.meta.notes if subjects.isdisjoint(note.replace(",", " ").split())]


def _say_people(page: Page, table: demographics.Table, svg: bytes, ukb: bool) -> None:
    page.heading("Who is in it")
    page.figure(
        svg,
        f"Demographics of the included participants; age is the {table.people.age_kind}."
        + (" Grey: the paper's 40K cohort (Table 7)." if ukb else ""),
        alt="Four panels: ages by sex; age bands, sex and ethnicity of every split.",
    )
    headers, rows = table.printed()
    if rows:
        page.table(headers, rows, caption="Table 1: participants by split")
    else:
        page.text("Nothing is known of the participants: give a table with --participants.")
    if ukb:
        page.table(*table.beside_paper(), caption="Beside the paper's Table 7")
        page.items(paper.TABLE7_NOTES)


def _say_balance(page: Page, results: Iterable[Balance]) -> None:
    page.heading("Are the splits alike?")
    results = list(results)
    if not results:
        page.text("There is only one split with participants of whom anything is known: nothing to compare.")
        return
    page.items([result.sentence for result in results])
    page.table(
        ["characteristic", "test", "n", "p", "largest difference"],
        [[r.subject, r.test, r.n, r.p, r.difference] for r in results], caption="Balance between splits",
    )  # fmt: skip
    page.text(
        "Only participants with an answer are in a test; p is not corrected for several tests. A p above "
        "0.05 does not show that splits are equal, and with tens of thousands of participants a p below it "
        "need not matter: see the largest difference."
    )
