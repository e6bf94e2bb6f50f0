"""The stream's benchmark: CPU a crop through Ray Data and a Train worker, first batch, rows a second.

Times of crops are CPU seconds of the whole Ray session (driver, daemons, actors, Train worker), because
what Ray does around a crop is spread over all of them.
"""

from __future__ import annotations

import functools
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.train
from ray.data import DataIterator
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from brainfoundry.core.ray_session import connect
from brainfoundry.pretext.intensity import normalise
from brainfoundry.stream.pipeline import FetchOptions, Share, pipeline
from brainfoundry.stream.plan import PlanSpec
from brainfoundry.stream.ray_train_data import PlanDataConfig
from brainfoundry.stream.steps import iter_steps

WORKERS = (1, 2, 8)
# 1 kB of codes: one channel of 8^3 int16 voxels.
_SMALL_CROP = (8, 8, 8)
# Logical CPUs of a private session: a Train worker and its actor, or 8 pipelines' actors of 0.25 each.
_CPUS = 4
# No run of a benchmark comes to its end; it is closed.
_ENDLESS = 10**7


def run_all(
    shards: str,
    *,
    crops: int = 1024,
    direct_ms: float | None = None,
    repeats: int = 5,
    fetch: FetchOptions | None = None,
) -> dict[str, float]:
    """All figures of the stream, on the Ray cluster of this process or a private session.

    Args:
        shards: URI of a shard set with 1 mm volumes.
        crops: N of (CPU(2N) - CPU(N)) / N.
        direct_ms: CPU ms of a crop read directly, for `crop_ray_vs_direct_cpu`.
        repeats: executions of each kind; figures are medians over them.
        fetch: how the pipelines read.
    """
    started = not ray.is_initialized()
    connect(num_cpus=max(_CPUS, os.cpu_count() or 1))
    try:
        figures = crop_cost(shards, crops=crops, repeats=repeats, fetch=fetch)
        if direct_ms is not None:
            figures["crop_ray_vs_direct_cpu"] = figures["crop_ray_cpu_ms"] / direct_ms
        return figures | row_rate(repeats=repeats, fetch=fetch)
    finally:
        if started:
            ray.shutdown()


def crop_cost(
    shards: str,
    *,
    crop: tuple[int, int, int] = (96, 96, 96),
    channels: tuple[int, ...] = (0, 1),
    crops: int = 1024,
    repeats: int = 5,
    rule: str = "ct_window",
    fetch: FetchOptions | None = None,
) -> dict[str, float]:
    """CPU and wall time of a crop in a Train worker, float32 with the intensity rule applied.

    `crop_ray_cpu_ms` is (CPU(2N) - CPU(N)) / N over the whole session; `first_batch_s` the time from
    asking for batches to having one, the start of the fetch actor included. Medians over `repeats` executions
    in one Train worker; the first execution of a session also starts Ray Data's own actors.
    """
    spec = PlanSpec(seed=7, crop=crop, groups_per_step=1, frame="reference")
    with tempfile.TemporaryDirectory() as storage:
        result = TorchTrainer(
            _measure_crops,  # type: ignore[arg-type]  # annotated as returning nothing; its value is kept
            train_loop_config={
                "driver": os.getpid(),
                "session": ray.get_runtime_context().get_session_name(),
                "rows_per_step": spec.crops_per_group,
                "crops": crops,
                "repeats": repeats,
                "rule": rule,
            },
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name="crops", storage_path=storage),
            datasets={"train": functools.partial(ray.data.range, 1)},
            dataset_config=PlanDataConfig(
                shards=shards,
                spec=spec,
                channels=channels,
                stop_step=_ENDLESS,
                start_step=_zero,
                fetch=fetch,
            ),
        ).fit()
    runs: list[dict[str, float]] = result.return_value  # type: ignore[attr-defined]
    figures = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    figures["crop_ray_cpu_ms_max"] = max(run["crop_ray_cpu_ms"] for run in runs)
    return figures


