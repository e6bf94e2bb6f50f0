"""Small manifests of made-up people for the tests of reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from brainfoundry.cohorts.manifest import Manifest, Row, read_manifest, write_manifest
from tests.cohorts.builders import meta, scan

FIRST = 9_900_001


def person(i: int, split: str = "train", *, reason: str = "", session: str = "2", **known) -> Row:
    """One session of participant i."""
    row = Row(subject=str(FIRST + i), session=session, cohort="ukb", scans=(scan(),), **known)
    return row.excluded(reason, f"why {FIRST + i}") if reason else replace(row, split=split)


def manifest(folder: Path, rows: Sequence[Row], **changes) -> Manifest:
    """Write and read a manifest of rows in any order."""
    path = str(folder / "manifest.parquet")
    changes = {"cohort": "ukb", "stage": "converted", "modalities": ("T1w", "FLAIR"), **changes}
    write_manifest(path, sorted(rows, key=lambda row: row.key), meta(**changes))
    return read_manifest(path)
