"""What a verification leaves behind: tables, and a self-contained page with a picture of every suspect."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.table import Table

from brainfoundry.core import files
from brainfoundry.core.progress import progress
from brainfoundry.quality.executors import Executor, inline
from brainfoundry.quality.findings import CODES, Finding, count, write_findings
from brainfoundry.quality.thumbnails import Look, picture
from brainfoundry.quality.verify import Verification
from brainfoundry.reports.page import Cell, Page
from brainfoundry.store.meta import LABEL

PAGE = "verify.html"
_WIDTH = 460
_ROWS = 2_000
"""Findings the page lists; the tables hold all."""

_PATH = re.compile(r" \[[^]]*\]")

Suspect = tuple[str, str, str]
"""Subject, session, modality."""


def write_report(
    done: Verification, out_uri: str, *, thumbnails: int = 60, executor: Executor = inline
) -> list[str]:
    """Write `findings.csv`, `findings.parquet` and `verify.html` into a folder.

    Args:
        thumbnails: most suspects to show a picture of, errors first.

    Returns:
        The files' URIs.
    """
    pictures = _pictures(done, thumbnails, executor)
    written = [*write_findings(out_uri, done.findings), files.join(out_uri, PAGE)]
    files.write_bytes(written[-1], page(done, pictures, cap=thumbnails).encode())
    return written


def suspects(findings: Iterable[Finding]) -> dict[Suspect, list[Finding]]:
    """Findings by the scan they are about, in the order of their first; a whole session has modality ""."""
    found: dict[Suspect, list[Finding]] = {}
    for one in findings:
        if one.subject:
            found.setdefault((one.subject, one.session, one.modality), []).append(one)
    return found


def _pictures(done: Verification, most: int, executor: Executor) -> dict[Suspect, bytes]:
    targets = {target.row.key: target for target in done.of.targets}
    chosen = [who for who in suspects(done.findings) if who[:2] in targets][:most]
    found: dict[Suspect, bytes] = {}
    with progress("drawing suspects", len(chosen), "scans") as bar:
        looks = ((who, Look(target=targets[who[:2]], modality=who[2])) for who in chosen)
        for who, image in executor(_named, looks):
            bar.advance()
            if image is not None:
                found[who] = image
    return found


def _named(item: tuple[Suspect, Look]) -> tuple[Suspect, bytes | None]:
    return item[0], picture(item[1])


def page(done: Verification, pictures: dict[Suspect, bytes], *, cap: int) -> str:
    """The HTML page."""
    expect = done.of.expect
    sheet = Page(f"Verification: {done.of.name}", lead=f"{done.of.where}. {sentence(done)}")
    sheet.heading("What was claimed")
    claims = [
        ["modalities", ", ".join(expect.modalities)],
        ["template space", expect.space or "scanner space"],
    ]
    claims += [["skull-stripped", "yes" if expect.skull_stripped else "no"]]
    claims += [["labels", expect.labels or "none"], ["fewest slices with brain", str(expect.min_slices)]]
    sheet.table(["claim", "value"], claims)
    sheet.heading("What was found")
    if not done.findings:
        sheet.text("Nothing: every scan is what the manifest says it is.")
        return sheet.html()
    counts = count(done.findings)
    severity = {f.code: f.severity for f in done.findings}
    rows: list[list[Cell]] = [[c, severity[c], CODES[c][1], n, who] for c, (n, who) in counts.items()]
    sheet.table(["finding", "severity", "meaning", "findings", "subjects"], rows)
    _gallery(sheet, done, pictures, cap)
    sheet.heading("All findings")
    listed = done.findings[:_ROWS]
    if len(listed) < len(done.findings):
        sheet.text(f"The first {len(listed):,} of {len(done.findings):,}; findings.csv holds all.")
    headers = ["severity", "finding", "subject", "session", "modality", "detail", "fix", "file"]
    sheet.table(
        headers,
        [[f.severity, f.code, f.subject, f.session, f.modality, f.detail, f.fix, f.file] for f in listed],
    )
    return sheet.html()


def _gallery(sheet: Page, done: Verification, pictures: dict[Suspect, bytes], cap: int) -> None:
    groups = suspects(done.findings)
    shown = [who for who in groups if who in pictures]
    if not shown:
        return
    sheet.heading("Suspects")
    sheet.text(
        "Sagittal, coronal and axial plane through the middle of the foreground, left shown left. Masks, and "
        "voxels that are NaN or infinite, are red."
    )
    if len(groups) > cap:
        sheet.text(f"Shown are at most {cap:,} of {len(groups):,} suspects, errors first (--thumbnails).")
    unseen = sum(who not in pictures for who in list(groups)[:cap])
    if unseen:
        sheet.text(f"Of {unseen:,} suspects there is no picture: nothing could be decoded.")
    sheet.figures([(pictures[who], _caption(who, groups[who])) for who in shown], width=_WIDTH)


def _caption(who: Suspect, findings: list[Finding]) -> str:
    name = " ".join(part for part in who if part)
    if who[2] == LABEL:
        name += " (over the first modality)"
    # Paths stand in the table below; here they would be as long as the picture is wide.
    told = [f"{f.code}, {_PATH.sub('', f.detail)}" for f in findings]
    return f"{name}: " + "; ".join(told)


def sentence(done: Verification) -> str:
    """The result in one line."""
    warnings = len(done.findings) - done.errors
    read = f"{done.scans:,} scans of {done.sessions:,} sessions read"
    if not done.findings:
        return f"{read}: no findings."
    return f"{read}: {_plural(done.errors, 'error')}, {_plural(warnings, 'warning')}."


def _plural(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def print_summary(done: Verification, *, shown: int = 10, console: Console | None = None) -> None:
    """Counts by code, and the first findings in full."""
    console = console or Console()
    if done.findings:
        table = Table(title=f"Findings, {done.of.where}", title_justify="left")
        for name in ("finding", "severity", "meaning"):
            table.add_column(name)
        table.add_column("findings", justify="right")
        table.add_column("subjects", justify="right")
        severity = {f.code: f.severity for f in done.findings}
        for code, (n, who) in count(done.findings).items():
            table.add_row(code, severity[code], CODES[code][1], f"{n:,}", f"{who:,}")
        console.print(table)
    for line in lines(done.findings[:shown]):
        console.print(f"- {line}", markup=False, highlight=False, soft_wrap=True)
    if len(done.findings) > shown:
        console.print(f"... and {len(done.findings) - shown:,} more", highlight=False)
    console.print(sentence(done), markup=False, highlight=False, soft_wrap=True)


def lines(findings: Iterable[Finding]) -> Iterator[str]:
    """Each finding on one line: severity, what, where, fix."""
    for one in findings:
        who = " ".join(part for part in (one.subject, one.session, one.modality) if part)
        at = "; ".join(part for part in (f"subject {who}" if who else "", one.file) if part)
        yield f"{one.severity} {one.code}: {one.detail}" + (f" [{at}]" if at else "") + f". Fix: {one.fix}"