def row_rate(
    *,
    workers: Sequence[int] = WORKERS,
    rows: int = 32_000,
    repeats: int = 5,
    fetch: FetchOptions | None = None,
) -> dict[str, float]:
    """Plan rows a second delivered with 1 kB payloads, summed over 1, 2 and 8 workers' pipelines.

    Each worker is a process of its own that turns its rows into batches. Counted is the time in which all
    workers are under way. Medians over `repeats` interleaved executions; `pipeline_rows_per_s` is the
    figure for the most workers.

    Args:
        workers: numbers of workers.
        rows: rows taken in one execution, by all workers together.
    """
    rates: dict[int, list[float]] = {n: [] for n in workers}
    consumers = [_Consumer.remote() for _ in range(max(workers))]  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        _write_index(Path(folder), subjects=64)
        for _ in range(repeats):
            for n in workers:
                rates[n].append(_rate(consumers[:n], folder, rows // n, fetch or FetchOptions()))
    for consumer in consumers:
        ray.kill(consumer)
    figures = {f"pipeline_rows_per_s_{n}": statistics.median(values) for n, values in rates.items()}
    return figures | {"pipeline_rows_per_s": figures[f"pipeline_rows_per_s_{max(workers)}"]}


def session_cpu_s(driver: int, session: str) -> float:
    """CPU seconds so far of a driver, the daemons of its Ray session, and all their children."""
    roots = [psutil.Process(driver)]
    for process in psutil.process_iter(["cmdline"]):
        if any(session in part for part in process.info["cmdline"] or ()):
            roots.append(process)
    tree: dict[int, psutil.Process] = {}
    for root in roots:
        try:
            tree |= {p.pid: p for p in (root, *root.children(recursive=True))}
        except psutil.NoSuchProcess:
            continue
    total = 0.0
    for process in tree.values():
        try:
            times = process.cpu_times()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        total += times.user + times.system
    return total


def _zero() -> int:
    return 0


def _measure_crops(settings: dict[str, Any]) -> list[dict[str, float]]:
    import torch

    torch.set_num_threads(1)
    iterator = ray.train.get_dataset_shard("train")
    return [_one_execution(iterator, settings) for _ in range(settings["repeats"])]


def _one_execution(iterator: DataIterator, settings: dict[str, Any]) -> dict[str, float]:
    rows = settings["rows_per_step"]
    asked = time.perf_counter()
    batches = iter_steps(iterator, rows_per_step=rows, first_step=0, crops_per_group=rows, prefetch=1)
    marks = []
    for batch in batches:
        done = (batch.step + 1) * rows
        if batch.step == 0:
            first = time.perf_counter() - asked
        x, _ = normalise(batch, settings["rule"])
        assert x.shape[0] == rows
        if done % settings["crops"] == 0:
            marks.append((session_cpu_s(settings["driver"], settings["session"]), time.perf_counter()))
            if len(marks) == 2:
                break
    batches.close()  # type: ignore[attr-defined]
    (cpu_n, wall_n), (cpu_2n, wall_2n) = marks
    return {
        "crop_ray_cpu_ms": (cpu_2n - cpu_n) / settings["crops"] * 1e3,
        "crop_ray_wall_ms": (wall_2n - wall_n) / settings["crops"] * 1e3,
        "first_batch_s": first,
    }


def _rate(consumers: list[Any], folder: str, rows: int, fetch: FetchOptions) -> float:
    spec = PlanSpec(seed=7, crop=_SMALL_CROP, groups_per_step=len(consumers), frame="box")
    share = {"shards": folder, "spec": spec, "channels": (0,), "world": len(consumers)}
    ready = [
        consumer.begin.remote(
            pipeline(
                Share(**share, start_step=0, stop_step=_ENDLESS, rank=rank),  # type: ignore[arg-type]
                fetch,
                # Little read ahead, so that what is measured is work done while it is measured.
                store_bytes=4 << 20,
                open_reader=_NoVoxels,
            ),
            spec.crops_per_group,
        )
        for rank, consumer in enumerate(consumers)
    ]
    ray.get(ready)
    times = [np.asarray(t) for t in ray.get([consumer.take.remote(rows) for consumer in consumers])]
    start, stop = max(t[0] for t in times), min(t[-1] for t in times)
    counted = sum(int(((t > start) & (t <= stop)).sum()) for t in times)
    return float(counted * spec.crops_per_group / (stop - start))


@ray.remote(num_cpus=0)
class _Consumer:
    """A stand-in for a Train worker: iterates its pipeline and makes batches."""

    def begin(self, iterator: DataIterator, rows_per_step: int) -> None:
        """Start the pipeline and wait for its first batch."""
        self._rows_per_step = rows_per_step
        self._batches = iter_steps(
            iterator, rows_per_step=rows_per_step, first_step=0, crops_per_group=rows_per_step, prefetch=1
        )
        next(self._batches)

    def take(self, rows: int) -> list[float]:
        """Clock times at which each batch arrived, without the first tenth: it was read ahead."""
        times = []
        for _ in range(rows // self._rows_per_step):
            next(self._batches)
            times.append(time.time())
        self._batches.close()  # type: ignore[attr-defined]
        return times[len(times) // 10 :]


class _NoVoxels:
    """A reader whose crops are empty: what is left is the plan and the pipeline."""

    def __init__(self, uri: str) -> None:
        self.index = pq.read_table(Path(uri) / "index.parquet")

    def read_crop(
        self,
        shard: int,
        row: int,
        corner: Sequence[int],
        size: Sequence[int],
        channels: Sequence[int] | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Zeros."""
        crop = np.empty((1, *size), np.int16) if out is None else out
        crop.fill(0)
        return crop

    def mask_voxels(self, shard: int, row: int) -> Mapping[int, np.ndarray]:
        """None."""
        return {}


def _write_index(folder: Path, subjects: int) -> None:
    scan: dict[str, object] = {"slope": 1.0, "inter": 0.0, "zero_code": 0.0, "mean": 0.0, "sd": 1.0}
    scan |= {"code_dtype": "int16", "present": True}
    index = pa.table(
        {
            "subject": [f"{i:04d}" for i in range(subjects)],
            "session": ["2"] * subjects,
            "split": ["train"] * subjects,
            "shard": pa.array([0] * subjects, pa.int32()),
            "row": pa.array(range(subjects), pa.int32()),
            "shape": [[32, 32, 32]] * subjects,
            "box_lo": [[0, 0, 0]] * subjects,
            "box_hi": [[32, 32, 32]] * subjects,
            "scans": [[scan]] * subjects,
        }
    )
    pq.write_table(index, folder / "index.parquet")
