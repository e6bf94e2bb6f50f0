"""Which stored sessions a plan visits: by split, fold, share of the subjects and mask."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.folds import few_shot_subset, split_view

if TYPE_CHECKING:
    from brainfoundry.stream.plan import PlanSpec

INDEX_COLUMNS = ["subject", "session", "split", "shard", "row", "shape", "box_lo", "box_hi"]
"""What a plan needs to know of a session."""


def triples(column: pa.ChunkedArray) -> np.ndarray:
    """(N, 3) int64 of a list<int32>[3] column, whether its lists are of fixed or variable size."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if flat.size != 3 * len(column):
        raise DataError(
            "index holds a shape, box or corner that is not three numbers", fix="convert the cohort again"
        )
    return flat.astype(np.int64).reshape(-1, 3)


def subset_of(shards: str | ShardSet, spec: PlanSpec) -> frozenset[str] | None:
    """The training subjects of a plan over a share of them (`folds.few_shot_subset`); None: all."""
    return few_shot_subset(shards, share=spec.share, draw=spec.draw, fold=spec.fold)


def eligible(
    index: pa.Table, spec: PlanSpec, source: str = "the index", subset: Collection[str] | None = None
) -> pa.Table:
    """`INDEX_COLUMNS` of the sessions that a plan visits, in the index's order.

    Args:
        subset: `subset_of` the shard set.

    Raises:
        DataError: the index lacks a column that the spec needs.
        ConfigError: nobody is eligible.
    """
    if spec.share != 100 and subset is None:
        raise ValueError("a plan over a share of the subjects needs their names: see Plan.open")
    needed = [
        *INDEX_COLUMNS,
        *(["fold"] if spec.fold is not None else []),
        *(["has_label"] if spec.labelled else []),
    ]
    _check_columns(index, needed, source)
    view = split_view(index.select(needed), spec.fold, subset=subset, source=source)
    table = view.filter(pc.equal(view["split"], spec.split))
    if table.num_rows == 0:
        splits = sorted({s for s in view["split"].unique().to_pylist() if s})
        raise ConfigError(
            f"no eligible subject in split {spec.split!r}",
            file=source,
            fix=f"choose one of the splits {', '.join(splits)}"
            if splits
            else "convert a cohort with subjects",
        )
    if spec.labelled:
        table = table.filter(table["has_label"])
        if table.num_rows == 0:
            raise ConfigError(
                f"no session of split {spec.split!r} has a mask",
                file=source,
                fix="convert the cohort with its masks (--labels required)",
            )
    return table.select(INDEX_COLUMNS)


def _check_columns(table: pa.Table, needed: list[str], source: str) -> None:
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        raise DataError(
            f"index lacks the columns {', '.join(missing)}", file=source, fix="convert the cohort again"
        )


def in_order(sessions: pa.Table, source: str) -> pa.Table:
    """Sessions ascending in (subject, session), each there once."""
    _check_columns(sessions, INDEX_COLUMNS, source)
    table = sessions.select(INDEX_COLUMNS)
    for name in ("subject", "session"):
        table = table.set_column(table.column_names.index(name), name, pc.cast(table[name], pa.string()))
    table = table.sort_by([("subject", "ascending"), ("session", "ascending")])
    pairs = table.group_by(["subject", "session"]).aggregate([([], "count_all")])
    if pairs.num_rows != table.num_rows:
        twice = pairs.filter(pc.greater(pairs["count_all"], 1))
        raise DataError(
            "index holds the same session more than once",
            file=source,
            subject=twice["subject"][0].as_py(),
            fix="convert the cohort again",
        )
    return table
