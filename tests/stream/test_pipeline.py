"""The plan through Ray Data: order, completeness, laziness, errors."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.store.meta import shard_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.batch import CropBatch, read_batch
from brainfoundry.stream.pipeline import FetchOptions, Share, groups_per_chunk, pack, pipeline, unpack
from brainfoundry.stream.plan import Plan, PlanSpec
from brainfoundry.stream.ray_train_data import PlanDataConfig
from brainfoundry.stream.steps import iter_steps
from tests.stream.builders import CROP, WitnessReader, make_index, write_set

SPEC = PlanSpec(seed=3, crop=CROP, groups_per_step=4, frame="box")
FETCH = FetchOptions(cpus_per_actor=0.25, rows_per_chunk=20)


def share(uri: str, **changes: object) -> Share:
    options = {"shards": uri, "spec": SPEC, "channels": (0, 1), "start_step": 0, "stop_step": 12} | changes
    return Share(**options)  # type: ignore[arg-type]


def batches(iterator: object, part: Share, prefetch: int = 1) -> Iterator[CropBatch]:
    return iter_steps(
        iterator,  # type: ignore[arg-type]
        rows_per_step=part.groups_per_step * part.spec.crops_per_group,
        first_step=part.start_step,
        crops_per_group=part.spec.crops_per_group,
        prefetch=prefetch,
        stop_step=part.stop_step,
    )


def equal(a: CropBatch, b: CropBatch) -> bool:
    return (a.step, a.subjects) == (b.step, b.subjects) and all(
        torch.equal(v, vars(b)[n]) for n, v in vars(a).items() if isinstance(v, torch.Tensor)
    )


@pytest.mark.parametrize(
    ("groups", "rows", "mib", "expected"),
    [
        (1, 64, 128, 16),  # 16 whole steps of one group
        (3, 64, 128, 15),  # five whole steps
        (16, 64, 128, 16),  # one step
        (12, 20, 128, 4),  # a third of a step, not five groups
        (7, 20, 128, 1),  # a prime step cannot be cut evenly
        (4, 2, 128, 1),  # a group is never divided
        (4, 64, 1, 4),
    ],
)
def test_chunks_are_whole_steps_or_equal_parts(groups: int, rows: int, mib: int, expected: int) -> None:
    part = share("", spec=replace(SPEC, groups_per_step=groups, crop=(32, 16, 32)))
    assert groups_per_chunk(part, FetchOptions(rows_per_chunk=rows, chunk_mib=mib)) == expected


def test_a_chunk_of_large_crops_is_bounded_in_bytes() -> None:
    part = share("", spec=replace(SPEC, crop=(96, 96, 96), groups_per_step=1))
    assert groups_per_chunk(part, FetchOptions()) == 9  # 36 crops of 3.4 MiB fit 128 MiB
    assert groups_per_chunk(part, FetchOptions(chunk_mib=1)) == 1


def test_packing_shares_memory_and_is_undone() -> None:
    inner = pa.FixedSizeListArray.from_arrays(pa.array(range(18), pa.int32()), 3)
    table = pa.table({"a": [1, 2, 3, 4, 5, 6], "b": [b"x" * i for i in range(6)], "c": inner})
    both = pa.concat_tables([pack(table.slice(1, 2)), pack(table.slice(3, 3))])
    assert both.num_rows == 2
    assert [t.to_pylist() for t in unpack(both)] == [
        table.slice(1, 2).to_pylist(),
        table.slice(3).to_pylist(),
    ]
    packed = next(unpack(pack(table)))
    assert packed["a"].chunk(0).buffers()[1].address == table["a"].chunk(0).buffers()[1].address


@pytest.mark.parametrize(
    ("field", "value"), [("actors", 0), ("rows_per_chunk", 0), ("chunk_mib", 0), ("cpus_per_actor", -1)]
)
def test_impossible_fetch_options_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"fetch.{field} is {value}"):
        FetchOptions(**{field: value})  # type: ignore[arg-type]


def test_two_pipelines_deliver_every_row_once_in_order(ray_local: int, witness_set: str) -> None:
    # 210 steps are 240 epochs of the 7 subjects; two uneven actors each, and both pipelines at once.
    reader = WitnessReader(witness_set)
    plan = Plan.from_index(reader.index, SPEC)
    fetch = replace(FETCH, actors=2, rows_per_chunk=40)
    parts = [share(witness_set, stop_step=210, rank=rank, world=2) for rank in range(2)]
    streams = [
        batches(
            pickle.loads(pickle.dumps(pipeline(p, fetch, open_reader=WitnessReader, store_bytes=64 << 20))), p
        )
        for p in parts
    ]
    seen: list[list[int]] = [[], []]
    for step, pair in enumerate(zip(*streams, strict=True)):
        for rank, batch in enumerate(pair):
            seen[rank] += [int(s) % 2**64 for s in batch.seeds_N]
            if step % 50 == 0:
                assert equal(batch, read_batch(reader, plan.rows(step, step + 1, rank, 2), (0, 1)))
    for rank in range(2):
        assert seen[rank] == plan.rows(0, 210, rank, 2)["crop_seed"].to_pylist()
    subjects = plan.rows(0, 210)["subject"].to_pylist()
    assert np.unique(subjects[: 240 * 14], return_counts=True)[1].tolist() == [480] * 7


def test_the_real_store_through_ray_equals_reading_it_directly(ray_local: int, shards: str) -> None:
    spec = replace(SPEC, crop=(16, 16, 16), groups_per_step=2)
    part = share(shards, spec=spec, channels=(1, 0), start_step=37, stop_step=60)
    config = PlanDataConfig(
        shards=shards, spec=spec, channels=(1, 0), stop_step=60, start_step=lambda: 37, fetch=FETCH
    )
    (found,) = config.configure({"train": None}, 1, None, None)
    shardset, plan = ShardSet.open(shards), Plan.open(shards, spec)
    got = list(batches(found["train"], part))
    assert len(got) == 23
    for batch in got:
        assert equal(batch, read_batch(shardset, plan.rows(batch.step, batch.step + 1), (1, 0)))


def test_steps_larger_than_a_chunk_come_whole(ray_local: int, witness_set: str) -> None:
    reader = WitnessReader(witness_set)
    spec = replace(SPEC, groups_per_step=12)
    part = share(witness_set, spec=spec, start_step=2, stop_step=5)
    assert groups_per_chunk(part, FETCH) == 4
    plan = Plan.from_index(reader.index, spec)
    for batch in batches(pipeline(part, FETCH, open_reader=WitnessReader), part, prefetch=0):
        assert equal(batch, read_batch(reader, plan.rows(batch.step, batch.step + 1), (0, 1)))


def test_a_run_of_any_length_starts_at_once_and_stops_when_told(ray_local: int, witness_set: str) -> None:
    # 8e11 rows: were anything made up front for each of them, this would not come back.
    part = share(witness_set, start_step=10**9, stop_step=51 * 10**9)
    stream = batches(pipeline(part, FETCH, open_reader=WitnessReader), part)
    assert [next(stream).step - 10**9 for _ in range(5)] == [0, 1, 2, 3, 4]
    stream.close()


class CountingReader(WitnessReader):
    """Leaves one byte in a file for each crop read."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._count = (Path(uri) / "reads").open("ab", buffering=0)

    def read_crop(
        self,
        shard: int,
        row: int,
        corner: Sequence[int],
        size: Sequence[int],
        channels: Sequence[int] | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        self._count.write(b".")
        return super().read_crop(shard, row, corner, size, channels, out)


def test_a_slow_worker_holds_the_reading_back(ray_local: int, tmp_path: Path) -> None:
    uri = write_set(tmp_path / "set", make_index(7))
    part = share(uri, spec=replace(SPEC, crop=(16, 16, 16)), stop_step=10**6)
    # A chunk is 16 crops of 16 kB: the store may hold 8, and a few more are in hands.
    stream = batches(pipeline(part, FETCH, open_reader=CountingReader, store_bytes=2 << 20), part)
    next(stream)
    counts = []
    for _ in range(3):
        time.sleep(1.5)
        counts.append((tmp_path / "set" / "reads").stat().st_size)
    assert counts[-1] == counts[-2] <= 16 * 20
    stream.close()


def test_a_run_that_is_already_done_gives_nothing(ray_local: int, witness_set: str) -> None:
    part = share(witness_set, start_step=12)
    assert list(batches(pipeline(part, FETCH, open_reader=WitnessReader), part)) == []


class BrokenReader(WitnessReader):
    """Fails on one shard."""

    def read_crop(
        self,
        shard: int,
        row: int,
        corner: Sequence[int],
        size: Sequence[int],
        channels: Sequence[int] | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        if shard == 2:
            raise RuntimeError("the disk is on fire")
        return super().read_crop(shard, row, corner, size, channels, out)


def test_a_flipped_byte_is_told_as_it_is(ray_local: int, shards: str, tmp_path: Path) -> None:
    import shutil

    copy = str(tmp_path / "set")
    shutil.copytree(shards, copy)
    path = Path(shard_uri(copy, 1))
    data = bytearray(path.read_bytes())
    row = (
        ShardSet.open(copy)
        .index.filter(pa.compute.equal(ShardSet.open(copy).index["shard"], 1))
        .to_pylist()[0]
    )
    data[row["offset"] + row["length"] - 40] ^= 0xFF
    path.write_bytes(data)
    part = share(copy, spec=replace(SPEC, crop=(32, 32, 32)), stop_step=40)
    with pytest.raises(DataError, match=r"shard is damaged.*shard-00001\.arrow") as error:
        list(batches(pipeline(part, FETCH), part))
    assert "\n" not in str(error.value)


def test_an_unexpected_error_stops_the_stream(ray_local: int, witness_set: str) -> None:
    part = share(witness_set, stop_step=50)
    with pytest.raises(Exception, match="the disk is on fire"):
        list(batches(pipeline(part, FETCH, open_reader=BrokenReader), part))


def test_a_missing_shard_set_is_told_as_it_is(ray_local: int, tmp_path: Path) -> None:
    part = share(str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="nothing"):
        list(batches(pipeline(part, FETCH), part))
