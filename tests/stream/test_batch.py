"""Batches read directly, from a converted shard set and from voxels that say where they come from."""

from __future__ import annotations

import gc

import numpy as np
import pyarrow as pa
import pytest
import torch

from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.batch import CropBatch, batch_of, read_batch
from brainfoundry.stream.crops import ScanTable, read_crops
from brainfoundry.stream.plan import Plan, PlanSpec
from tests.stream.builders import CROP, SHAPE, WitnessReader, make_index, witness, write_set


def small_plan(reader: WitnessReader, **changes: object) -> Plan:
    options = {"seed": 3, "crop": CROP, "groups_per_step": 2, "frame": "reference"} | changes
    return Plan.from_index(reader.index, PlanSpec(**options))  # type: ignore[arg-type]


def same(a: CropBatch, b: CropBatch) -> None:
    assert (a.step, a.crops_per_group, a.subjects) == (b.step, b.crops_per_group, b.subjects)
    for name, value in vars(a).items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == vars(b)[name].dtype
            assert torch.equal(value, vars(b)[name]), name


def test_a_batch_holds_what_the_plan_names(witness_set: str) -> None:
    reader = WitnessReader(witness_set)
    rows = small_plan(reader).rows(5, 6)
    batch = read_batch(reader, rows, (1, 0))
    assert (batch.step, batch.crops_per_group, len(batch), batch.n_groups) == (5, 4, 8, 2)
    assert batch.codes_NCDHW.shape == (8, 2, *CROP) and batch.codes_NCDHW.dtype == torch.int16
    for i, row in enumerate(rows.to_pylist()):
        for k, channel in enumerate((1, 0)):
            expected = witness(row["shard"], row["row"], channel, row["corner"], CROP)
            np.testing.assert_array_equal(batch.codes_NCDHW[i, k], expected)
            session = row["shard"] * 3 + row["row"]
            assert batch.slope_NC[i, k] == 0.5 + channel
            assert batch.inter_NC[i, k] == session
            assert batch.zero_code_NC[i, k] == -channel
            assert batch.mean_NC[i, k] == 100 + session
            assert batch.sd_NC[i, k] == 10 + channel
        assert batch.subjects[i] == row["subject"]
        assert int(batch.seeds_N[i]) % 2**64 == row["crop_seed"]
        lo = np.maximum(0, -np.array(row["corner"]))
        hi = np.minimum(CROP, np.array(SHAPE) - row["corner"])
        assert batch.inside_lo_N3[i].tolist() == lo.tolist()
        assert batch.inside_hi_N3[i].tolist() == hi.tolist()
    assert batch.seeds_N.min() < 0  # the upper half of the seeds is there, seen as negative
    assert batch.present_NC.dtype == torch.bool and batch.present_NC.all()
    others = {t.dtype for n, t in vars(batch).items() if n.endswith("_NC") and n != "present_NC"}
    assert others == {torch.float32}
    assert batch.inside_lo_N3.dtype == batch.inside_hi_N3.dtype == torch.int32


def test_a_batch_from_a_converted_shard_set(shards: str) -> None:
    shardset = ShardSet.open(shards)
    spec = PlanSpec(seed=1, crop=(16, 12, 20), groups_per_step=1, frame="reference")
    rows = Plan.open(shards, spec).rows(2, 3)
    batch = read_batch(shardset, rows, (0, 1))
    for i, row in enumerate(rows.to_pylist()):
        for channel, modality in enumerate(shardset.meta.modalities):
            volume = np.pad(shardset.read_volume(row["shard"], row["row"], modality), 32)
            where = tuple(slice(c + 32, c + 32 + s) for c, s in zip(row["corner"], spec.crop, strict=True))
            np.testing.assert_array_equal(batch.codes_NCDHW[i, channel], volume[where])
            entry = shardset.index["scans"][shardset.position(row["shard"], row["row"])].as_py()[channel]
            assert batch.mean_NC[i, channel].item() == pytest.approx(entry["mean"], rel=1e-6)
            assert batch.sd_NC[i, channel].item() == pytest.approx(entry["sd"], rel=1e-6)
    assert int(batch.codes_NCDHW.abs().sum()) > 0


