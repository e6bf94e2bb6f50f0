"""A shard set's splits as a run over folds sees them: one fold held out, the others to train on."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from brainfoundry.core.errors import ConfigError

HELD_OUT = "held_out"
"""Split of the sessions of the fold that a run over folds does not train on."""


def split_view(index: pa.Table, fold: int | None, *, source: str | None = None) -> pa.Table:
    """The table with the `split` column of a run that holds `fold` out; None leaves it as it is.

    - Test sessions stay test, whatever their fold (`jobs/split.py --test-fold` keeps the number).
    - Sessions of `fold` are "held_out", those of any other fold "train", also where `--val-fold` put one
      into val: each run over folds validates on its own.
    - Sessions without a fold keep their split.

    Args:
        index: any table with a row a session or scan and the columns `split` and `fold`.
        source: where it came from, for messages.

    Raises:
        ConfigError: no session outside the test set is in that fold.
    """
    if fold is None:
        return index
    split = pc.cast(index["split"], pa.string())
    dealt = pc.and_(pc.is_valid(index["fold"]), pc.fill_null(pc.not_equal(split, "test"), True))
    there = sorted(index["fold"].filter(dealt).unique().to_pylist())
    if fold not in there:
        raise ConfigError(
            f"nobody outside the test set is in fold {fold}",
            file=source,
            fix=f"choose one of the folds {', '.join(map(str, there))}"
            if there
            else "deal folds with jobs/split.py",
        )
    mine = pc.equal(index["fold"], fold)
    view = pc.if_else(dealt, pc.if_else(mine, HELD_OUT, "train"), split)
    return index.set_column(index.column_names.index("split"), "split", view)
