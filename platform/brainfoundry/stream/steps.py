"""From a stream of crop tables to one batch a step, checked: a lost or doubled row is an error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from ray.data import DataIterator
from ray.exceptions import RayError

from brainfoundry.core.errors import BrainFoundryError, DataError
from brainfoundry.stream.batch import CropBatch, batch_of
from brainfoundry.stream.pipeline import unpack


def iter_steps(
    iterator: DataIterator | Iterable[pa.Table],
    *,
    rows_per_step: int,
    first_step: int,
    crops_per_group: int,
    prefetch: int,
    stop_step: int | None = None,
) -> Iterator[CropBatch]:
    """One batch a step, whole and in sequence. Close the generator to stop the reading.

    Args:
        iterator: a pipeline's iterator (`ray.train.get_dataset_shard`), or crop tables in order.
        rows_per_step: this worker's crops of a step.
        first_step: the step the stream must begin with.
        crops_per_group: crops of a group; divides `rows_per_step`.
        prefetch: chunks held ready in this process besides the one in use.
        stop_step: one past the last step; where given, a stream that ends before it is an error.

    Raises:
        DataError: a row is missing, doubled or out of place, or the store could not be read.
    """
    if rows_per_step < 1 or rows_per_step % crops_per_group:
        raise ValueError(f"{rows_per_step} rows a step are not whole groups of {crops_per_group}")
    check = _Sequence(rows_per_step, first_step, crops_per_group)
    pieces: list[pa.Table] = []
    held = 0
    for table in _tables(iterator, prefetch):
        used = 0
        while used < table.num_rows:
            piece = table.slice(used, rows_per_step - held)
            pieces.append(piece)
            used, held = used + piece.num_rows, held + piece.num_rows
            if held == rows_per_step:
                check.next(pieces)
                yield batch_of(pieces)
                pieces, held = [], 0
    if held or (stop_step is not None and check.step < stop_step):
        raise _lost(f"the stream ended in step {check.step}, {held} of its {rows_per_step} rows delivered")


class _Sequence:
    """The step, group and slot that each row must carry."""

    def __init__(self, rows_per_step: int, first_step: int, crops_per_group: int) -> None:
        self.step = first_step
        self._slots = np.arange(rows_per_step) % crops_per_group
        self._places = np.arange(rows_per_step) // crops_per_group
        self._first_group: int | None = None
        self._groups_between: int | None = None

    def next(self, pieces: list[pa.Table]) -> None:
        """Check one step's rows and count on."""
        steps, groups, slots = (
            np.concatenate([p[name].to_numpy() for p in pieces]) for name in ("step", "group", "slot")
        )
        wrong = np.flatnonzero(
            (steps != self.step) | (slots != self._slots) | (groups - groups[0] != self._places)
        )
        if len(wrong):
            i = int(wrong[0])
            raise _lost(
                f"row {i} of step {self.step} should be slot {self._slots[i]} of its group"
                f" {self._places[i]}, but is step {steps[i]}, group {groups[i]}, slot {slots[i]}"
            )
        # A worker's first group moves on by the same number, the groups of a step over all workers.
        if self._first_group is not None:
            between = int(groups[0]) - self._first_group
            if self._groups_between not in (None, between):
                raise _lost(
                    f"step {self.step} starts at group {groups[0]},"
                    f" not {self._first_group + (self._groups_between or 0)}"
                )
            self._groups_between = between
        self._first_group = int(groups[0])
        self.step += 1


def _lost(problem: str) -> DataError:
    return DataError(
        f"rows of the plan were lost, doubled or moved: {problem}",
        fix="submit the job again to resume from its last checkpoint; report this if it comes back",
    )


def _tables(iterator: DataIterator | Iterable[pa.Table], prefetch: int) -> Iterator[pa.Table]:
    if not isinstance(iterator, DataIterator):
        yield from iterator
        return
    try:
        blocks = iterator.iter_batches(
            batch_size=None,  # type: ignore[arg-type]  # documented as whole blocks, annotated as int
            batch_format="pyarrow",
            prefetch_batches=prefetch,
        )
        for block in blocks:
            yield from unpack(block)
    except Exception as error:
        raise _cause(error) from error


def _cause(error: Exception) -> Exception:
    """The error of ours inside what Ray wrapped around it, else the error itself."""
    seen: BaseException | None = error
    while seen is not None:
        # Ray's wrapper is an instance of the wrapped class too, but its text is a traceback.
        if isinstance(seen, BrainFoundryError) and not isinstance(seen, RayError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return error
