"""One session verified: its scans loaded one after the other, measured, and held against what is claimed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from brainfoundry.cohorts.exclusions import ScanError
from brainfoundry.cohorts.fingerprint import background_of
from brainfoundry.cohorts.labels import label_values
from brainfoundry.cohorts.rows import Row, Scan
from brainfoundry.core.errors import DataError
from brainfoundry.core.remote import StorageError
from brainfoundry.quality.expect import Expectation
from brainfoundry.quality.facts import ScanFacts, measure
from brainfoundry.quality.findings import Finding, finding
from brainfoundry.quality.scan_checks import check_complete, check_labels, check_scan, of_error, sizes
from brainfoundry.store.mask import LabelGridMismatch, Mask, read_mask
from brainfoundry.store.meta import LABEL
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.source import load_scan
from brainfoundry.store.volume import Volume, check_same_grid


@dataclass(frozen=True, kw_only=True)
class Target:
    """A session to verify.

    Args:
        row: its row of the manifest.
        expect: what is claimed of it.
        stored: (URI of a shard set, shard, row) to verify the stored copy; None for the files.
    """

    row: Row
    expect: Expectation
    stored: tuple[str, int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came of a session: findings, facts for the cohort's checks, labels in its mask (None without)."""

    findings: tuple[Finding, ...]
    facts: tuple[ScanFacts, ...] = ()
    labels: tuple[int, ...] | None = None


def check_session(target: Target) -> Report:
    """Verify one session, whatever its bytes are.

    Raises:
        StorageError: the storage does not answer; nothing is known of the scans.
    """
    report = _Session(target)
    try:
        if target.stored is None:
            report.check_files()
        else:
            report.check_stored(*target.stored)
    except StorageError:
        raise
    except Exception as error:  # one session must not cost the others
        problem = f"verification failed on it: {type(error).__name__}: {error}"
        report.add(finding("unreadable", problem, "look at the session's files", **report.at))
    return Report(findings=tuple(report.findings), facts=tuple(report.facts), labels=report.labels)


