"""A cohort manifest becomes a shard set: one Ray task a shard, resumable, with a report of what was left out.

Order of writing: `convert.json` (what is being made), `intake.parquet`, shards each with its summary,
`index.parquet`, `manifest.parquet`, `report.json`, and `shardset.json` last: without it there is no set.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, cast

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from brainfoundry.cohorts.exclusions import exclusion_table
from brainfoundry.cohorts.manifest import Manifest, Row, assign_split, read_manifest, write_manifest
from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.core.progress import progress
from brainfoundry.store.meta import (
    INDEX_SCHEMA,
    LOSSLESS_BOUND,
    QUANTISATION_BOUND,
    VERSION,
    ShardSetMeta,
    index_uri,
    manifest_uri,
    meta_uri,
    report_uri,
    shard_uri,
    sidecar_uri,
)
from brainfoundry.store.shard_task import ConvertSpec, ShardTask, as_failure, convert_shard, finished_summary

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
    _split(manifest.rows(included_only=True), spec, manifest)  # refuses impossible splits before the work
    files.check_writable(out_uri)
    if _claim(out_uri, manifest, spec):
        total = sum(len(task.rows) for task in tasks)
        return _result(out_uri, ShardSetMeta.read(out_uri), total, begun)
    missing = [task for task in tasks if finished_summary(task) is None]
    total, left = (sum(len(task.rows) for task in part) for part in (tasks, missing))
    with progress("converting", total, "sessions") as bar:
        if left < total:
            bar.advance(total - left, "(done earlier)")
        for rows in (executor or on_ray())(missing):
            bar.advance(rows)
    meta = _commit(manifest, out_uri, spec, tasks)
    return _result(out_uri, meta, total - left, begun)


def plan_shards(manifest: Manifest, out_uri: str, spec: ConvertSpec) -> list[ShardTask]:
    """The included rows dealt to shards in manifest order.

    Raises:
        DataError: no row is included.
    """
    rows = manifest.rows(included_only=True)
    tasks: list[ShardTask] = []
    while part := tuple(islice(rows, spec.rows_per_shard)):
        modalities = tuple(manifest.meta.modalities)
        tasks.append(ShardTask(uri=out_uri, shard=len(tasks), spec=spec, modalities=modalities, rows=part))
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
        DataError: the folder holds something else.
    """
    where = files.join(out_uri, "convert.json")
    claim = {"version": VERSION, "spec": spec.of_shards(), "intake_hash": manifest.hash}
    fix = "choose another folder, or delete this one"
    if files.exists(where):
        found = files.read_json(where)
        if found != claim:
            raise DataError(f"folder holds a shard set of {_difference(found, claim)}", file=out_uri, fix=fix)
    elif files.exists(meta_uri(out_uri)) or files.list_names(files.join(out_uri, "shards")):
        raise DataError("folder holds another shard set", file=out_uri, fix=fix)
    if not files.exists(meta_uri(out_uri)):
        files.write_json(where, claim)
        write_manifest(files.join(out_uri, "intake.parquet"), manifest.rows(), manifest.meta)
        return False
    meta = ShardSetMeta.read(out_uri)
    if meta.spec != asdict(spec):
        other = _difference({"spec": meta.spec}, {"spec": asdict(spec)})
        raise DataError(f"folder holds a finished shard set of {other}", file=out_uri, fix=fix)
    return True


def _difference(found: Any, wanted: dict[str, Any]) -> str:
    if not isinstance(found, dict) or found.get("version", VERSION) != VERSION:
        return "another version"
    old, new = found.get("spec") or {}, wanted["spec"]
    changed = [f"{k} {old.get(k)!r} instead of {v!r}" for k, v in new.items() if old.get(k) != v]
    return f"another spec ({', '.join(changed)})" if changed else "another intake manifest"


