"""One Ray Data pipeline a Train worker: task numbers -> plan rows -> crops, lazily and in order.

A **chunk** is a run of whole groups of one worker, and becomes one block. A task is a run of chunks: a
fetch actor makes their plan rows itself (the plan is a pure function), reads the crops, and yields chunk
after chunk as they are wanted. So a run of any length is at most some hundred tasks, starts at once and
holds a few chunks at a time. One execution spans the whole run: each costs seconds before its first batch.

A block holds one row, a chunk packed into list columns. Ray Data cuts and merges blocks of many rows
by size, at places of its own choosing; a row it cannot cut. With `target_max_block_size=1` each row is a
block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, DataIterator, ExecutionOptions, ExecutionResources
from ray.data.block import BlockMetadata
from ray.data.context import DataContext
from ray.data.datasource import Datasource, ReadTask

from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.crops import CropReader, ScanTable, one_array, read_crops
from brainfoundry.stream.plan import Plan, PlanSpec
from brainfoundry.stream.sessions import subset_of

ReaderFactory = Callable[[str], CropReader]

# Tasks of one execution at most: each costs a millisecond or two before the first batch.
_MAX_TASKS = 512
# Chunks of a task at least, with one actor: Ray Data spends some milliseconds on each task.
_MIN_CHUNKS_PER_TASK = 8


def open_shard_set(uri: str) -> CropReader:
    """The shard set at a URI, as the fetch actors open it."""
    return ShardSet.open(uri)


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """How a worker's pipeline reads; changes speed and memory, never what is delivered."""

    cpus_per_actor: float = 0.25
    """Logical CPUs a fetch actor holds for the whole run."""
    actors: int = 1
    """Fetch actors of each Train worker. One delivers some hundred crops of 96^3 a second; more help only
    as far as `store_mib` lets them read ahead, because chunks are delivered in order."""
    rows_per_chunk: int = 128
    """Crops a chunk holds at most, if their bytes allow."""
    chunk_mib: int = 128
    """MiB of codes a chunk holds at most; a group is never divided. A pipeline holds about six chunks."""
    store_mib: int | None = None
    """MiB of object store a pipeline may fill; None: half the cluster's, shared by the pipelines."""

    def __post_init__(self) -> None:
        for name, least in (("actors", 1), ("rows_per_chunk", 1), ("chunk_mib", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"fetch.{name} is {getattr(self, name)}", fix=f"set it to at least {least}")
        if self.cpus_per_actor < 0:
            raise ConfigError(f"fetch.cpus_per_actor is {self.cpus_per_actor}", fix="set it to 0 or more")


@dataclass(frozen=True, kw_only=True)
class Share:
    """The part of a plan that one worker reads."""

    shards: str
    """URI of the shard set."""
    spec: PlanSpec
    channels: tuple[int, ...]
    """Modalities to read, as positions in the shard set's order."""
    label: int | None = None
    """The masks' channel (`ShardSet.label_channel`), to read them too."""
    start_step: int
    stop_step: int
    rank: int = 0
    world: int = 1
    plan_hash: str | None = None
    """Of the plan the run was checked against; an actor that finds another refuses. None: not checked."""

    @property
    def groups_per_step(self) -> int:
        """This worker's groups of a step."""
        return self.spec.groups_per_step // self.world

    @property
    def n_groups(self) -> int:
        """This worker's groups of the whole run."""
        return (self.stop_step - self.start_step) * self.groups_per_step


def groups_per_chunk(share: Share, fetch: FetchOptions) -> int:
    """Groups of a chunk: whole steps where they fit, else an equal part of a step, else one group."""
    voxels = share.spec.crop[0] * share.spec.crop[1] * share.spec.crop[2]
    crop_bytes = voxels * (len(share.channels) * 2 + (share.label is not None))
    rows = min(fetch.rows_per_chunk, (fetch.chunk_mib << 20) // crop_bytes)
    fit = max(1, rows // share.spec.crops_per_group)
    per_step = share.groups_per_step
    if fit >= per_step:
        return fit // per_step * per_step
    return max(d for d in range(1, fit + 1) if per_step % d == 0)


class _Tasks(Datasource):
    """The numbers 0..n-1, one a task; fused with the fetch, so no task of its own runs."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self._n = n

    def get_name(self) -> str:
        return "Plan"

    def estimate_inmemory_data_size(self) -> int:
        return 8 * self._n

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        about = BlockMetadata(num_rows=1, size_bytes=8, input_files=None, exec_stats=None)
        return [ReadTask(functools.partial(_number, i), about) for i in range(self._n)]


def _number(i: int) -> list[pa.Table]:
    return [pa.table({"task": pa.array([i], pa.int64())})]


class _Fetch:
    """Fetch actor: opens shard set and plan once, then makes packed chunks of task numbers."""

    def __init__(
        self, share: Share, groups_per_chunk: int, chunks_per_task: int, open_reader: ReaderFactory
    ) -> None:
        self._share = share
        self._groups = groups_per_chunk
        self._chunks = chunks_per_task
        self._open_reader = open_reader

    def _open(self) -> None:
        # Not in the constructor: of an error there Ray passes on only the text of a traceback.
        self._reader = self._open_reader(self._share.shards)
        subset = subset_of(self._share.shards, self._share.spec)
        self._plan = Plan.from_index(self._reader.index, self._share.spec, subset)
        if self._share.plan_hash not in (None, self._plan.hash):
            # An actor that Ray started anew, after a withdrawal or a new split, must not mix two plans.
            raise DataError(
                "the shard set has changed since this run started",
                file=self._share.shards,
                fix="submit the job again: it goes on from its newest checkpoint if people only withdrew",
            )
        self._scans = ScanTable(self._reader.index, self._share.channels, self._share.label)

    def __call__(self, numbers: pa.Table) -> Iterator[pa.Table]:
        if not hasattr(self, "_scans"):
            self._open()
        share = self._share
        chunks = range(-(-share.n_groups // self._groups))
        for task in numbers["task"].to_pylist():
            for number in chunks[task * self._chunks : (task + 1) * self._chunks]:
                first = number * self._groups
                rows = self._plan.worker_groups(
                    first,
                    min(first + self._groups, share.n_groups),
                    start_step=share.start_step,
                    rank=share.rank,
                    world=share.world,
                )
                yield pack(read_crops(self._reader, self._scans, rows))


def pack(table: pa.Table) -> pa.Table:
    """A table as one row of list columns, sharing its memory."""
    offsets = pa.array([0, table.num_rows], pa.int32())
    columns = [pa.ListArray.from_arrays(offsets, one_array(c)) for c in table.columns]
    return pa.Table.from_arrays(columns, names=table.column_names)


def unpack(block: pa.Table) -> Iterator[pa.Table]:
    """The tables that were packed into a block's rows, sharing its memory."""
    for i in range(block.num_rows):
        columns = [one_array(c.slice(i, 1)).flatten() for c in block.columns]
        yield pa.Table.from_arrays(columns, names=block.column_names)


def pipeline(
    share: Share,
    fetch: FetchOptions,
    *,
    store_bytes: int | None = None,
    open_reader: ReaderFactory = open_shard_set,
) -> DataIterator:
    """The lazy pipeline of one worker: nothing runs until it is iterated, and then where it is iterated.

    Needs `fetch.actors * fetch.cpus_per_actor` logical CPUs that nobody else holds: without them the
    actors wait, and the first batch never comes.

    Args:
        share: what to read.
        fetch: how to read it.
        store_bytes: object store this pipeline may fill, in bytes; None sets no limit.
        open_reader: opens the shard set in the fetch actors.
    """
    groups = groups_per_chunk(share, fetch)
    chunks = -(-share.n_groups // groups)
    least = _MIN_CHUNKS_PER_TASK if fetch.actors == 1 else 1
    chunks_per_task = max(least, -(-chunks // _MAX_TASKS))
    tasks = -(-chunks // chunks_per_task)
    # A dataset keeps the context it was made under, and takes it along to the worker that iterates it.
    with DataContext.current(_context(fetch, store_bytes)):
        # CPUs as the actors hold them: only then does Ray Data fuse the two into one operator.
        numbers = ray.data.read_datasource(_Tasks(tasks), num_cpus=fetch.cpus_per_actor)
        crops = numbers.map_batches(
            _Fetch,
            fn_constructor_kwargs={
                "share": share,
                "groups_per_chunk": groups,
                "chunks_per_task": chunks_per_task,
                "open_reader": open_reader,
            },
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=fetch.cpus_per_actor,
            # The executor waits for all tasks in flight or 0.1 s: a queued one would make it always 0.1 s.
            compute=ActorPoolStrategy(size=fetch.actors, max_tasks_in_flight_per_actor=1),
        )
        return crops.iterator()


def _context(fetch: FetchOptions, store_bytes: int | None) -> DataContext:
    context = DataContext.get_current().copy()
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.memory_usage_poll_interval_s = None
    limit = float("inf") if store_bytes is None else float(store_bytes)
    context.execution_options = ExecutionOptions(
        preserve_order=True,
        resource_limits=ExecutionResources(
            cpu=fetch.actors * fetch.cpus_per_actor, object_store_memory=limit
        ),
    )
    return context
