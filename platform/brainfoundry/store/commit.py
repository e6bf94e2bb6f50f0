"""From finished shards to a finished set: tables, converted manifest, report, and what `shardset.json` says.

Used by conversion, and by withdrawal after it has rewritten shards. Everything but `shardset.json`, which its
caller writes last.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from brainfoundry.cohorts.exclusions import count_rows, exclusion_table
from brainfoundry.cohorts.manifest import ManifestMeta, Row, assign_split, write_manifest
from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.store.meta import (
    FINGERPRINT_SCHEMA,
    INDEX_SCHEMA,
    LOSSLESS_BOUND,
    QUANTISATION_BOUND,
    ShardSetMeta,
    fingerprints_uri,
    index_uri,
    manifest_uri,
    report_uri,
)
from brainfoundry.store.shard_task import ConvertSpec

Summary = Mapping[str, Any]
"""A shard's summary, `shard-NNNNN.json`."""
Split = tuple[str, int | None]
"""Split and fold of a subject."""

_NOTE = "content rule ("


@dataclass(frozen=True, kw_only=True)
class Tables:
    """What `write_tables` wrote: the fields of `ShardSetMeta` that follow from it, and the rows' codings."""

    manifest_hash: str
    rows: int
    counts: Mapping[str, Any]
    index_sha256: str
    fingerprints_sha256: str
    codings: frozenset[tuple[str, str]]

    def fields(self) -> dict[str, Any]:
        """As keyword arguments of `ShardSetMeta`."""
        value = dict(self.__dict__)
        del value["codings"]
        return value


def outcomes_of(summaries: Iterable[Summary]) -> dict[tuple[str, str], dict[str, Any]]:
    """(subject, session) -> what became of it."""
    return {(o["subject"], o["session"]): o for s in summaries for o in s["outcomes"]}


def split_of(rows: Iterable[Row], spec: ConvertSpec) -> dict[str, Split]:
    """Split and fold of every subject: the manifest's where it assigns any, else `spec`'s validation share.

    Raises:
        ConfigError: more subjects held out than there are.
        DataError: two sessions of a subject in two splits or folds.
    """
    found: dict[str, Split] = {}
    for row in rows:
        mine = row.split, row.fold
        if found.setdefault(row.subject, mine) != mine:
            problem = f"sessions of one subject are in two splits or folds: {found[row.subject]} and {mine}"
            raise DataError(problem, subject=row.subject, fix="split by subject: jobs/split.py does")
    if any(split for split, _ in found.values()):
        return found
    n_val = spec.n_val or round(spec.val_fraction * len(found))
    drawn = assign_split(found, n_val, spec.seed)
    return {subject: (drawn[subject], fold) for subject, (_, fold) in found.items()}


def with_split(rows: Iterable[Row], split: Mapping[str, Split]) -> list[Row]:
    """The rows with split and fold of their subjects; excluded ones are in none."""
    none: Split = ("", None)
    return [
        replace(row, split=split.get(row.subject, none)[0], fold=split.get(row.subject, none)[1])
        if row.included
        else row
        for row in rows
    ]


def write_tables(
    uri: str, rows: Sequence[Row], meta: ManifestMeta, summaries: Sequence[Summary], spec: ConvertSpec
) -> Tables:
    """Write `manifest.parquet`, `index.parquet`, `fingerprints.parquet` and `report.json`.

    Args:
        rows: of the converted manifest, verdicts, splits and folds in place.
        meta: its metadata; the note on a content rule that was only counted is written afresh.
    """
    outcomes = outcomes_of(summaries)
    below = sum(o.get("slices", spec.min_slices) < spec.min_slices for o in outcomes.values())
    notes = [note for note in meta.notes if not note.startswith(_NOTE)]
    if spec.slice_rule == "header":
        notes.append(
            f"{_NOTE}at least {spec.min_slices} axial slices with brain) was counted, not applied: "
            f"it would exclude {below:,} sessions"
        )
    meta = replace(meta, notes=tuple(notes))
    manifest_hash = write_manifest(manifest_uri(uri), rows, meta)
    counts = count_rows(rows)

    split = {row.subject: {"split": row.split, "fold": row.fold} for row in rows if row.included}
    stored = [row | split[row["subject"]] for summary in summaries for row in summary["rows"]]
    prints = [
        {k: row[k] for k in ("subject", "session", "split", "fold")}
        | {"modality": modality, "fingerprint": bytes.fromhex(digits)}
        for row in stored
        for modality, digits in row["fingerprints"].items()
    ]
    bad = [o for o in outcomes.values() if o["reason"]]
    report = {
        "counts": [asdict(line) for line in exclusion_table(counts)],
        "notes": notes,
        "bad_volumes": [{k: o[k] for k in ("subject", "session", "reason", "detail")} for o in bad],
        "content_rule": {
            "min_slices": spec.min_slices,
            "applied": spec.slice_rule == "content",
            "below": below,
        },
        "rows": len(stored),
        "source_bytes": sum(s.size for r in rows if r.included for s in (*r.scans, *_label(r))),
        "shard_bytes": sum(s["size"] for s in summaries),
        "largest_error": max((c["max_error"] for r in stored for c in r["scans"]), default=0.0),
    }
    index_sha256 = _write_parquet(index_uri(uri), stored, INDEX_SCHEMA)
    fingerprints_sha256 = _write_parquet(fingerprints_uri(uri), prints, FINGERPRINT_SCHEMA)
    files.write_json(report_uri(uri), report)
    return Tables(
        manifest_hash=manifest_hash,
        rows=len(stored),
        counts=json.loads(json.dumps(counts)),
        index_sha256=index_sha256,
        fingerprints_sha256=fingerprints_sha256,
        codings=frozenset((c["coding"], c["code_dtype"]) for r in stored for c in r["scans"]),
    )


def describe_set(
    tables: Tables, meta: ManifestMeta, spec: ConvertSpec, *, intake_hash: str, shards: int
) -> ShardSetMeta:
    """`shardset.json` of a set just converted."""
    return ShardSetMeta(
        cohort=meta.cohort,
        modalities=tuple(meta.modalities),
        space=meta.template_space,
        skull_stripped=meta.skull_stripped,
        float_mode=spec.float_mode,
        code_dtype="float32" if any(dtype == "float32" for _, dtype in tables.codings) else "int16",
        spacing_mm=spec.spacing_mm,
        intake_hash=intake_hash,
        shards=shards,
        bound=QUANTISATION_BOUND if any(kind == "affine" for kind, _ in tables.codings) else LOSSLESS_BOUND,
        spec=asdict(spec),
        labels=meta.labels,
        **tables.fields(),
    )


def delete_leftovers(uri: str) -> None:
    """Temporary files of killed attempts, in the set's folder and its shards'."""
    for folder in (uri, files.join(uri, "shards")):
        fs, path = files.filesystem(folder)
        if isinstance(fs, pafs.LocalFileSystem):
            for name in files.list_names(folder):
                if name.startswith(".") and name.endswith(".tmp"):
                    fs.delete_file(f"{path}/{name}")


def _label(row: Row) -> tuple[Any, ...]:
    return () if row.label is None else (row.label,)


def _write_parquet(uri: str, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> str:
    """Write a table whole or not at all; the SHA-256 of its bytes."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), sink, compression="zstd")
    files.write_bytes(uri, sink.getvalue())
    return hashlib.sha256(sink.getvalue()).hexdigest()
