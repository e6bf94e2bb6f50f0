"""Damaged shards: never wrong voxels, never anything but a DataError that names file, subject and brick."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainfoundry.core.errors import DataError
from brainfoundry.store.meta import SHARD_SCHEMA, shard_uri
from brainfoundry.store.reader import ShardSet
from tests.store.builders import SHAPE, brain
from tests.store.test_reader import make

NAMES = ("T1w", "FLAIR")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("damage")
    return make(folder, [{"T1w": brain(i), "FLAIR": brain(i + 10) / np.float32(3)} for i in range(2)])


def copy_of(good: ShardSet, folder: Path) -> tuple[ShardSet, Path]:
    uri = folder / "copy"
    shutil.rmtree(uri, ignore_errors=True)
    shutil.copytree(good.uri, uri)
    return ShardSet.open(str(uri)), Path(shard_uri(str(uri), 0))


def test_a_shard_is_an_arrow_file(good: ShardSet) -> None:
    with pa.ipc.open_file(shard_uri(good.uri, 0)) as file:
        assert file.schema.equals(SHARD_SCHEMA, check_metadata=True)
        assert file.num_record_batches == 2
        assert [file.get_batch(i).column("subject")[0].as_py() for i in range(2)] == ["9900001", "9900002"]
        assert len(file.get_batch(0).column("bricks")[0]) == 2 * int(np.prod(good._row(0, 0).grid))


def test_a_flipped_byte_in_a_brick_is_found_at_first_touch(good: ShardSet, tmp_path: Path) -> None:
    shards, path = copy_of(good, tmp_path)
    stored = good._row(0, 1)
    place = good.index.to_pylist()[1]
    brick = stored.per_scan + int(np.ravel_multi_index((1, 0, 0), stored.grid))  # of FLAIR
    at = place["offset"] + place["head_length"] + stored.ends[brick] + 40
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)
    shards = ShardSet.open(shards.uri)
    words = (
        r"^shard is damaged: brick \(1, 0, 0\) of FLAIR fails its checksum "
        r"\[subject 9900002; file .*shard-00000\.arrow\]\. Fix: restore"
    )
    with pytest.raises(DataError, match=words):
        shards.read_crop(0, 1, (0, 0, 0), SHAPE)
    lo = good._row(0, 1).box_lo
    assert shards.read_crop(0, 1, lo, (8, 8, 8)).shape == (2, 8, 8, 8)  # other bricks still serve
    (message,) = shards.verify()
    assert "brick (1, 0, 0) of FLAIR" in message and "9900002" in message


def test_a_truncated_shard(good: ShardSet, tmp_path: Path) -> None:
    for keep in (0, 10, 5_000, -3_000):
        shards, path = copy_of(good, tmp_path)
        data = path.read_bytes()
        path.write_bytes(data[:keep])
        with pytest.raises(DataError, match=r"shard is cut short .*9900002.*shard-00000\.arrow"):
            shards.read_volume(0, 1, "T1w")


def test_an_index_of_another_set(good: ShardSet, tmp_path: Path) -> None:
    other = make(tmp_path / "other", [{"T1w": brain(i + 5), "FLAIR": brain(i + 10)} for i in range(2)])
    shards, path = copy_of(good, tmp_path)
    shutil.copy(shard_uri(other.uri, 0), path)
    with pytest.raises(DataError, match=r"fails its checksum|cut short"):
        shards.read_volume(0, 0, "T1w")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=4),
    head=st.booleans(),
    cut=st.none() | st.floats(0, 1),
)
def test_fuzz(good: ShardSet, tmp_path: Path, flips, head, cut) -> None:  # type: ignore[no-untyped-def]
    expected = {(r, n): good.read_volume(0, r, n) for r in range(2) for n in NAMES}
    originals = {(r, n): good.nifti_bytes(0, r, n) for r in range(2) for n in NAMES}
    uri = tmp_path / "fuzz"
    if not uri.exists():
        shutil.copytree(good.uri, uri)
    data = bytearray(Path(shard_uri(good.uri, 0)).read_bytes())
    reach = 6_000 if head else len(data) - 1
    for where, mask in flips:
        data[int(where * reach)] ^= mask
    Path(shard_uri(str(uri), 0)).write_bytes(data if cut is None else data[: int(cut * len(data))])
    shards = ShardSet.open(str(uri))
    for (row, name), codes in expected.items():
        try:
            assert (shards.read_volume(0, row, name) == codes).all()
            assert (
                shards.read_crop(0, row, (5, 5, 5), (30, 30, 30))
                == good.read_crop(0, row, (5, 5, 5), (30, 30, 30))
            ).all()
            assert shards.nifti_bytes(0, row, name) == originals[row, name]
        except DataError as error:
            assert (
                "\n" not in str(error)
                and f"990000{row + 1}" in str(error)
                and "shard-00000.arrow" in str(error)
            )