def _split(rows: Iterable[Row], spec: ConvertSpec, manifest: Manifest) -> dict[str, str]:
    subjects = {row.subject for row in rows}
    n_val = spec.n_val or round(spec.val_fraction * len(subjects))
    return assign_split(subjects, n_val, spec.seed)


def _commit(manifest: Manifest, out_uri: str, spec: ConvertSpec, tasks: Sequence[ShardTask]) -> ShardSetMeta:
    """Index, converted manifest, report, and the commit mark."""
    summaries = [files.read_json(sidecar_uri(out_uri, task.shard)) for task in tasks]
    outcomes = {(o["subject"], o["session"]): o for s in summaries for o in s["outcomes"]}
    converted = [_updated(row, outcomes.get(row.key)) for row in manifest.rows()]
    _require_some(converted, manifest)
    split = _split((row for row in converted if row.included), spec, manifest)
    converted = [replace(r, split=split[r.subject]) if r.included else r for r in converted]
    rules = dict(manifest.meta.rules) | {"conversion": asdict(spec)}
    below = sum(o.get("slices", spec.min_slices) < spec.min_slices for o in outcomes.values())
    notes = list(manifest.meta.notes)
    if spec.slice_rule == "header":
        notes.append(
            f"content rule (at least {spec.min_slices} axial slices with brain) was counted, not applied: "
            f"it would exclude {below:,} sessions"
        )
    meta = replace(manifest.meta, stage="converted", rules=rules, notes=tuple(notes))
    manifest_hash = write_manifest(manifest_uri(out_uri), converted, meta)

    rows = [row | {"split": split[row["subject"]]} for s in summaries for row in s["rows"]]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), sink, compression="zstd")
    files.write_bytes(index_uri(out_uri), sink.getvalue())

    final = read_manifest(manifest_uri(out_uri))
    bad = [o for o in outcomes.values() if o["reason"]]
    report = {
        "counts": [asdict(line) for line in exclusion_table(final.counts())],
        "notes": notes,
        "bad_volumes": [{k: o[k] for k in ("subject", "session", "reason", "detail")} for o in bad],
        "content_rule": {
            "min_slices": spec.min_slices,
            "applied": spec.slice_rule == "content",
            "below": below,
        },
        "rows": len(rows),
        "source_bytes": sum(s.size for r in converted if r.included for s in r.scans),
        "shard_bytes": sum(s["size"] for s in summaries),
        "largest_error": max((c["max_error"] for r in rows for c in r["scans"]), default=0.0),
    }
    files.write_json(report_uri(out_uri), report)
    codings = [(c["coding"], c["code_dtype"]) for r in rows for c in r["scans"]]
    shardset = ShardSetMeta(
        cohort=manifest.meta.cohort,
        modalities=tuple(manifest.meta.modalities),
        space=manifest.meta.template_space,
        skull_stripped=manifest.meta.skull_stripped,
        float_mode=spec.float_mode,
        code_dtype="float32" if any(dtype == "float32" for _, dtype in codings) else "int16",
        spacing_mm=spec.spacing_mm,
        manifest_hash=manifest_hash,
        intake_hash=manifest.hash,
        rows=len(rows),
        shards=len(tasks),
        index_sha256=hashlib.sha256(sink.getvalue()).hexdigest(),
        bound=QUANTISATION_BOUND if any(kind == "affine" for kind, _ in codings) else LOSSLESS_BOUND,
        spec=asdict(spec),
        counts=json.loads(json.dumps(final.counts())),
    )
    _delete_leftovers(out_uri, len(tasks))
    files.write_json(meta_uri(out_uri), shardset.to_dict())
    return shardset


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


def _delete_leftovers(out_uri: str, shards: int) -> None:
    """Temporary files of killed attempts."""
    folder = files.join(out_uri, "shards")
    fs, path = files.filesystem(folder)
    if isinstance(fs, pafs.LocalFileSystem):
        for name in files.list_names(folder):
            if name.startswith(".") and name.endswith(".tmp"):
                fs.delete_file(f"{path}/{name}")


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
