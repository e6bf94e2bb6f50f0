"""Why a session is left out: the reason codes, their counts in CONSORT order, the table people read.

The order matters. A session that fails several rules is counted once, at the first of them, so that the
lines of the table add up: assessed = every excluded line + included, for subjects and for sessions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table

from brainfoundry.core import files
from brainfoundry.core.errors import DataError

if TYPE_CHECKING:
    from brainfoundry.cohorts.manifest import Row

Stage = Literal["intake", "converted"]

INTAKE_REASONS: dict[str, str] = {
    "withdrawn": "consent was withdrawn",
    "brain_tumour": "brain tumour on record (the user's list)",
    "unreadable_archive": "archive or compressed file cannot be read",
    "missing_modality": "a requested modality is missing",
    "missing_label": "the lesion mask is missing",
    "not_nifti": "file is not a NIfTI image",
    "unsupported_image": "image is 4D, complex, RGB or has no voxels",
    "duplicate": "the same scan was delivered more than once",
    "grid_mismatch": "modalities lie on different grids",
    "label_grid_mismatch": "the lesion mask lies on another grid",
    "too_few_slices_header": "too few axial slices (header)",
}
CONVERSION_REASONS: dict[str, str] = {
    "damaged_data": "voxel data is damaged inside the file",
    "not_finite": "voxels that are NaN or infinite",
    "empty_volume": "volume holds nothing but background",
    "label_values": "mask values that are no labels of the cohort's scheme",
    "too_few_slices_content": "too few axial slices that show brain (voxels)",
}
REASONS: dict[str, str] = {**INTAKE_REASONS, **CONVERSION_REASONS}
# Rules that many cohorts do not have: a line of the table only where they left somebody out.
SHOWN_WHEN_USED = ("withdrawn", "brain_tumour", "missing_label", "label_grid_mismatch", "label_values")
_RANK = {reason: rank for rank, reason in enumerate(REASONS)}


class ScanError(DataError):
    """A scan that cannot be used; its class says under which reason code it is counted."""

    reason: str = "unreadable_archive"


class UnreadableArchive(ScanError):
    """A zip or gzip stream that cannot be opened or ends too early."""

    reason = "unreadable_archive"


class MissingMember(ScanError):
    """An archive without the file that carries the modality."""

    reason = "missing_modality"


class NotNifti(ScanError):
    """Bytes that are not a single-file NIfTI-1 or NIfTI-2 image."""

    reason = "not_nifti"


class UnsupportedImage(ScanError):
    """A NIfTI image of a kind this platform does not train on: 4D, complex, RGB, zero-size."""

    reason = "unsupported_image"


def first_reason(reasons: Iterable[str]) -> str:
    """Of several reason codes the one that counts: the earliest in CONSORT order."""
    return min(reasons, key=_RANK.__getitem__)


@dataclass(frozen=True, kw_only=True)
class ExclusionLine:
    """One line of the table: `reason` is a code, or "assessed" or "included"."""

    reason: str
    label: str
    subjects: int
    sessions: int


class Tally:
    """Counts rows as they stream by, in constant memory; rows of one subject must be neighbours.

    A subject with at least one included session is included. A subject whose sessions are all excluded is
    counted at the latest of their reasons, the furthest it came.
    """

    def __init__(self) -> None:
        self._sessions = dict.fromkeys(["assessed", *REASONS, "included"], 0)
        self._subjects = dict(self._sessions)
        self._subject: str | None = None
        self._best = -1

    def add(self, subject: str, reason: str) -> None:
        """Count one session; `reason` is "" for an included one."""
        if subject != self._subject:
            self._close_subject()
            self._subject, self._best = subject, -1
        self._sessions["assessed"] += 1
        self._sessions[reason or "included"] += 1
        self._best = max(self._best, len(REASONS) if not reason else _RANK[reason])

    def _close_subject(self) -> None:
        if self._subject is not None:
            self._subjects["assessed"] += 1
            self._subjects[[*REASONS, "included"][self._best]] += 1
            self._subject = None

    def counts(self) -> dict[str, dict[str, int]]:
        """Code -> {"subjects": n, "sessions": n}, for "assessed", every reason and "included"."""
        self._close_subject()
        return {
            key: {"subjects": self._subjects[key], "sessions": self._sessions[key]} for key in self._sessions
        }


def count_rows(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    """Counts of rows in any order."""
    tally = Tally()
    for subject, reason in sorted((row.subject, row.reason) for row in rows):
        tally.add(subject, reason)
    return tally.counts()


def exclusion_table(
    source: Iterable[Row] | Mapping[str, Mapping[str, int]], *, stage: Stage = "converted"
) -> list[ExclusionLine]:
    """The lines of the exclusion table, in order, from rows or from counts already made.

    Args:
        source: manifest rows in any order, or the mapping `Tally.counts()` gives.
        stage: "intake" leaves out the rules that only the voxels can show, which nobody has applied yet.
    """
    counts = source if isinstance(source, Mapping) else count_rows(source)
    labels = {"assessed": "assessed", **{code: f"excluded: {text}" for code, text in REASONS.items()}}
    labels["included"] = "included"
    lines = []
    for code, label in labels.items():
        found = counts.get(code, {"subjects": 0, "sessions": 0})
        unasked = code in SHOWN_WHEN_USED or (stage == "intake" and code in CONVERSION_REASONS)
        if unasked and not found["sessions"]:
            continue
        lines.append(
            ExclusionLine(reason=code, label=label, subjects=found["subjects"], sessions=found["sessions"])
        )
    return lines


def print_exclusions(
    lines: Iterable[ExclusionLine], *, title: str, notes: Iterable[str] = (), console: Console | None = None
) -> None:
    """Print the table, and the notes below it."""
    table = Table(title=title, title_justify="left")
    table.add_column("rule")
    table.add_column("subjects", justify="right")
    table.add_column("sessions", justify="right")
    for line in lines:
        ends = line.reason in ("assessed", "included")
        table.add_row(line.label, f"{line.subjects:,}", f"{line.sessions:,}", style="bold" if ends else "")
    console = console or Console()
    console.print(table)
    for note in notes:
        console.print(f"- {note}", markup=False, highlight=False, soft_wrap=True)


def write_exclusions(
    uri_stem: str, lines: Iterable[ExclusionLine], *, title: str, notes: Iterable[str] = ()
) -> tuple[str, str]:
    """Write the table as `uri_stem`.json and `uri_stem`.md.

    Returns:
        The two URIs.
    """
    lines, notes = list(lines), list(notes)
    value: dict[str, Any] = {"title": title, "lines": [asdict(line) for line in lines], "notes": notes}
    files.write_json(f"{uri_stem}.json", value)
    rows = [f"| {line.label} | {line.subjects:,} | {line.sessions:,} |" for line in lines]
    text = [f"# {title}", "", "| rule | subjects | sessions |", "|---|---:|---:|", *rows, ""]
    text += [f"- {note}" for note in notes]
    files.write_bytes(f"{uri_stem}.md", ("\n".join(text).rstrip() + "\n").encode())
    return f"{uri_stem}.json", f"{uri_stem}.md"
