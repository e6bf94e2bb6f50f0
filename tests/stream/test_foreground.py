"""Foreground crops: how many, around which voxels, and the same ones however a run is cut."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfoundry.core.rng import hash64_int, key_of
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.crops import ScanTable, read_crops
from brainfoundry.stream.foreground import corner_around, foreground_draws, pick_voxel
from brainfoundry.stream.frames import frame_bounds
from brainfoundry.stream.plan import Plan, PlanSpec
from tests.stream.builders import CROP, WitnessReader, make_index, write_set

SPEC = PlanSpec(
    seed=5,
    crop=(16, 16, 16),
    groups_per_step=2,
    subjects_per_group=2,
    frame="box",
    labelled=True,
    foreground=0.5,
)

GOLDEN_DRAWS = [
    [0.16031900142384115, 0.20741045607863118, 0.6952013624411014],
    [0.7896160325769771, 0.40461762574199756, 0.02943197203632575],
]
GOLDEN_CORNERS = [
    [12, 14, 11],
    [7, 14, 3],
    [7, 6, 2],
    [11, 8, 3],
    [6, 14, 5],
    [11, 14, 3],
    [5, 11, 8],
    [4, 14, 7],
]


class LesionReader(WitnessReader):
    """Session n has n % 3 labels: label 1 in many voxels, label 4 in three."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.asked: list[tuple[int, int]] = []

    def mask_voxels(self, shard: int, row: int) -> dict[int, np.ndarray]:
        self.asked.append((shard, row))
        many = np.array([5, 7, 4]) + np.argwhere(np.ones((10, 12, 10), bool))
        return dict(list({1: many, 4: many[[0, 500, 1199]]}.items())[: (shard * 3 + row) % 3])


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> LesionReader:
    index = make_index(9)
    has_label = pa.array([True] * len(index))
    return LesionReader(
        write_set(tmp_path_factory.mktemp("lesions"), index.append_column("has_label", has_label))
    )


def crops(
    reader: LesionReader | ShardSet, spec: PlanSpec, start: int, stop: int, *, rank: int = 0, world: int = 1
) -> tuple[pa.Table, pa.Table]:
    """The plan's rows, and what was read of them."""
    rows = Plan.from_index(reader.index, spec).rows(start, stop, rank, world)
    return rows, read_crops(reader, ScanTable(reader.index, (0,)), rows)


def corners(table: pa.Table) -> np.ndarray:
    return np.array(table["corner"].to_pylist())


@given(
    voxel=st.tuples(*[st.integers(0, 29)] * 3),
    size=st.tuples(*[st.integers(1, 30)] * 3),
    lo=st.tuples(*[st.integers(-9, 0)] * 3),
    more=st.tuples(*[st.integers(0, 9)] * 3),
)
def test_a_voxel_is_in_the_middle_unless_that_leaves_the_frame(
    voxel: tuple[int, ...], size: tuple[int, ...], lo: tuple[int, ...], more: tuple[int, ...]
) -> None:
    hi = np.add(30, more)
    found = corner_around(np.array(voxel, np.int32), np.array(lo), hi, size)
    assert (found >= lo).all() and (found + size <= hi).all()
    assert (found <= voxel).all() and (voxel < found + size).all()
    for axis in range(3):
        if found[axis] + size[axis] // 2 != voxel[axis]:
            assert found[axis] in (lo[axis], hi[axis] - size[axis])


@pytest.mark.parametrize("share", [0.1, 0.33, 0.8])
def test_as_many_as_asked_for(lesions: LesionReader, share: float) -> None:
    spec = replace(SPEC, crop=CROP, foreground=share, groups_per_step=400)
    rows, table = crops(lesions, spec, 0, 2)
    with_lesion = (rows["shard"].to_numpy() * 3 + rows["row"].to_numpy()) % 3 > 0
    moved = (corners(rows) != corners(table)).any(1)
    assert not moved[~with_lesion].any()
    n = int(with_lesion.sum())
    assert n > 2_000
    # A draw that falls on its own corner by chance (one in a thousand) does not show as moved.
    assert abs(moved[with_lesion].mean() - share) < 4 * np.sqrt(share * (1 - share) / n) + 0.001
    lo, hi = frame_bounds("box", *(np.array([v]) for v in ((20, 24, 18), (3, 4, 2), (17, 20, 16))), CROP)
    assert (corners(table) >= lo).all() and (corners(table) + CROP <= hi).all()


def test_labels_are_met_alike_and_their_voxels_too(lesions: LesionReader) -> None:
    draws = foreground_draws(np.arange(6_000, dtype=np.uint64))
    assert ((draws >= 0) & (draws < 1)).all()
    voxels = lesions.mask_voxels(0, 2)
    few = {tuple(v) for v in voxels[4].tolist()}
    found = Counter(tuple(pick_voxel(voxels, label, voxel).tolist()) for _, label, voxel in draws)
    # Half of the draws fall on the label of three voxels, a third of these on each; 5 sigma about that.
    assert {v for v, _ in found.most_common(3)} == few
    assert all(abs(found[v] - 1_000) < 5 * np.sqrt(1_000 * 5 / 6) for v in few)
    assert len(found) > 1_000  # the other half meets nearly all of the other label's 1,200


