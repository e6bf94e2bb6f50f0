"""The `convert` benchmark: conversion against a plain one and over cores, and opening 41,400 subjects."""

from __future__ import annotations

import gc
import hashlib
import io
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from brainfoundry.benchmarks.data import GENERATED, collect, prepare
from brainfoundry.benchmarks.plain_convert import convert_subject
from brainfoundry.cohorts.manifest import Manifest, read_manifest, write_manifest
from brainfoundry.cohorts.ukb import UKBRules, read_ukb
from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.store.convert import convert, inline, plan_shards
from brainfoundry.store.meta import INDEX_SCHEMA, ShardSetMeta, index_uri, manifest_uri, meta_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.shard_task import ConvertSpec, convert_shard

SUBJECTS_41400 = 41_400
ROWS_PER_SHARD = 64
LOOK_UPS = 1_000


def run(
    folder: Path,
    scans: Path | None,
    *,
    repeats: int = 5,
    subjects: int = 40,
    total: int = SUBJECTS_41400,
    generated: int = GENERATED,
) -> dict[str, float]:
    """All figures.

    Args:
        folder: where the generated subjects are kept between calls, with room for temporary shards.
        scans: folder of real scans to add, as for the `data` benchmark.
        repeats: interleaved repeats of each side.
        subjects: hard links of the few there are, for one core against two.
        total: subjects of the simulated shard set.
        generated: subjects to make, as for the `data` benchmark.
    """
    ukb = prepare(folder, scans, generated=generated)
    shards = Path(collect(folder).shards.uri)
    with tempfile.TemporaryDirectory(dir=folder, prefix="convert-") as scratch:
        figures = against_plain(ukb, Path(scratch), repeats)
        figures |= over_cores(ukb, Path(scratch), repeats, subjects)
        figures |= opening(shards, Path(scratch), repeats, total)
    return figures


def against_plain(ukb: Path, scratch: Path, repeats: int) -> dict[str, float]:
    """CPU seconds a subject on one core: our conversion, and nibabel, NumPy and Blosc2 used plainly."""
    manifest = read_ukb(str(ukb), str(scratch / "plain.parquet"), UKBRules(min_slices=1))
    spec = ConvertSpec(rows_per_shard=1, min_slices=1)
    tasks = plan_shards(manifest, str(scratch / "ours"), spec)
    (scratch / "plain").mkdir()

    def ours() -> None:
        shutil.rmtree(scratch / "ours", ignore_errors=True)
        for task in tasks:
            convert_shard(task)

    def plain() -> None:
        for task in tasks:
            convert_subject(task.rows[0].scans, scratch / "plain" / f"{task.shard}.bricks")

    with threadpool_limits(1):  # BLAS threads that wait would be counted as work
        difference = _difference(manifest, spec, scratch)
        times = _interleaved({"ours": ours, "plain": plain}, repeats, time.process_time, len(tasks))
    ratios = [p / o for p, o in zip(times["plain"], times["ours"], strict=True)]
    return {
        "convert_subjects": float(len(tasks)),
        "convert_max_difference": difference,
        "convert_cpu_s": statistics.median(times["ours"]),
        "convert_nibabel_cpu_s": statistics.median(times["plain"]),
        "convert_vs_nibabel": statistics.median(ratios),
        "convert_vs_nibabel_min": min(ratios),
        "convert_vs_nibabel_max": max(ratios),
    }


def _difference(manifest: Manifest, spec: ConvertSpec, scratch: Path) -> float:
    """Largest relative difference of the statistics; all else must be equal.

    Raises:
        DataError: the two conversions do not keep the same.
    """
    uri = str(scratch / "compared")
    convert(manifest, uri, spec, executor=inline)
    shards = ShardSet.open(uri)
    rows = {row.subject: row for row in read_manifest(manifest_uri(uri)).rows(included_only=True)}
    worst = 0.0
    for at in shards.index.to_pylist():
        row = rows[at["subject"]]
        found = convert_subject(row.scans, scratch / "compared.bricks")
        stored = shards._row(at["shard"], at["row"])
        ends = stored.ends
        payloads = [bytes(stored.data[a:b]) for a, b in itertools.pairwise(ends)]
        same = (
            payloads == [brick for part in found["bricks"] for brick in part]
            and [scan.sha256 for scan in row.scans] == found["sha256"]
            and list(zip(at["box_lo"], at["box_hi"], strict=True)) == found["box"]
        )
        if not same:
            raise DataError(
                "the two conversions keep different voxels",
                subject=row.subject,
                fix="do not trust the timing",
            )
        for scan, values in zip(at["scans"], found["statistics"], strict=True):
            worst = max(worst, *(abs(scan[k] - v) / max(abs(v), 1e-9) for k, v in values.items()))
    if worst > 1e-3:  # the plain one sums in float64 over int16, ours over counts
        raise DataError(f"the two conversions' statistics differ by {worst}", fix="do not trust the timing")
    return worst


