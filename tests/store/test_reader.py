"""Crops against slices of the whole volume; opening, pickling, remote storage."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.core.errors import DataError
from brainfoundry.store import reader
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.meta import meta_uri, shard_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.shard_task import ConvertSpec
from tests.store.builders import SHAPE, brain, intake, nifti, put

NAMES = ("T1w", "FLAIR")
PAD = 100
SPEC = ConvertSpec(min_slices=10, rows_per_shard=2)


def make(folder: Path, scans: list[dict[str, np.ndarray]], spec: ConvertSpec = SPEC) -> ShardSet:
    for i, session in enumerate(scans):
        put(folder / "ukb", 9_900_001 + i, {name: nifti(data) for name, data in session.items()})
    convert(intake(folder / "ukb"), str(folder / "shards"), spec, executor=inline)
    return ShardSet.open(str(folder / "shards"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Three sessions: T1w with values shifted off zero codes, FLAIR with holes of whole bricks."""
    scans = []
    for i in range(3):
        flair = brain(i + 10, (70, 75, 68), top=500)
        flair[:34, 36:, 36:] = 0  # in RAS order the last brick along each axis
        scans.append({"T1w": brain(i, (70, 75, 68), "uint16", top=60_000), "FLAIR": flair})
    return make(tmp_path_factory.mktemp("reader"), scans)


@cache
def padded(shards: ShardSet, position: tuple[int, int], name: str) -> np.ndarray:
    """A whole volume in a frame of its zero code."""
    scans = shards.index["scans"][shards.position(*position)].as_py()
    zero = next(int(s["zero_code"]) for s in scans if s["modality"] == name)
    return np.pad(shards.read_volume(*position, name), PAD, constant_values=zero)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    position=st.sampled_from([(0, 0), (0, 1), (1, 0)]),
    corner=st.tuples(*[st.integers(-90, 160)] * 3),
    size=st.tuples(*[st.integers(1, 70)] * 3),
    channels=st.sampled_from([None, (0,), (1,), (1, 0)]),
    given_out=st.booleans(),
)
def test_a_crop_is_a_slice_of_the_padded_volume(shards, position, corner, size, channels, given_out) -> None:  # type: ignore[no-untyped-def]
    names = [shards.meta.modalities[c] for c in (channels or (0, 1))]
    expected = np.stack([padded(shards, position, name) for name in names])
    at = [
        np.clip(np.arange(c, c + n) + PAD, 0, e - 1)
        for c, n, e in zip(corner, size, expected.shape[1:], strict=True)
    ]
    out = np.full((len(names), *size), 77, np.int16) if given_out else None
    crop = shards.read_crop(*position, corner, size, channels, out)
    assert crop.dtype == np.int16 and (out is None or crop is out)
    assert (crop == expected[np.ix_(range(len(names)), *at)]).all()


def test_codes_are_values(shards: ShardSet) -> None:
    for position in range(3):
        scans = shards.index["scans"][position].as_py()
        for scan, expected in zip(
            scans, (brain(position, (70, 75, 68), "uint16", top=60_000), None), strict=True
        ):
            if expected is not None:
                place = (
                    int(shards.index["shard"][position].as_py()),
                    int(shards.index["row"][position].as_py()),
                )
                codes = shards.read_volume(*place, scan["modality"]).astype(float)
                assert (
                    codes * scan["slope"] + scan["inter"] == expected[::-1]
                ).all()  # LAS source, RAS codes
                assert scan["zero_code"] == -scan["inter"] == -32_768


def test_the_index_describes_the_rows(shards: ShardSet) -> None:
    assert len(shards) == shards.meta.rows == 3 and shards.meta.shards == 2
    assert shards.index.select(["shard", "row"]).to_pylist() == [
        {"shard": 0, "row": 0}, {"shard": 0, "row": 1}, {"shard": 1, "row": 0},
    ]  # fmt: skip
    row = shards.index.to_pylist()[1]
    data = brain(1, (70, 75, 68), "uint16", top=60_000)[::-1]
    inside = np.argwhere(data)
    assert row["box_lo"] == inside.min(0).tolist() and row["box_hi"] == (inside.max(0) + 1).tolist()
    slices = [
        int(np.ptp(shards.read_volume(0, 1, name).astype(int), axis=(0, 1)).astype(bool).sum())
        for name in NAMES
    ]
    assert row["slices"] == min(slices) and row["shape"] == [70, 75, 68]
    values = data[data != 0].astype(float)
    scan = row["scans"][0]
    found = [scan[k] for k in ("mean", "sd", "min", "max", "p0_5", "p1", "p99", "p99_5", "nonzero")]
    percentiles = np.percentile(values, [0.5, 1, 99, 99.5])
    assert found == pytest.approx(
        [values.mean(), values.std(), values.min(), values.max(), *percentiles, values.size]
    )