def test_pieces_of_a_step_make_the_same_batch(witness_set: str) -> None:
    reader = WitnessReader(witness_set)
    rows = small_plan(reader).rows(0, 1)
    scans = ScanTable(reader.index, (0, 1))
    whole = read_crops(reader, scans, rows)
    same(batch_of([whole.slice(0, 3), whole.slice(3, 5)]), batch_of([whole]))
    same(batch_of([pa.concat_tables([whole.slice(0, 4), whole.slice(4)])]), batch_of([whole]))
    same(batch_of([pa.concat_tables([whole, whole]).slice(8)]), batch_of([whole]))


def test_codes_stay_valid_when_the_table_is_gone(witness_set: str) -> None:
    reader = WitnessReader(witness_set)
    rows = small_plan(reader).rows(0, 1)
    table = read_crops(reader, ScanTable(reader.index, (0, 1)), rows)
    copy = batch_of([table]).codes_NCDHW.clone()
    codes = batch_of([table]).groups(1, 2).codes_NCDHW
    address = table["voxels"].chunk(0).buffers()[2].address
    assert codes.data_ptr() == address + 4 * 2 * int(np.prod(CROP)) * 2  # shared, not copied
    del table
    gc.collect()
    _ = [np.ones(10_000) for _ in range(100)]
    assert torch.equal(codes, copy[4:])


def test_groups_are_views_and_moves_keep_everything(witness_set: str) -> None:
    reader = WitnessReader(witness_set)
    batch = read_batch(reader, small_plan(reader).rows(1, 2), (0,))
    second = batch.groups(1, 2)
    assert second.subjects == batch.subjects[4:] and len(second) == 4 and second.n_groups == 1
    assert second.codes_NCDHW.data_ptr() == batch.codes_NCDHW[4:].data_ptr()
    assert torch.equal(second.seeds_N, batch.seeds_N[4:])
    same(batch.to("cpu"), batch)


def test_any_float_session_makes_all_crops_float(tmp_path) -> None:
    table = pa.concat_tables([make_index(3), make_index(6, code_dtype="float32").slice(3)])
    reader = WitnessReader(write_set(tmp_path, table))
    batch = read_batch(reader, small_plan(reader).rows(0, 1), (0, 1))
    assert batch.codes_NCDHW.dtype == torch.float32
    row = small_plan(reader).rows(0, 1).to_pylist()[0]
    expected = witness(row["shard"], row["row"], 0, row["corner"], CROP).astype(np.float32)
    np.testing.assert_array_equal(batch.codes_NCDHW[0, 0], expected)


def test_rows_that_are_not_one_step_are_refused(witness_set: str) -> None:
    reader = WitnessReader(witness_set)
    rows = small_plan(reader).rows(0, 2)
    for wrong in (
        rows,
        rows.slice(0, 6),
        rows.slice(1, 4),
        rows.take([0, 1, 2, 3, 4, 5, 7, 6]),
        rows.slice(0, 0),
    ):
        with pytest.raises(DataError, match="not whole groups of one step in slot order"):
            read_batch(reader, wrong, (0,))


def test_rows_without_their_crop_size_are_refused(witness_set: str) -> None:
    reader = WitnessReader(witness_set)
    rows = small_plan(reader).rows(0, 1).replace_schema_metadata(None)
    with pytest.raises(DataError, match=r"rows do not name their crop size.*Plan\.rows"):
        read_batch(reader, rows, (0,))


@pytest.mark.parametrize("channels", [(2,), (-1,), ()])
def test_channels_the_set_does_not_have_are_refused(witness_set: str, channels: tuple[int, ...]) -> None:
    reader = WitnessReader(witness_set)
    with pytest.raises(ConfigError, match=r"do not fit a shard set of 2 modalities.*from 0 to 1"):
        read_batch(reader, small_plan(reader).rows(0, 1), channels)


def test_a_plan_of_another_shard_set_is_refused(witness_set: str) -> None:
    reader = WitnessReader(witness_set)
    rows = Plan.from_index(make_index(30), PlanSpec(seed=1, crop=CROP, groups_per_step=8, frame="box")).rows(
        0, 1
    )
    with pytest.raises(DataError, match="which the index does not list"):
        read_batch(reader, rows, (0,))