def over_cores(ukb: Path, scratch: Path, repeats: int, subjects: int) -> dict[str, float]:
    """Wall-clock of conversions over Ray with one task at a time and with two, workers already there."""
    from brainfoundry.core import ray_session
    from brainfoundry.store.convert import on_ray

    many = scratch / "many"
    many.mkdir()
    _links(ukb, many, subjects)
    manifest = read_ukb(str(many), str(scratch / "many.parquet"), UKBRules(min_slices=1))
    spec = ConvertSpec(rows_per_shard=max(1, subjects // 20), min_slices=1)
    ray_session.connect(num_cpus=2, log_to_driver=False)
    numbers = itertools.count()

    def side(cores: int) -> Callable[[], None]:
        def work() -> None:
            out = scratch / f"cores-{next(numbers)}"
            convert(manifest, str(out), spec, executor=on_ray(cores))
            shutil.rmtree(out)

        return work

    side(2)()  # starts the workers and their imports
    times = _interleaved({"1": side(1), "2": side(2)}, repeats, time.perf_counter, subjects)
    ratios = [a / b for a, b in zip(times["1"], times["2"], strict=True)]
    return {
        "convert_ray_subjects": float(subjects),
        "convert_1_core_s": statistics.median(times["1"]),
        "convert_2_cores_s": statistics.median(times["2"]),
        "convert_2_cores_vs_1": statistics.median(ratios),
        "convert_2_cores_vs_1_min": min(ratios),
        "convert_2_cores_vs_1_max": max(ratios),
    }


def _links(source: Path, target: Path, subjects: int) -> None:
    """Hard links of the bulk zips under made-up participant ids."""
    zips: dict[str, list[Path]] = {}
    for path in sorted(source.glob("*_2_0.zip")):
        zips.setdefault(path.name.split("_")[0], []).append(path)
    for number, paths in zip(range(subjects), itertools.cycle(zips.values()), strict=False):
        for path in paths:
            os.link(path, target / f"{9_000_000 + number}_{path.name.split('_', 1)[1]}")


def _interleaved(
    sides: dict[str, Callable[[], None]], repeats: int, clock: Callable[[], float], subjects: int
) -> dict[str, list[float]]:
    """Seconds a subject of each side, measured in turns."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, work in sides.items():
            gc.collect()
            begun = clock()
            work()
            times[name].append((clock() - begun) / subjects)
    return times


def simulate(shards: Path, target: Path, total: int) -> None:
    """Index and manifest of a shard set of `total` subjects, made of those of a small one; no shard files."""
    meta = ShardSetMeta.read(str(shards))
    manifest = read_manifest(manifest_uri(str(shards)))
    few = list(manifest.rows(included_only=True))
    index = pq.read_table(index_uri(str(shards)), schema=INDEX_SCHEMA)
    names = [f"{9_100_000 + i}" for i in range(total)]
    numbers = np.arange(total)
    split = np.where(numbers % 22 == 0, "val", "train")

    def rows() -> Iterator[Any]:
        for name, part, row in zip(names, split.tolist(), itertools.cycle(few), strict=False):
            yield replace(row, subject=name, split=part)

    manifest_hash = write_manifest(manifest_uri(str(target)), rows(), manifest.meta)
    table = index.take(pa.array(numbers % index.num_rows))
    for name, values in {
        "subject": pa.array(names),
        "split": pa.array(split.tolist()),
        "shard": pa.array(numbers // ROWS_PER_SHARD, pa.int32()),
        "row": pa.array(numbers % ROWS_PER_SHARD, pa.int32()),
    }.items():
        table = table.set_column(table.schema.get_field_index(name), INDEX_SCHEMA.field(name), values)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    files.write_bytes(index_uri(str(target)), sink.getvalue())
    digest = hashlib.sha256(sink.getvalue()).hexdigest()
    shape = {"rows": total, "shards": -(-total // ROWS_PER_SHARD), "index_sha256": digest}
    files.write_json(meta_uri(str(target)), replace(meta, manifest_hash=manifest_hash, **shape).to_dict())  # type: ignore[arg-type]


_OPEN = """
import sys, time
import numpy as np
from brainfoundry.cohorts.manifest import read_manifest
from brainfoundry.store.meta import manifest_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.plan import Plan, PlanSpec

uri, total, look_ups = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chosen = np.random.default_rng(5).integers(0, total, look_ups).tolist()
begun = time.perf_counter()
manifest = read_manifest(manifest_uri(uri))
shards = ShardSet.open(uri)
opened = time.perf_counter()
spec = PlanSpec(seed=1, crop=(96, 96, 96), groups_per_step=8, frame="reference")
rows = Plan.from_index(shards.index, spec).rows(0, 16)
planned = time.perf_counter()
for number in chosen:
    position = shards.position(number // 64, number % 64)
    row = shards.index.slice(position, 1).to_pylist()[0]
    assert row["subject"] == str(9_100_000 + number), row
ended = time.perf_counter()
assert len(shards) == total and len(rows) == 16 * 8 * 4 and manifest.hash == shards.meta.manifest_hash
print(opened - begun, planned - opened, ended - planned, ended - begun)
"""


def opening(shards: Path, scratch: Path, repeats: int, total: int) -> dict[str, float]:
    """Seconds of a fresh process, imports excluded, for manifest, index, a plan's first chunk, look-ups."""
    target = scratch / "simulated"
    simulate(shards, target, total)
    command = [sys.executable, "-c", _OPEN, str(target), str(total), str(LOOK_UPS)]
    times = []
    for _ in range(repeats):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DataError(
                f"opening failed: {done.stderr.strip()[-300:]}", file=target, fix="see the message"
            )
        times.append([float(text) for text in done.stdout.split()])
    read, plan, look, whole = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "open_subjects": float(total),
        "open_manifest_index_s": read,
        "open_plan_s": plan,
        "open_look_ups_s": look,
        "open_41400_s": whole,
    }