class _Session:
    """The report in the making."""

    def __init__(self, target: Target) -> None:
        self.row, self.expect = target.row, target.expect
        self.at = {"subject": self.row.subject, "session": self.row.session}
        self.findings: list[Finding] = []
        self.facts: list[ScanFacts] = []
        self.labels: tuple[int, ...] | None = None

    def add(self, *found: Finding) -> None:
        self.findings += found

    # ---- files

    def check_files(self) -> None:
        """The scans where the manifest says they are."""
        names = [scan.modality for scan in self.row.scans]
        self.add(*check_complete(names, self.expect, **self.at))
        first: Volume | None = None
        foreground: np.ndarray | None = None
        for scan in self.row.scans:
            volume = self._load(scan)
            if volume is None:
                continue
            values = scaled(volume)
            grid = {"shape": volume.header.shape, "spacing": volume.header.spacing}
            grid["orientation"] = volume.header.orientation  # type: ignore[assignment]
            self._measure(scan.modality, where(scan), values, volume.affine, sha256=volume.sha256, **grid)
            # Only the geometry is kept: a session of four scans then takes no more memory than one of one.
            bare = replace(volume, raw_XYZ=np.broadcast_to(np.int8(0), volume.raw_XYZ.shape))
            if first is None:
                first, foreground = bare, _foreground(values)
            else:
                self._same_grid(first, bare, scan)
        if self.row.label is not None:
            self._check_mask(self.row.label, first, foreground)

    def _load(self, scan: Scan) -> Volume | None:
        try:
            volume = load_scan(scan, self.row.subject)
        except StorageError:
            raise
        except ScanError as error:
            self.add(of_error(error, session=self.row.session, modality=scan.modality))
            return None
        self.add(*self._identity(scan, volume))
        return volume

    def _identity(self, scan: Scan, volume: Volume) -> Iterator[Finding]:
        """The checksum, and the geometry that `load_scan` does not look at."""
        header, changes = volume.header, []
        if scan.sha256 is not None and scan.sha256 != volume.sha256:
            changes.append(f"SHA-256 was {scan.sha256[:12]}..., is {volume.sha256[:12]}...")
        if not np.allclose(scan.spacing, header.spacing, rtol=1e-5):
            changes.append(f"voxel size was {sizes(scan.spacing)} mm, is {sizes(header.spacing)} mm")
        if scan.orientation != header.orientation:
            changes.append(f"orientation was {scan.orientation}, is {header.orientation}")
        if changes:
            fix = "restore the file, or run the intake again"
            detail, at = "; ".join(changes), self.at | {"modality": scan.modality, "file": where(scan)}
            yield finding("changed", detail, fix, **at)

    def _same_grid(
        self, first: Volume, other: Volume, scan: Scan, kind: type[ScanError] | None = None
    ) -> bool:
        options: dict[str, Any] = {} if kind is None else {"kind": kind}
        try:
            check_same_grid(first, other, file=where(scan), subject=self.row.subject, **options)
        except ScanError as error:
            self.add(of_error(error, session=self.row.session, modality=scan.modality))
            return False
        return True

    def _check_mask(self, scan: Scan, first: Volume | None, foreground: np.ndarray | None) -> None:
        volume = self._load(scan)
        if volume is None:
            return
        if first is not None and not self._same_grid(first, volume, scan, LabelGridMismatch):
            foreground = None
        try:
            mask: Mask = read_mask(volume, file=where(scan), subject=self.row.subject)
        except ScanError as error:
            self.add(of_error(error, session=self.row.session, modality=LABEL))
            return
        self.labels = mask.values
        self.add(*check_labels(mask.labels_XYZ, foreground, self.expect, file=where(scan), **self.at))

    def _measure(
        self, modality: str, file: str, values: np.ndarray, affine: np.ndarray, **known: Any
    ) -> None:
        found: dict[str, Any] = {**self.at, **known, **measure(values, affine)}
        facts = ScanFacts(modality=modality, file=file, **found)
        self.facts.append(facts)
        self.add(*check_scan(facts, self.expect))

    # ---- shard set

    def check_stored(self, uri: str, shard: int, number: int) -> None:
        """The session as a shard set holds it: every brick, and the file it gives back."""
        shards = open_shards(uri)
        index = shards.index.slice(shards.position(shard, number), 1).to_pylist()[0]
        in_manifest = {scan.modality: scan for scan in self.row.scans}
        if self.row.label is not None:
            in_manifest[LABEL] = self.row.label
        foreground: np.ndarray | None = None
        for scan in index["scans"]:
            modality = scan["modality"]
            if scan["present"] is False and modality != LABEL:
                self.add(*self._stored_absent(shards, shard, number, modality, in_manifest))
                continue
            file = f"{shards.uri}/shards/shard-{shard:05d}.arrow:{number}"
            at = self.at | {"modality": modality, "file": file}
            try:
                codes = shards.read_volume(shard, number, modality)
                affine = shards.affine(shard, number)
                self._restored(shards, shard, number, scan, in_manifest.get(modality), at)
            except StorageError:
                raise
            except DataError as error:
                self.add(finding("damaged_shard", error.problem, error.fix or "", **at))
                continue
            if modality == LABEL:
                if index["has_label"]:
                    labels = np.rint(codes * scan["slope"] + scan["inter"]).astype(np.uint8)
                    self.labels = label_values(labels)
                    self.add(*check_labels(labels, foreground, self.expect, file=file, **self.at))
                continue
            values = codes.astype(np.float32) * np.float32(scan["slope"]) + np.float32(scan["inter"])
            values[codes == codes.dtype.type(scan["zero_code"])] = 0
            if foreground is None:
                foreground = _foreground(values)
            grid = {"shape": tuple(index["shape"]), "spacing": tuple(index["spacing"]), "orientation": "RAS"}
            sha256 = in_manifest[modality].sha256 if modality in in_manifest else None
            self._measure(modality, file, values, affine, sha256=sha256 or "", **grid)

    def _stored_absent(
        self, shards: ShardSet, shard: int, number: int, modality: str, known: dict[str, Scan]
    ) -> Iterator[Finding]:
        """A modality stored as absent: no fault, unless the manifest has it or there are voxels."""
        at = self.at | {"modality": modality, "file": f"{shards.uri}/shards/shard-{shard:05d}.arrow:{number}"}
        fix = "convert the scans again"
        if modality in known:
            yield finding("damaged_shard", "stored as absent, but the manifest names its file", fix, **at)
        elif shards.read_volume(shard, number, modality).any():
            yield finding("damaged_shard", "stored as absent, but it has voxels", fix, **at)

    def _restored(
        self, shards: ShardSet, shard: int, number: int, scan: Any, known: Scan | None, at: dict[str, str]
    ) -> None:
        """Scans that are kept bit for bit must give back the very file whose checksum the manifest has."""
        if self.expect.resampled or known is None or known.sha256 is None or scan["coding"] == "affine":
            return
        found = hashlib.sha256(shards.nifti_bytes(shard, number, scan["modality"])).hexdigest()
        if found != known.sha256:
            detail = f"restored file has SHA-256 {found[:12]}..., the source had {known.sha256[:12]}..."
            self.add(finding("damaged_shard", detail, "convert the scans again", **at))


def scaled(volume: Volume) -> np.ndarray:
    """Values in the file's units: the stored numbers themselves where there is no scaling."""
    if (volume.header.slope, volume.header.inter) == (1.0, 0.0):
        return volume.raw_XYZ
    scale, offset = np.float32(volume.header.slope), np.float32(volume.header.inter)
    return volume.raw_XYZ.astype(np.float32) * scale + offset


def _foreground(values: np.ndarray) -> np.ndarray | None:
    mask = values != background_of(values)
    return mask if mask.any() else None


def where(scan: Scan) -> str:
    """URI of a scan, with the member of an archive behind a colon."""
    return f"{scan.uri}:{scan.member}" if scan.member else scan.uri


@lru_cache(maxsize=2)
def open_shards(uri: str) -> ShardSet:
    """A shard set, opened once a process; `open_shards.cache_clear()` before it is verified anew."""
    return ShardSet.open(uri)
