"""Verification of a cohort or a shard set: every session in parallel, then the cohort as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from brainfoundry.cohorts.manifest import Manifest, read_manifest
from brainfoundry.cohorts.rows import Row
from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.core.progress import progress
from brainfoundry.quality.cohort_checks import MAJORITY, check_cohort, one_scheme
from brainfoundry.quality.executors import Executor, inline
from brainfoundry.quality.expect import Expectation, of_manifest, of_shards
from brainfoundry.quality.facts import ScanFacts
from brainfoundry.quality.findings import CODES, Finding, finding
from brainfoundry.quality.session import Report, Target, check_session, open_shards
from brainfoundry.store.meta import LABEL, manifest_uri

_LEFT_OUT_CODES = {"unreadable_archive": "unreadable", "missing_modality": "missing_scan"}
_SILENT = ("withdrawn", "brain_tumour")
"""Reasons that say nothing about the scans."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What is verified.

    Args:
        name: cohort.
        where: file or folder, as the user gave it.
        expect: what is claimed.
        targets: sessions to read.
        findings: what the tables alone show.
    """

    name: str
    where: str
    expect: Expectation
    targets: tuple[Target, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The result: findings in order, errors first; facts by scan; counts of what was read."""

    of: Inspection
    findings: tuple[Finding, ...]
    facts: tuple[ScanFacts, ...]
    sessions: int
    scans: int

    @property
    def errors(self) -> int:
        """Findings of severity error."""
        return sum(f.severity == "error" for f in self.findings)


def of_intake(
    manifest: Manifest, where: str, *, min_slices: int | None = None, fresh: bool = False
) -> Inspection:
    """The files a manifest names.

    Args:
        where: the manifest's URI, or the folder it was just made of.
        min_slices: fewest axial slices with brain; default: the manifest's own rule.
        fresh: nobody has seen its verdicts yet: what was left out is told as the fault that it is; otherwise
            as a reminder.
    """
    expect = of_manifest(manifest.meta, min_slices)
    targets, findings = [], []
    for row in manifest.rows():
        if row.included:
            targets.append(Target(row=row, expect=expect))
        elif row.reason not in _SILENT:
            findings.append(_left_out(row, fresh))
    findings += _without_mask(targets)
    return Inspection(
        name=manifest.meta.cohort,
        where=where,
        expect=expect,
        targets=tuple(targets),
        findings=tuple(findings),
    )


def _without_mask(targets: Sequence[Target]) -> Iterator[Finding]:
    """Sessions without a lesion mask in a cohort where nearly all have one."""
    without = [target.row for target in targets if target.row.label is None]
    if 0 < len(without) <= (1 - MAJORITY) * len(targets):
        for row in without:
            at = {"subject": row.subject, "session": row.session, "modality": LABEL}
            yield finding("missing_scan", "no lesion mask; nearly all others have one", "deliver it", **at)


def _left_out(row: Row, fresh: bool) -> Finding:
    at = {"subject": row.subject, "session": row.session}
    code = _LEFT_OUT_CODES.get(row.reason, row.reason)
    if fresh and code in CODES:
        detail, _, fix = row.detail.partition(". Fix: ")
        return finding(code, detail, fix or "mend it, or go on without this session", **at)
    fix = "mend it and run the intake again, or go on without this session"
    return finding("excluded", f"{row.reason}: {row.detail}", fix, **at)


def of_shard_set(uri: str, *, min_slices: int | None = None) -> Inspection:
    """The sessions a shard set stores.

    Raises:
        DataError: no shard set there, or its tables are damaged.
    """
    open_shards.cache_clear()  # what an earlier verification in this process has checked must not count
    shards = open_shards(files.absolute(uri))
    expect = of_shards(shards.meta, min_slices)
    manifest = read_manifest(manifest_uri(shards.uri))
    rows = {row.key: row for row in manifest.rows() if row.included}
    findings = []
    if manifest.hash != shards.meta.manifest_hash:
        detail = f"manifest.parquet has hash {manifest.hash[:12]}..., the set was made with another"
        findings.append(_table_finding(detail, manifest_uri(shards.uri)))
    index = shards.index.select(["subject", "session", "shard", "row"]).to_pylist()
    targets = []
    for place in index:
        key = place["subject"], place["session"]
        row = rows.pop(key, None)
        if row is None:
            at = {"subject": key[0], "session": key[1]}
            findings.append(_table_finding("stored, but not included by the manifest", shards.uri, **at))
            row = Row(subject=key[0], session=key[1], cohort=shards.meta.cohort)
        stored = (shards.uri, place["shard"], place["row"])
        targets.append(Target(row=row, expect=expect, stored=stored))
    for row in rows.values():
        at = {"subject": row.subject, "session": row.session}
        findings.append(_table_finding("included by the manifest, but not stored", shards.uri, **at))
    try:
        shards.fingerprints()
    except DataError as error:
        findings.append(_table_finding(error.problem, error.file or shards.uri))
    return Inspection(
        name=shards.meta.cohort,
        where=shards.uri,
        expect=expect,
        targets=tuple(targets),
        findings=tuple(findings),
    )


def _table_finding(detail: str, file: str, **at: str) -> Finding:
    return finding(
        "not_stored", detail, "restore the shard set from a copy, or convert again", file=file, **at
    )


def verify(of: Inspection, executor: Executor = inline) -> Verification:
    """Read and check every session, then the cohort.

    What is kept of a scan are a few hundred bytes; voxels never leave the task that read them.

    Raises:
        StorageError: the storage does not answer.
    """
    findings, facts = list(of.findings), list[ScanFacts]()
    labels: list[tuple[str, tuple[int, ...]]] = []
    with progress("verifying", len(of.targets), "sessions") as bar:
        for who, report in executor(_named, of.targets):
            findings += report.findings
            facts += report.facts
            if report.labels is not None:
                labels.append((who, report.labels))
            bar.advance(1, f"({len(findings):,} findings)" if findings else "")
    facts.sort(key=lambda f: (f.subject, f.session, f.modality))
    findings += check_cohort(facts, of.expect)
    findings += one_scheme(sorted(labels), of.expect, file=of.where)
    return Verification(
        of=of,
        findings=tuple(sorted(_once(findings), key=lambda f: f.order)),
        facts=tuple(facts),
        sessions=len(of.targets),
        scans=len(facts),
    )


def _named(target: Target) -> tuple[str, Report]:
    return target.row.subject, check_session(target)


def _once(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Without those that a more exact finding about the same scan makes superfluous."""
    findings = list(findings)
    at = {(f.code, f.subject, f.session, f.modality) for f in findings}
    for one in findings:
        key = one.subject, one.session, one.modality
        # A head among brains is far larger, brighter and elsewhere: one fault, told once.
        if one.code in ("volume_outlier", "off_template", "not_in_template") and ("not_stripped", *key) in at:
            continue
        yield one