def test_whole_share_leaves_only_empty_masks_alone(lesions: LesionReader) -> None:
    rows, table = crops(lesions, replace(SPEC, crop=CROP, foreground=1.0), 0, 20)
    many = np.array([5, 7, 4]), np.array([15, 19, 14])
    centre = corners(table) + np.array(CROP) // 2
    with_lesion = (rows["shard"].to_numpy() * 3 + rows["row"].to_numpy()) % 3 > 0
    inside = ((centre >= many[0]) & (centre < many[1])).all(1)
    assert inside[with_lesion].all() and 0 < with_lesion.sum() < len(with_lesion)
    assert (corners(table) == corners(rows))[~with_lesion].all()


def test_what_lies_inside_the_volume_follows_the_move(labelled: ShardSet) -> None:
    spec = replace(SPEC, crop=(32, 40, 24), frame="reference", foreground=1.0)
    _, table = crops(labelled, spec, 0, 8)
    shape = np.array(labelled.index["shape"][0].as_py())
    lo = np.clip(-corners(table), 0, spec.crop)
    assert (np.array(table["inside_lo"].to_pylist()) == lo).all() and lo.any()
    hi = np.clip(shape - corners(table), 0, spec.crop)
    assert (np.array(table["inside_hi"].to_pylist()) == hi).all() and (hi < spec.crop).any()


@pytest.mark.parametrize("frame", ["box", "reference"])
def test_the_centre_is_a_lesion(labelled: ShardSet, frame: str) -> None:
    spec = replace(SPEC, crop=(12, 9, 10), frame=frame)  # type: ignore[arg-type]
    rows, table = crops(labelled, spec, 0, 40)
    scans = ScanTable(labelled.index, (0,))
    at = scans.positions(rows)
    lo, hi = frame_bounds(
        frame, *(v[at] for v in (scans.shape_N3, scans.box_lo_N3, scans.box_hi_N3)), spec.crop
    )
    centred, moved = 0, 0
    for i in np.flatnonzero((corners(rows) != corners(table)).any(1)):
        mask = labelled.read_volume(rows["shard"][i].as_py(), rows["row"][i].as_py(), "label")
        corner = corners(table)[i]
        clipped = (corner == lo[i]) | (corner == hi[i] - spec.crop)
        centre = corner + np.array(spec.crop) // 2
        moved += 1
        if not clipped.any():
            assert mask[tuple(centre)] > 0
            centred += 1
        start, stop = np.maximum(corner, 0), np.maximum(corner + spec.crop, 0)
        assert mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))].any()
    assert moved > 100 and centred > moved / 4


@settings(max_examples=25, deadline=None)
@given(start=st.integers(0, 30), world=st.sampled_from([1, 2, 4]), seed=st.integers(0, 2**62))
def test_the_same_crops_on_any_number_of_workers_and_after_a_resume(
    lesions: LesionReader, start: int, world: int, seed: int
) -> None:
    spec = replace(SPEC, crop=CROP, groups_per_step=4, seed=seed)
    _, whole = crops(lesions, spec, start, start + 3)
    assert crops(lesions, spec, 0, start + 3)[1].slice(start * 16).equals(whole)
    parts = [crops(lesions, spec, start, start + 3, rank=rank, world=world)[1] for rank in range(world)]
    together = pa.concat_tables(parts).sort_by([("group", "ascending"), ("slot", "ascending")])
    assert together.equals(whole)


def test_each_visit_looks_through_a_mask_at_most_once(lesions: LesionReader) -> None:
    spec = replace(SPEC, crop=CROP, foreground=1.0, crops_per_subject=3)
    lesions.asked.clear()
    crops(lesions, spec, 0, 5)
    assert len(lesions.asked) == 5 * 4
    lesions.asked.clear()
    crops(lesions, replace(spec, foreground=0.0), 0, 5)
    assert lesions.asked == []


def test_golden_draws_and_corners(lesions: LesionReader) -> None:
    draws = foreground_draws(np.array([1, 2**64 - 1], np.uint64))
    assert draws.tolist() == GOLDEN_DRAWS
    for seed, row in zip((1, 2**64 - 1), draws, strict=True):
        parts = [hash64_int(seed, key_of("stream.foreground"), k) >> 11 for k in range(3)]
        assert row.tolist() == [part * 2.0**-53 for part in parts]
    _, table = crops(lesions, replace(SPEC, crop=CROP, foreground=1.0), 0, 1)
    assert table["corner"].to_pylist() == GOLDEN_CORNERS