def test_empty_bricks_take_no_bytes(shards: ShardSet) -> None:
    stored = shards._row(0, 0)
    sizes = np.diff(stored.ends).reshape(2, *stored.grid)
    assert (sizes[1, 1, 1, 1], sizes[0, 1, 1, 1] > 0) == (0, True)


def test_a_pickled_copy_reads_the_same(shards: ShardSet) -> None:
    copy = pickle.loads(pickle.dumps(shards))
    args = (1, 0, (-5, 3, 9), (40, 40, 40))
    assert (copy.read_crop(*args) == shards.read_crop(*args)).all()


def test_few_open_shards_and_rows_give_the_same(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [shards.read_crop(s, r, (3, 3, 3), (50, 50, 50)) for s, r in ((0, 0), (1, 0), (0, 1))]
    monkeypatch.setattr(reader, "_OPEN_SHARDS", 1)
    monkeypatch.setattr(reader, "_ROWS_LOCAL", 1)
    copy = ShardSet.open(shards.uri)
    for _ in range(2):
        found = [copy.read_crop(s, r, (3, 3, 3), (50, 50, 50)) for s, r in ((0, 0), (1, 0), (0, 1))]
        assert all((a == b).all() for a, b in zip(found, expected, strict=True))
        assert len(copy._maps) == len(copy._rows) == 1


def test_float_bricks_make_float_crops_of_every_channel(tmp_path: Path) -> None:
    t1 = brain(1) * np.float32(0.37)
    found = make(tmp_path, [{"T1w": t1, "FLAIR": brain(2)}], ConvertSpec(min_slices=1, float_mode="lossless"))
    crop = found.read_crop(0, 0, (0, 0, 0), SHAPE)
    assert found.meta.code_dtype == "float32" and crop.dtype == np.float32
    assert (crop[0] == t1[::-1]).all() and (crop[1] == brain(2)[::-1]).all()


def test_memory_storage(cohort: Callable[[int], Manifest]) -> None:
    manifest = cohort(3)
    uri = "memory://brainfoundry-test/shards"
    convert(manifest, uri, SPEC, executor=inline)
    remote = ShardSet.open(uri)
    assert remote.verify() == []
    assert (remote.read_volume(1, 0, "FLAIR") == brain(9_900_003 + 500, top=700)[::-1]).all()
    assert remote.nifti_bytes(0, 1, "T1w") == nifti(brain(9_900_002))
    again = convert(manifest, uri, SPEC, executor=inline)
    assert again.rows_skipped == 3


def test_what_is_not_there_is_told(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no shard set here, or its conversion did not finish .*shardset\.json"
    ):
        ShardSet.open(str(tmp_path))
    with pytest.raises(DataError, match="no row 2 in shard 0"):
        shards.read_crop(0, 2, (0, 0, 0), (4, 4, 4))
    with pytest.raises(DataError, match="no row 0 in shard 9"):
        shards.read_crop(9, 0, (0, 0, 0), (4, 4, 4))
    with pytest.raises(DataError, match=r"no modality 'T2w' .* choose one of T1w, FLAIR"):
        shards.read_volume(0, 0, "T2w")


def test_other_versions_and_edits_are_refused(tmp_path: Path) -> None:
    found = make(tmp_path, [{"T1w": brain(1), "FLAIR": brain(2)}])
    path = Path(meta_uri(found.uri))
    good = json.loads(path.read_text())
    path.write_text(json.dumps(good | {"version": 2}))
    with pytest.raises(DataError, match=r"shard set of version 2; this code reads version 1 .* Fix: convert"):
        ShardSet.open(found.uri)
    path.write_text(json.dumps(good | {"space": "elsewhere"}))
    with pytest.raises(DataError, match="damaged or changed by hand"):
        ShardSet.open(found.uri)
    path.write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        ShardSet.open(found.uri)
    path.write_text(json.dumps(good))
    index = tmp_path / "shards" / "index.parquet"
    index.write_bytes(index.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"index does not belong to this shardset\.json"):
        ShardSet.open(found.uri)


def test_a_shard_that_is_gone(tmp_path: Path) -> None:
    found = make(tmp_path, [{"T1w": brain(1), "FLAIR": brain(2)}])
    Path(shard_uri(found.uri, 0)).unlink()
    with pytest.raises(
        DataError, match=r"shard cannot be read: .*subject 9900001; file .*shard-00000\.arrow"
    ):
        ShardSet.open(found.uri).read_crop(0, 0, (0, 0, 0), (4, 4, 4))
