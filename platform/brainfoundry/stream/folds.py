"""A shard set's splits as a run sees them: one fold held out, the others to train on, or a share of them."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from brainfoundry.cohorts.few_shot import few_shot
from brainfoundry.cohorts.manifest import read_manifest
from brainfoundry.cohorts.strata import MANIFEST_COLUMNS
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.store.meta import manifest_uri
from brainfoundry.store.reader import ShardSet

HELD_OUT = "held_out"
"""Split of the sessions of the fold that a run over folds does not train on."""


def split_view(
    index: pa.Table,
    fold: int | None,
    *,
    subset: Collection[str] | None = None,
    source: str | None = None,
) -> pa.Table:
    """The table with the `split` column of a run that holds `fold` out; None leaves it as it is.

    - Test sessions stay test, whatever their fold (`jobs/split.py --test-fold` keeps the number).
    - Sessions of `fold` are "held_out", those of any other fold "train", also where `--val-fold` put one
      into val: each run over folds validates on its own.
    - Sessions without a fold keep their split.
    - Train sessions of subjects outside `subset` are in no split ("").

    Args:
        index: any table with a row a session or scan and the columns `split` and `fold`; with a subset, also
            `subject`.
        subset: the training subjects of the run (`few_shot_subset`); None: all.
        source: where it came from, for messages.

    Raises:
        ConfigError: no session outside the test set is in that fold.
    """
    view = index if fold is None else _fold_view(index, fold, source)
    if subset is None:
        return view
    split = pc.cast(view["split"], pa.string())
    outside = pc.invert(pc.is_in(view["subject"], pa.array(sorted(subset), pa.string())))
    split = pc.if_else(pc.and_(pc.equal(split, "train"), outside), "", split)
    return view.set_column(view.column_names.index("split"), "split", split)


def _fold_view(index: pa.Table, fold: int, source: str | None) -> pa.Table:
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


def few_shot_subset(
    shards: str | ShardSet, *, share: float, draw: int, fold: int | None = None
) -> frozenset[str] | None:
    """The training subjects of a run on a share of them, by the shard set's own recipe; None: on all of them.

    Args:
        shards: URI of the shard set, or the set; not looked at where there is nothing to choose.
        share: per cent.
        fold: the fold that the run holds out.

    Raises:
        ConfigError: the shard set has no such subsets.
        DataError: its manifest is missing or damaged.
    """
    if share == 100:
        return None
    opened = ShardSet.open(shards) if isinstance(shards, str) else shards
    return _subset(opened.uri, opened.meta.manifest_hash, share, draw, fold)


@lru_cache(maxsize=64)
def _subset(uri: str, manifest_hash: str, share: float, draw: int, fold: int | None) -> frozenset[str]:
    manifest = read_manifest(manifest_uri(uri))
    if manifest.hash != manifest_hash:
        raise DataError(
            "manifest does not belong to this shardset.json", file=manifest_uri(uri), fix="restore the file"
        )
    recipe = manifest.meta.splits.get("few_shot")
    if recipe is None:
        raise ConfigError(
            f"no few-shot subsets here, to take {share:g} % of the training subjects from",
            file=uri,
            fix="make them with jobs/split.py --shards ... --few-shot 5,10,20,40,100 --draws 5",
        )
    unknown = [name for name in recipe["stratify"] if name not in MANIFEST_COLUMNS]
    if unknown:
        raise ConfigError(
            f"few-shot subsets by {unknown[0]!r}, a column that the shard set does not keep",
            file=uri,
            fix=f"make them with jobs/split.py --few-shot by {', '.join(MANIFEST_COLUMNS)} alone",
        )
    try:
        return frozenset(few_shot(manifest, recipe, share, draw, without_fold=fold))
    except ConfigError as error:
        raise ConfigError(
            error.problem, file=uri, fix=f"{error.fix}, or add them: jobs/split.py --few-shot and --draws"
        ) from None
