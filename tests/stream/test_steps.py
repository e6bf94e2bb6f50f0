"""The sequence check: whatever a pipeline loses, doubles or moves is an error, never a silent loss."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest

from brainfoundry.core.errors import DataError
from brainfoundry.stream.crops import ScanTable, read_crops
from brainfoundry.stream.plan import Plan, PlanSpec
from brainfoundry.stream.steps import iter_steps
from tests.stream.builders import CROP, WitnessReader

ROWS = 8  # of a step: two groups of four


@pytest.fixture(scope="module")
def crops(witness_set: str) -> pa.Table:
    """Crops of worker 1 of 2, steps 3 to 7."""
    reader = WitnessReader(witness_set)
    plan = Plan.from_index(reader.index, PlanSpec(seed=3, crop=CROP, groups_per_step=4, frame="box"))
    return read_crops(reader, ScanTable(reader.index, (0, 1)), plan.rows(3, 8, 1, 2))


def steps(tables: list[pa.Table], first: int = 3, stop: int | None = 8) -> list[int]:
    batches = iter_steps(
        tables, rows_per_step=ROWS, first_step=first, crops_per_group=4, prefetch=0, stop_step=stop
    )
    return [b.step for b in batches]


@pytest.mark.parametrize("size", [1, 3, 8, 12, 16, 40])
def test_blocks_of_any_size_give_whole_steps(crops: pa.Table, size: int) -> None:
    tables = [crops.slice(i, size) for i in range(0, crops.num_rows, size)]
    batches = list(
        iter_steps(tables, rows_per_step=ROWS, first_step=3, crops_per_group=4, prefetch=0, stop_step=8)
    )
    assert [b.step for b in batches] == [3, 4, 5, 6, 7]
    assert [s for b in batches for s in b.subjects] == crops["subject"].to_pylist()
    seeds = [int(s) % 2**64 for b in batches for s in b.seeds_N]
    assert seeds == crops["crop_seed"].to_pylist()


def drop(i: int) -> Callable[[list[int]], list[int]]:
    return lambda order: order[:i] + order[i + 1 :]


def double(i: int) -> Callable[[list[int]], list[int]]:
    return lambda order: order[: i + 1] + order[i:]


def swap(i: int, j: int, n: int = 1) -> Callable[[list[int]], list[int]]:
    def change(order: list[int]) -> list[int]:
        order = order.copy()
        order[i : i + n], order[j : j + n] = order[j : j + n], order[i : i + n]
        return order

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(drop(i) for i in (0, 5, 8, 39)),
        *(double(i) for i in (0, 7, 20, 39)),
        swap(0, 1),  # slots
        swap(0, 4, 4),  # groups of a step
        swap(8, 16, 8),  # steps
        lambda order: order[:8] + order[16:],  # a step
        lambda order: order[:8] + order,  # a step twice
        lambda order: order[8:],  # the first step
        lambda order: order[:-8],  # the last step
        lambda order: [],
    ],
)
@pytest.mark.parametrize("size", [4, 8, 40])
def test_rows_lost_doubled_or_moved_are_errors(
    crops: pa.Table, change: Callable[[list[int]], list[int]], size: int
) -> None:
    assert steps([crops]) == [3, 4, 5, 6, 7]
    broken = crops.take(pa.array(change(list(range(40))), pa.int64()))
    tables = [broken.slice(i, size) for i in range(0, broken.num_rows, size)]
    with pytest.raises(DataError, match="rows of the plan were lost, doubled or moved"):
        steps(tables)


def test_the_message_names_the_place(crops: pa.Table) -> None:
    with pytest.raises(
        DataError, match=r"row 5 of step 4 should be slot 1 of its group 1, but is step 4.*slot 2"
    ):
        steps([crops.take(drop(13)(list(range(40))))])
    with pytest.raises(DataError, match="the stream ended in step 7, 7 of its 8 rows delivered"):
        steps([crops.slice(0, 39)])


def test_groups_of_another_worker_are_an_error(crops: pa.Table, witness_set: str) -> None:
    reader = WitnessReader(witness_set)
    plan = Plan.from_index(reader.index, PlanSpec(seed=3, crop=CROP, groups_per_step=4, frame="box"))
    other = read_crops(reader, ScanTable(reader.index, (0, 1)), plan.rows(3, 8, 0, 2))
    with pytest.raises(DataError, match="step 5 starts at group 20, not 22"):
        steps([crops.slice(0, 16), other.slice(16)])


def test_steps_that_cannot_hold_whole_groups_are_refused(crops: pa.Table) -> None:
    with pytest.raises(ValueError, match="6 rows a step are not whole groups of 4"):
        next(iter_steps([crops], rows_per_step=6, first_step=3, crops_per_group=4, prefetch=0))
