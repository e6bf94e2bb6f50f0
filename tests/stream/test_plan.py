"""The plan: the same crops however many workers share them and wherever a run resumes."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.core.rng import hash64_int, key_of
from brainfoundry.stream.frames import frame_bounds
from brainfoundry.stream.plan import PLAN_SCHEMA, Plan, PlanSpec, check_world
from tests.stream.builders import CROP, SHAPE, make_index

ROOT = Path(__file__).resolve().parents[2]

GOLDEN_SUBJECTS = [
    "9900001",
    "9900001",
    "9900003",
    "9900003",
    "9900002",
    "9900002",
    "9900000",
    "9900000",
    "9900004",
    "9900004",
    "9900002",
    "9900002",
]
GOLDEN_SEEDS = [2138199055924611205, 15663925389398592964, 7518186973090390342, 10362284378213553858]
GOLDEN_CORNERS = [[6, 4, 5], [12, 4, 6], [12, 10, 3], [7, 13, 11]]
GOLDEN_HASH = "5744a1fda595f19f24a4ca922e1a2f9fcf4dd761f70cd469d85b07d1c0165b75"


def spec(**changes: object) -> PlanSpec:
    return PlanSpec(**({"seed": 11, "crop": CROP, "groups_per_step": 12, "frame": "box"} | changes))  # type: ignore[arg-type]


def plan(subjects: int = 10, sessions: int = 1, **changes: object) -> Plan:
    return Plan.from_index(make_index(subjects, sessions=sessions), spec(**changes))


def test_golden_rows() -> None:
    rows = plan(5, groups_per_step=1).rows(0, 3)
    assert rows.schema.equals(PLAN_SCHEMA)
    assert rows.slice(0, 12).select(["step", "group", "slot"]).to_pylist() == [
        {"step": s, "group": s, "slot": k} for s in range(3) for k in range(4)
    ]
    assert rows["subject"].to_pylist() == GOLDEN_SUBJECTS
    assert rows["crop_seed"].to_pylist()[:4] == GOLDEN_SEEDS
    assert rows["corner"].to_pylist()[:4] == GOLDEN_CORNERS


def test_golden_hash() -> None:
    assert plan(5).hash == GOLDEN_HASH


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "50814a416919807be94741d6d01d12a005ca6a90ee0c03f9421376196b86d950"),
        (
            {"seed": 3, "crop": (8, 8, 8), "groups_per_step": 2, "subjects_per_group": 1}
            | {"crops_per_subject": 3, "frame": "reference", "split": "val"},
            "ad8eab678d44fb5870f55a59bb6ac136c909616fe5b85e60bb0ba1f7840a4e60",
        ),
    ],
)
def test_plans_from_before_there_were_folds_and_masks_keep_their_hash(
    changes: dict[str, object], expected: str
) -> None:
    index = make_index(7, sessions=2, split=str(changes.get("split", "train")))
    assert Plan.from_index(index, spec(**changes)).hash == expected


def test_a_spec_as_plain_values() -> None:
    plain = spec().to_dict()
    assert plain == {
        "seed": 11, "crop": CROP, "crops_per_subject": 2, "subjects_per_group": 2, "groups_per_step": 12,
        "frame": "box", "split": "train",
    }  # fmt: skip
    later = {"fold": 0, "labelled": True, "foreground": 1.0}
    assert spec(**(later | {"foreground": 1})).to_dict() == plain | later
    for changes in ({}, later, {"fold": 3}, {"labelled": True}):
        values = json.loads(json.dumps(spec(**changes).to_dict()))
        assert PlanSpec(**values) == spec(**changes)


def test_fold_masks_and_foreground_are_part_of_the_hash() -> None:
    n = 6
    index = make_index(n).append_column("fold", pa.array([0, 1] * 3, pa.int32()))
    index = index.append_column("has_label", pa.array([True] * n))
    some = [{}, {"fold": 0}, {"fold": 1}, {"labelled": True}, {"labelled": True, "foreground": 0.5}]
    assert len({Plan.from_index(index, spec(**changes)).hash for changes in some}) == 5


def test_hash_follows_all_that_changes_rows_and_nothing_else() -> None:
    index = make_index(5)
    base = Plan.from_index(index, spec())
    shuffled = index.take(pa.array([3, 1, 4, 0, 2]))
    assert Plan.from_index(shuffled, spec()).hash == base.hash
    assert Plan.from_index(shuffled, spec()).rows(0, 2).equals(base.rows(0, 2))
    others = [
        Plan.from_index(index, spec(seed=12)),
        Plan.from_index(index, spec(crop=(4, 4, 4))),
        Plan.from_index(index, spec(frame="reference")),
        Plan.from_index(index, spec(groups_per_step=6)),
        Plan.from_index(index.slice(0, 4), spec()),
        Plan.from_index(make_index(5, per_shard=2), spec()),
        Plan.from_index(make_index(5, box=((3, 4, 2), (17, 20, 15))), spec()),
    ]
    assert len({base.hash, *(o.hash for o in others)}) == 8


@settings(max_examples=40, deadline=None)
@given(
    subjects=st.integers(2, 25),
    sessions=st.integers(1, 3),
    per_group=st.integers(1, 2),
    crops=st.integers(1, 3),
    groups=st.integers(1, 6),
    seed=st.integers(0, 2**62),
)
def test_every_subject_once_an_epoch(
    subjects: int, sessions: int, per_group: int, crops: int, groups: int, seed: int
) -> None:
    p = plan(
        subjects,
        sessions,
        seed=seed,
        subjects_per_group=per_group,
        crops_per_subject=crops,
        groups_per_step=groups,
    )
    # Enough steps that a whole number of epochs is inside, the last group of an epoch carrying over.
    epochs = 3
    steps = -(-epochs * subjects // (groups * per_group))
    rows = p.rows(0, steps)
    assert rows.num_rows == steps * p.crops_per_step
    visited = rows["subject"].to_pylist()
    for epoch in range(epochs):
        part = visited[epoch * subjects * crops : (epoch + 1) * subjects * crops]
        names, counts = np.unique(part, return_counts=True)
        assert len(names) == subjects and (counts == crops).all()
    assert rows["slot"].to_pylist() == list(range(per_group * crops)) * (steps * groups)
    group = np.repeat(np.arange(steps * groups), per_group * crops)
    assert (rows["group"].to_numpy() == group).all()
    assert (rows["step"].to_numpy() == group // groups).all()
    assert len(set(rows["crop_seed"].to_pylist())) == rows.num_rows


def test_incomplete_last_group_carries_into_the_next_epoch() -> None:
    rows = plan(5, groups_per_step=1, crops_per_subject=1).rows(0, 5)
    third = rows.slice(4, 2)["subject"].to_pylist()
    first_epoch, second_epoch = rows["subject"].to_pylist()[:5], rows["subject"].to_pylist()[5:]
    assert sorted(first_epoch) == sorted(second_epoch) == [f"{9_900_000 + i}" for i in range(5)]
    assert third == [first_epoch[4], second_epoch[0]]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_same_groups_for_any_number_of_workers(world: int) -> None:
    p = plan(groups_per_step=12)
    whole = p.rows(3, 8)
    parts = [p.rows(3, 8, rank, world) for rank in range(world)]
    per_worker = 12 // world
    for rank, part in enumerate(parts):
        assert part.num_rows == 5 * per_worker * p.crops_per_group
        place = part["group"].to_numpy() % 12
        assert (place // per_worker == rank).all()
    together = pa.concat_tables(parts).sort_by([("group", "ascending"), ("slot", "ascending")])
    assert together.equals(whole)


@settings(max_examples=30, deadline=None)
@given(cursor=st.integers(0, 60), world=st.sampled_from([1, 2, 3]), stop=st.integers(0, 60))
def test_resume_from_any_cursor_equals_the_uninterrupted_run(cursor: int, world: int, stop: int) -> None:
    p = plan(7, sessions=2, groups_per_step=6)
    for rank in range(world):
        whole = p.rows(0, 60, rank, world)
        per_step = p.crops_per_step // world
        fresh = pickle.loads(pickle.dumps(p))
        resumed = fresh.rows(cursor, stop, rank, world)
        assert resumed.equals(whole.slice(cursor * per_step, max(0, stop - cursor) * per_step))


def test_worker_groups_are_slices_of_the_rows() -> None:
    p = plan(groups_per_step=12)
    rows = p.rows(5, 9, 1, 3)
    parts = [p.worker_groups(i, min(i + 5, 16), start_step=5, rank=1, world=3) for i in range(0, 16, 5)]
    assert pa.concat_tables(parts).equals(rows)


def test_withdrawing_a_subject_leaves_the_others_in_order() -> None:
    index = make_index(20)
    gone = "9900007"
    before = Plan.from_index(index, spec(groups_per_step=1, subjects_per_group=1, crops_per_subject=1))
    after = Plan.from_index(
        index.filter(pa.array([s != gone for s in index["subject"].to_pylist()])), before.spec
    )
    assert [s for s in before.rows(0, 20)["subject"].to_pylist() if s != gone] == (
        after.rows(0, 19)["subject"].to_pylist()
    )


@pytest.mark.parametrize("frame", ["box", "reference"])
def test_seeds_and_corners_are_functions_of_the_visit(frame: str) -> None:
    p = plan(9, frame=frame)
    rows = p.rows(100, 104)
    visit = rows["group"].to_numpy() * 2 + rows["slot"].to_numpy() // 2
    expected = [
        hash64_int(11, key_of("stream.crop"), int(v), int(c))
        for v, c in zip(visit, rows["slot"].to_numpy() % 2, strict=True)
    ]
    assert rows["crop_seed"].to_pylist() == expected
    lo, hi = frame_bounds(frame, np.array([SHAPE]), np.array([[3, 4, 2]]), np.array([[17, 20, 16]]), CROP)
    corner = np.array(rows["corner"].to_pylist())
    assert (corner >= lo).all() and (corner + CROP <= hi).all()
    assert len(np.unique(corner, axis=0)) > 100


def test_only_the_split_is_visited() -> None:
    index = pa.concat_tables([make_index(4), make_index(8, split="val").slice(4)])
    assert set(Plan.from_index(index, spec(split="val")).rows(0, 1)["subject"].to_pylist()) == {
        f"{9_900_000 + i}" for i in range(4, 8)
    }
    with pytest.raises(ConfigError, match=r"no eligible subject in split 'test'.*train, val"):
        Plan.from_index(index, spec(split="test"))


def test_fewer_subjects_than_a_group_are_refused() -> None:
    with pytest.raises(ConfigError, match="a group needs 3 subjects but split 'train' has 2"):
        plan(2, subjects_per_group=3)
    assert plan(3, subjects_per_group=3).n_subjects == 3


def test_a_session_listed_twice_is_refused() -> None:
    index = make_index(3)
    with pytest.raises(DataError, match=r"same session more than once.*subject 9900001"):
        Plan.from_index(pa.concat_tables([index, index.slice(1, 1)]), spec())


def test_an_index_without_its_columns_is_refused() -> None:
    with pytest.raises(DataError, match="lacks the columns box_hi"):
        Plan.from_index(make_index(3).drop_columns(["box_hi"]), spec())


@pytest.mark.parametrize(
    ("groups", "world", "fix"),
    [
        (12, 5, "use 4 or 6 workers, or 10 or 15 groups a step"),
        (64, 48, "use 32 or 64 workers, or 48 or 96 groups a step"),
        (2, 3, "use 2 workers, or 3 groups a step"),
        (7, 2, "use 1 or 7 workers, or 6 or 8 groups a step"),
        (4, 0, "use 1 workers"),
    ],
)
def test_a_world_that_does_not_divide_the_groups_is_refused(groups: int, world: int, fix: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_world(groups, world)
    assert error.value.fix == fix
    assert f"{groups} groups a step" in str(error.value)


def test_rows_of_an_impossible_worker_are_refused() -> None:
    with pytest.raises(ConfigError, match="12 groups a step cannot be dealt evenly to 5 workers"):
        plan().rows(0, 1, 0, 5)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        plan().rows(0, 1, 2, 2)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("crop", (4, 0, 4), "three positive sizes"),
        ("crop", (4, 4), "three positive sizes"),
        ("crops_per_subject", 0, "crops_per_subject is 0"),
        ("subjects_per_group", -1, "subjects_per_group is -1"),
        ("groups_per_step", 0, "groups_per_step is 0"),
        ("frame", "whole", "unknown frame 'whole'"),
        ("foreground", 1.5, "foreground is 1.5.*a share of crops from 0 to 1"),
        ("foreground", float("nan"), "foreground is nan"),
        ("foreground", 0.33, "0.33 of the crops are to show lesions.*set labelled too"),
    ],
)
def test_impossible_specs_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec(**{field: value})


PAPER = """
import json, time
from pathlib import Path
import numpy as np
from brainfoundry.stream.plan import Plan, PlanSpec
from tests.stream.builders import make_index

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3

index = make_index(39_504, shape=(182, 218, 182), box=((20, 22, 0), (160, 200, 160)), per_shard=64)
Path("/proc/self/clear_refs").write_text("5")
before = peak()
start = time.perf_counter()
plan = Plan.from_index(index, PlanSpec(seed=1, crop=(96, 96, 96), groups_per_step=64, frame="box"))
first = plan.rows(0, 1, 0, 64)
opened = time.perf_counter() - start
for step in np.random.default_rng(0).integers(0, 200_000, 20):
    rows = plan.rows(int(step), int(step) + 16, 63, 64)
    assert rows.num_rows == 64 and rows["step"][0].as_py() == step
assert plan.rows(199_999, 200_000).num_rows == 256
plan.hash
print(json.dumps({"mb": peak() - before, "open_s": opened, "rows": 200_000 * plan.crops_per_step}))
"""


def test_the_papers_51_million_rows_open_in_little_memory() -> None:
    # The index itself is the shard set's; what is bounded here is what the plan adds to it.
    done = subprocess.run([sys.executable, "-c", PAPER], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rows"] == 51_200_000
    assert found["mb"] < 200, found
