#!/usr/bin/env python
"""Report on a cohort: CONSORT diagram, demographics, balance of the splits, and one page with all.

Reads the manifest only, no scan. Counts under 5 are hidden, so that they cannot be computed from the sums
beside them either; no subject's id is in any file. Without options: the demo's shard set.

    python jobs/report_cohort.py
    python jobs/report_cohort.py --shards /data/ukb-shards --participants ukb.tsv --tumours tumours.csv
    python jobs/report_cohort.py --manifest intake.parquet
"""

from __future__ import annotations

from dataclasses import dataclass

from brainfoundry.cohorts.left_out import LeftOut, read_ids
from brainfoundry.cohorts.manifest import Manifest, read_manifest
from brainfoundry.cohorts.participants import Participants, read_participants
from brainfoundry.core import files, paths
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.core.job import run_job
from brainfoundry.reports.cohort_report import make_report
from brainfoundry.store.meta import manifest_uri, meta_uri
from brainfoundry.store.reader import ShardSet


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    manifest: str = ""
    """A manifest (intake or converted), file or URI; instead of --shards."""
    shards: str = ""
    """A shard set, whose manifest is read. Empty: the demo's (demo/shards in $BRAINFOUNDRY_HOME or runs/)."""
    participants: str = ""
    """Table with UK Biobank's fields 31, 21022, 21000, or columns age, sex, ethnicity (tabs or commas).
    Empty: what the manifest knows; where it knows nothing, participants.tsv beside the scans."""
    tumours: str = ""
    """Ids with a brain tumour on record (one a line, or a table with a subject column), to be counted. To
    leave them out, in a box of their own, prepare the cohort with --exclude-tumours."""
    out: str = ""
    """Folder or URI for the report. Empty: report/ beside the manifest, or in the shard set's folder."""
    show_small_counts: bool = False
    """Show counts under 5 too. For your own eyes: most data owners forbid to publish them."""


def main(config: ReportConfig) -> None:
    manifest, out = find(config)
    notes = []
    table, where = find_participants(config, manifest)
    if where and not config.participants:
        notes.append("demographics are from participants.tsv beside the scans")
    tumours = read_ids(config.tumours) if config.tumours else None

    report = make_report(
        manifest, participants=table, tumours=tumours, show_small_counts=config.show_small_counts, notes=notes
    )
    written = report.write(out)
    # Not on the page: who knows the list's length could take a small count from it.
    if tumours is not None:
        notes += LeftOut(brain_tumours=tumours).notes(manifest.table["subject"].to_pylist())
    for note in notes:
        print(f"- {note}")
    for result in report.balance:
        print(f"- {result.sentence}")
    print(f"{len(written)} files in {out}; all on one page: {written[-1]}")


def find(config: ReportConfig) -> tuple[Manifest, str]:
    """The manifest, and where the report goes."""
    if config.manifest and config.shards:
        raise ConfigError("both --manifest and --shards were given", fix="leave one of them out")
    if config.manifest:
        folder = files.absolute(config.manifest).rpartition("/")[0]
        return read_manifest(config.manifest), config.out or files.join(folder, "report")
    shards = config.shards or str(paths.home() / "demo" / "shards")
    if not config.shards and not files.exists(meta_uri(shards)):
        fix = "make demo, or name a cohort with --shards or --manifest"
        raise DataError("there is no demo shard set yet", file=shards, fix=fix)
    uri = ShardSet.open(shards).uri  # refuses a set that is damaged or in the middle of a change
    return read_manifest(manifest_uri(uri)), config.out or files.join(uri, "report")


def find_participants(config: ReportConfig, manifest: Manifest) -> tuple[Participants | None, str]:
    """The participants table that was named, or lies beside the scans of a manifest without demographics."""
    where = config.participants
    known = any(manifest.table[name].null_count < manifest.table.num_rows for name in ("age", "sex"))
    # A BIDS reader has read its own table already, and told what it did not understand.
    if not where and not known and manifest.meta.cohort != "bids" and "://" not in manifest.meta.source:
        beside = files.join(manifest.meta.source, "participants.tsv")
        where = beside if files.exists(beside) else ""
    if not where:
        return None, ""
    return read_participants(where, set(manifest.table["subject"].to_pylist())), where


if __name__ == "__main__":
    run_job(ReportConfig, main, description=__doc__)
