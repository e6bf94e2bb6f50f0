"""A finding: one thing that is wrong with one scan, session or row, with its file and what to do about it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from brainfoundry.core import files

Severity = Literal["error", "warning"]

CODES: dict[str, tuple[Severity, str]] = {
    "unreadable": ("error", "file is missing, cut short or damaged"),
    "changed": ("error", "file is not the one the manifest names (size, checksum or geometry)"),
    "not_nifti": ("error", "file is not a NIfTI image"),
    "unsupported_image": ("error", "image is 4D, complex, RGB or has no voxels"),
    "not_finite": ("error", "voxels that are NaN or infinite"),
    "empty": ("error", "volume holds nothing but zeros"),
    "constant": ("error", "all voxels have one value"),
    "missing_scan": ("warning", "session lacks a modality of the cohort"),
    "grid_mismatch": ("error", "modalities of a session lie on different grids"),
    "label_grid_mismatch": ("error", "lesion mask lies on another grid than the images"),
    "label_values": ("error", "mask values that are no labels of the cohort's scheme"),
    "label_schemes": ("error", "masks of the cohort are of two label schemes"),
    "label_empty": ("warning", "lesion mask marks nothing"),
    "label_outside": ("warning", "most of the lesion mask lies outside the brain"),
    "duplicate": ("error", "the same image twice for one subject"),
    "duplicate_subjects": ("error", "the same image under two subjects"),
    "few_slices": ("warning", "few axial slices show brain"),
    "shape": ("warning", "grid of another size than the cohort's"),
    "spacing": ("warning", "voxel size is implausible or not the cohort's"),
    "orientation": ("warning", "axes stored in another order than the cohort's"),
    "intensity_outlier": ("warning", "intensities far from the cohort's"),
    "volume_outlier": ("warning", "foreground far larger or smaller than the cohort's"),
    "not_in_template": ("error", "brain does not lie where the claimed template space has it"),
    "off_template": ("warning", "brain overlaps little with that of the claimed template space"),
    "not_stripped": ("error", "claimed to be skull-stripped, but shows more than a brain"),
    "looks_stripped": ("warning", "claimed to be a whole head, but shows a brain alone"),
    "excluded": ("warning", "session was left out by the manifest"),
    "damaged_shard": ("error", "stored row fails its checksum or cannot be decoded"),
    "not_stored": ("error", "manifest and index of the shard set do not name the same sessions"),
}
"""Code -> (severity, what it means), in the order in which they are shown."""
_RANK = {code: rank for rank, code in enumerate(CODES)}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding.

    Args:
        code: of `CODES`.
        subject, session, modality: what it is about; "" where it is about more.
        file: URI, with the member of an archive behind a colon.
        detail: what is wrong, with the numbers.
        fix: what to do.

    Raises:
        ValueError: unknown code.
    """

    code: str
    severity: Severity = "error"
    subject: str = ""
    session: str = ""
    modality: str = ""
    file: str = ""
    detail: str = ""
    fix: str = ""

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"unknown finding {self.code!r}")

    @property
    def order(self) -> tuple[object, ...]:
        """Sorting key: errors first, then as in `CODES`, then by subject."""
        return (
            self.severity != "error",
            _RANK[self.code],
            self.subject,
            self.session,
            self.modality,
            self.detail,
        )


def finding(code: str, detail: str, fix: str, **where: str) -> Finding:
    """A finding with the severity its code has."""
    severity = CODES.get(code, ("error", ""))[0]
    return Finding(code=code, severity=severity, detail=detail, fix=fix, **where)


_COLUMNS = tuple(f.name for f in fields(Finding))


def write_findings(folder_uri: str, findings: Sequence[Finding]) -> tuple[str, str]:
    """Write `findings.csv` and `findings.parquet`.

    Returns:
        The two URIs.
    """
    rows = [asdict(f) for f in findings]
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _harmless(v) for k, v in row.items()} for row in rows)
    table = pa.Table.from_pylist(rows, schema=pa.schema([(name, pa.string()) for name in _COLUMNS]))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    where = files.join(folder_uri, "findings.csv"), files.join(folder_uri, "findings.parquet")
    files.write_bytes(where[0], text.getvalue().encode())
    files.write_bytes(where[1], sink.getvalue())
    return where


def _harmless(text: str) -> str:
    # A file may be named "=...": a spreadsheet would run it as a formula.
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def count(findings: Iterable[Finding]) -> dict[str, tuple[int, int]]:
    """Code -> (findings, subjects concerned), for the codes that occur, in order."""
    seen: dict[str, tuple[int, set[str]]] = {}
    for one in findings:
        n, subjects = seen.get(one.code, (0, set()))
        seen[one.code] = n + 1, subjects | {one.subject}
    return {code: (seen[code][0], len(seen[code][1])) for code in CODES if code in seen}
