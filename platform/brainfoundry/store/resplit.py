"""A new split for a finished shard set: index, fingerprints and manifest are written again, no shard is.

The subjects' splits and folds are columns of those tables, so this costs seconds at any size of cohort. Every
file is written whole, `shardset.json` last. A split that was interrupted in between is finished by the next
call, whatever that asks for, before its own begins (`store.changing`).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from brainfoundry.cohorts.manifest import Manifest, read_manifest, rewrite_manifest
from brainfoundry.cohorts.rows import SPLITS
from brainfoundry.cohorts.splits import Assignment, Part, placed
from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.store.changing import begin, finish, pending, unwritable, with_history
from brainfoundry.store.meta import ShardSetMeta, fingerprints_uri, index_uri, manifest_uri

_NONE: Part = ("", None)


def resplit(uri: str, parts: Assignment, record: Mapping[str, Any]) -> ShardSetMeta:
    """Give every subject of a shard set a new split and fold.

    Args:
        parts: subject -> (split, fold); included subjects it leaves out are in no split.
        record: how they were made, for `ManifestMeta.splits`.

    Returns:
        The set's description, with a new manifest hash and the earlier one in its history. A split that
        changes nothing leaves the set as it is.

    Raises:
        DataError: no shard set, a subject that it does not have, a change of another kind was interrupted, or
            storage cannot be written.
    """
    uri = files.absolute(uri)
    record = json.loads(json.dumps(record))  # as the manifest gives it back, to compare
    # An interrupted attempt brings its own payload.
    meta = ShardSetMeta.read(uri) if pending(uri) is None else _apply(uri, {}, {})
    manifest = read_manifest(manifest_uri(uri))
    _check(manifest, parts, uri)
    if manifest.meta.splits == record and all(row == placed(row, parts) for row in manifest.rows()):
        return meta
    return _apply(uri, parts, record)


def _check(manifest: Manifest, parts: Assignment, uri: str) -> None:
    known = set(manifest.table["subject"].to_pylist())
    for subject, (split, fold) in parts.items():
        if split not in SPLITS or (fold is not None and fold < 0):
            raise ValueError(f"{subject}: no such split or fold: {split!r}, {fold!r}")
        if subject not in known:
            raise DataError(
                "subject to be split is not in the shard set",
                file=manifest_uri(uri),
                subject=subject,
                fix="make the split from this shard set's manifest",
            )


def _apply(uri: str, parts: Assignment, record: Mapping[str, Any]) -> ShardSetMeta:
    """Everything from `changing.json` to `shardset.json`; each step may be done twice."""
    change = begin(uri, "split", {"parts": {s: list(part) for s, part in parts.items()}, "record": record})
    parts = {subject: (split, fold) for subject, (split, fold) in change.payload["parts"].items()}
    manifest = read_manifest(manifest_uri(uri))
    changed = {}
    with unwritable(uri):
        changed["manifest_hash"] = rewrite_manifest(
            manifest,
            manifest_uri(uri),
            lambda row: placed(row, parts),
            meta=replace(manifest.meta, splits=change.payload["record"]),
        )
        changed["index_sha256"] = _rewrite(index_uri(uri), parts)
        if change.before.fingerprints_sha256:
            changed["fingerprints_sha256"] = _rewrite(fingerprints_uri(uri), parts)
    return finish(uri, with_history(change.before, change, len(parts), **changed))


def _rewrite(where: str, parts: Assignment) -> str:
    """A table's columns split and fold replaced, all others as they are; the SHA-256 of the new file."""
    table = pq.read_table(io.BytesIO(files.read_bytes(where)))
    found = [parts.get(subject, _NONE) for subject in table["subject"].to_pylist()]
    for name, values in (("split", [split for split, _ in found]), ("fold", [fold for _, fold in found])):
        at = table.schema.get_field_index(name)
        kind = table.schema.field(at)
        table = table.set_column(at, kind, pa.array(values, kind.type))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    files.write_bytes(where, sink.getvalue())
    return hashlib.sha256(sink.getvalue()).hexdigest()
