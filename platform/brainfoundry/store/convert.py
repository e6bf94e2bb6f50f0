"""A cohort manifest becomes a shard set: one Ray task a shard, resumable, with a report of what was left out.

Order of writing: `convert.json` (what is being made), `intake.parquet`, shards each with its summary,
`index.parquet`, `manifest.parquet`, `report.json`, and `shardset.json` last: without it there is no set.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, zip_longest
from typing import Any, cast

import pyarrow as pa

from brainfoundry.cohorts.intake import optional_of
from brainfoundry.cohorts.labels import require_one_scheme
from brainfoundry.cohorts.manifest import Manifest, ManifestMeta, Row, read_manifest, write_manifest
from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.core.progress import progress
from brainfoundry.store.changing import past, unwritable
from brainfoundry.store.commit import (
    Split,
    delete_leftovers,
    describe_set,
    outcomes_of,
    split_of,
    with_split,
    write_tables,
)
from brainfoundry.store.meta import (
    VERSION,
    ShardSetMeta,
    changing_uri,
    claim_uri,
    intake_uri,
    manifest_uri,
    meta_uri,
    report_uri,
    shard_uri,
    sidecar_uri,
)
from brainfoundry.store.shard_task import ConvertSpec, ShardTask, as_failure, convert_shard, finished_summary
from brainfoundry.store.tombstones import anonymous_meta, tombstoned

Executor = Callable[[Sequence[ShardTask]], Iterator[int]]
"""Runs tasks, in any order, and yields the number of rows of each as it finishes."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What a conversion did.

    Args:
        meta: of the shard set now there.
        manifest: the converted one.
        rows_skipped: rows whose shards an earlier run had finished.
        seconds: wall-clock of this call.
        source_bytes, shard_bytes: of the stored sessions' (gzipped) files, and of the shards.
    """

    meta: ShardSetMeta
    manifest: Manifest
    rows_skipped: int
    seconds: float
    source_bytes: int
    shard_bytes: int


def convert(
    manifest: Manifest, out_uri: str, spec: ConvertSpec, *, executor: Executor | None = None
) -> Conversion:
    """Convert the included sessions of an intake manifest into a shard set.

    Args:
        out_uri: a folder of its own, local or remote. An interrupted conversion of the same manifest and
            spec is resumed; a finished one is left as it is.
        executor: how tasks run; by default Ray Data, on the cluster this process is connected to.

    Raises:
        DataError: nobody is eligible, another shard set is there, or storage cannot be written.
        ConfigError: more subjects held out than there are.
    """
    begun = time.monotonic()
    out_uri = files.absolute(out_uri)
    tasks = plan_shards(manifest, out_uri, spec)
    split_of(manifest.rows(included_only=True), spec)  # refuses impossible splits before the work
    files.check_writable(out_uri)
    total = sum(len(task.rows) for task in tasks)
    with unwritable(out_uri):
        if _claim(out_uri, manifest, spec):
            return _result(out_uri, ShardSetMeta.read(out_uri), total, begun)
        intake, intake_meta, withdrawn = _write_intake(out_uri, manifest)
    tasks = [_without(task, withdrawn) for task in tasks]
    missing = [task for task in tasks if finished_summary(task) is None]
    left = sum(len(task.rows) for task in missing)
    with progress("converting", total, "sessions") as bar:
        if left < total:
            bar.advance(total - left, "(done earlier)")
        for rows in (executor or on_ray())(missing):
            bar.advance(rows)
    with unwritable(out_uri):
        meta = _commit(replace(manifest, meta=intake_meta), intake, out_uri, spec, len(tasks))
    return _result(out_uri, meta, total - left, begun)


def plan_shards(manifest: Manifest, out_uri: str, spec: ConvertSpec) -> list[ShardTask]:
    """The included rows dealt to shards in manifest order.

    Raises:
        DataError: no row is included.
    """
    rows = manifest.rows(included_only=True)
    tasks: list[ShardTask] = []
    while part := tuple(islice(rows, spec.rows_per_shard)):
        task = ShardTask(
            uri=out_uri,
            shard=len(tasks),
            spec=spec,
            modalities=tuple(manifest.meta.modalities),
            rows=part,
            labels=manifest.meta.labels,
            optional=optional_of(manifest.meta),
        )
        tasks.append(task)
    if not tasks:
        raise DataError(
            "no eligible subject: the manifest includes no session",
            file=manifest.meta.source,
            fix="look at the reasons in the manifest's exclusion table",
        )
    return tasks


def inline(tasks: Sequence[ShardTask]) -> Iterator[int]:
    """Executor: one after the other in this process."""
    for task in tasks:
        convert_shard(task)
        yield len(task.rows)


def on_ray(max_tasks: int | None = None) -> Executor:
    """Executor: Ray Data, one task and one CPU a shard.

    Args:
        max_tasks: most shards in the making at once; each holds one session, about 160 MB at 1 mm. By
            default as many as the cluster has CPUs.
    """

    def run(tasks: Sequence[ShardTask]) -> Iterator[int]:
        if not tasks:
            return
        import ray.data

        context = ray.data.DataContext.get_current()
        shown, context.enable_progress_bars = context.enable_progress_bars, False
        try:
            blocks = [pa.table({"task": [task.to_json()]}) for task in tasks]
            dataset = ray.data.from_arrow(blocks).map_batches(
                _convert_block,
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=1,
                compute=ray.data.TaskPoolStrategy(size=max_tasks),
            )
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for value in cast(pa.Table, batch).to_pylist():
                    if value["failure"]:
                        raise DataError(**json.loads(value["failure"]))
                    yield value["rows"]
        finally:
            context.enable_progress_bars = shown

    return run


def _convert_block(block: pa.Table) -> pa.Table:
    rows, failures = [], []
    for text in block.column("task").to_pylist():
        task = ShardTask.from_json(text)
        failure = ""
        try:
            convert_shard(task)
        except DataError as error:  # a raised one would arrive as Ray's, with a page of traceback
            failure = json.dumps(as_failure(error))
        rows.append(len(task.rows))
        failures.append(failure)
    return pa.table({"rows": rows, "failure": failures})


def _claim(out_uri: str, manifest: Manifest, spec: ConvertSpec) -> bool:
    """Say in `convert.json` what is being made here; True where exactly that is finished already.

    Raises:
        DataError: the folder holds something else, or a set that is being changed.
    """
    where = claim_uri(out_uri)
    claim = {"version": VERSION, "spec": spec.of_shards(), "intake_hash": manifest.hash}
    fix = "choose another folder, or delete this one"
    finished = files.exists(meta_uri(out_uri))
    meta = ShardSetMeta.read(out_uri) if finished or files.exists(changing_uri(out_uri)) else None
    if files.exists(where):
        found = files.read_json(where)
        same = isinstance(found, dict) and {name: found.get(name) for name in claim} == claim
        if not same and not (meta is not None and _same_people(out_uri, meta, found, claim, manifest)):
            raise DataError(f"folder holds a shard set of {_difference(found, claim)}", file=out_uri, fix=fix)
    elif finished or files.list_names(files.join(out_uri, "shards")):
        raise DataError("folder holds another shard set", file=out_uri, fix=fix)
    if meta is None:
        if not files.exists(where):
            files.write_json(where, claim)
        return False
    if meta.spec != asdict(spec):
        other = _difference({"spec": meta.spec}, {"spec": asdict(spec)})
        raise DataError(f"folder holds a finished shard set of {other}", file=out_uri, fix=fix)
    return True


def _same_people(out_uri: str, meta: ShardSetMeta, found: Any, claim: Any, manifest: Manifest) -> bool:
    """True where a finished set, after a withdrawal, holds whom an intake with the list of ids does."""
    withdrawn = any(entry["what"] == "withdrawal" for entry in meta.history)
    if not withdrawn or not isinstance(found, dict) or found.get("spec") != claim["spec"]:
        return False
    here = read_manifest(intake_uri(out_uri))
    if (here.meta.modalities, here.meta.labels) != (manifest.meta.modalities, manifest.meta.labels):
        return False
    ours, theirs = (m.rows(included_only=True) for m in (here, manifest))
    return all(a == b for a, b in zip_longest(ours, theirs))


def _write_intake(out_uri: str, manifest: Manifest) -> tuple[list[Row], ManifestMeta, frozenset[str]]:
    """Write `intake.parquet`; who withdrew since it was first written here stays a tombstone.

    Returns:
        Its rows, its metadata, and the withdrawn subjects.
    """
    where = intake_uri(out_uri)
    earlier = read_manifest(where).table.select(["subject", "reason"]) if files.exists(where) else None
    found = [] if earlier is None else earlier.to_pylist()
    withdrawn = frozenset(row["subject"] for row in found if row["reason"] == "withdrawn")
    rows, meta = tombstoned(manifest.rows(), withdrawn), anonymous_meta(manifest.meta, withdrawn)
    write_manifest(where, rows, meta)
    return rows, meta, withdrawn


def _without(task: ShardTask, withdrawn: frozenset[str]) -> ShardTask:
    gone = withdrawn & {row.subject for row in task.rows}
    return replace(task, withdrawn=tuple(sorted(gone))) if gone else task


def _difference(found: Any, wanted: dict[str, Any]) -> str:
    if not isinstance(found, dict) or found.get("version", VERSION) != VERSION:
        return "another version"
    old, new = found.get("spec") or {}, wanted["spec"]
    changed = [f"{k} {old.get(k)!r} instead of {v!r}" for k, v in new.items() if old.get(k) != v]
    return f"another spec ({', '.join(changed)})" if changed else "another intake manifest"


def _commit(
    manifest: Manifest, intake: Sequence[Row], out_uri: str, spec: ConvertSpec, shards: int
) -> ShardSetMeta:
    """Tables, converted manifest, report, and the commit mark."""
    summaries = [files.read_json(sidecar_uri(out_uri, shard)) for shard in range(shards)]
    outcomes = outcomes_of(summaries)
    if manifest.meta.labels:
        found = ((o["subject"], o["label_values"]) for o in outcomes.values() if "label_values" in o)
        require_one_scheme(found, manifest.meta.labels, file=manifest.meta.source)
    rows = [_updated(row, outcomes.get(row.key)) for row in intake]
    _require_some(rows, manifest)
    kept, splits = _earlier_split(out_uri, spec)
    drawn = split_of((row for row in rows if row.included), spec)
    rules = dict(manifest.meta.rules) | {"conversion": asdict(spec)}
    meta = replace(manifest.meta, stage="converted", rules=rules, splits=splits or manifest.meta.splits)
    tables = write_tables(out_uri, with_split(rows, drawn | kept), meta, summaries, spec)
    shardset = describe_set(tables, meta, spec, intake_hash=manifest.hash, shards=shards)
    shardset = replace(shardset, history=past(out_uri))
    delete_leftovers(out_uri)
    files.write_json(meta_uri(out_uri), shardset.to_dict())
    return shardset


def _earlier_split(out_uri: str, spec: ConvertSpec) -> tuple[dict[str, Split], Mapping[str, Any]]:
    """Splits of a set that is being mended (a shard was damaged): as they were last."""
    if not files.exists(manifest_uri(out_uri)):
        return {}, {}
    earlier = read_manifest(manifest_uri(out_uri))
    if earlier.meta.rules.get("conversion") != asdict(spec):
        return {}, {}
    included = earlier.rows(included_only=True)
    return {row.subject: (row.split, row.fold) for row in included}, earlier.meta.splits


def _updated(row: Row, outcome: dict[str, Any] | None) -> Row:
    if outcome is None:
        return row
    row = row.with_sha256(outcome["sha256"])
    return row.excluded(outcome["reason"], outcome["detail"]) if outcome["reason"] else row


def _require_some(rows: Sequence[Row], manifest: Manifest) -> None:
    if any(row.included for row in rows):
        return
    example = next(row for row in reversed(rows) if row.reason)
    raise DataError(
        f"no eligible subject is left after reading the voxels; for example {example.detail}",
        file=manifest.meta.source,
        subject=example.subject,
        fix="mend the scans or the rules, then convert into a new folder",
    )


def _result(out_uri: str, meta: ShardSetMeta, skipped: int, begun: float) -> Conversion:
    report = files.read_json(report_uri(out_uri))
    return Conversion(
        meta=meta,
        manifest=read_manifest(manifest_uri(out_uri)),
        rows_skipped=skipped,
        seconds=time.monotonic() - begun,
        source_bytes=report["source_bytes"],
        shard_bytes=report["shard_bytes"],
    )


__all__ = ["Conversion", "ConvertSpec", "Executor", "convert", "inline", "on_ray", "plan_shards", "shard_uri"]
