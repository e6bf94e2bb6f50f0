"""The table of everybody whose scans a checkpoint's weights have seen: its own run's and all its ancestors'.

It lies beside the weights (`seen.parquet`, with its checksum on the card), so that a checkpoint that travels
alone can still be held against a test set. About 170 bytes a scan: 14 MB at 41,400 subjects with two
modalities.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from brainfoundry.cohorts.fingerprint import LENGTH
from brainfoundry.core import files
from brainfoundry.core.errors import CheckpointError, DataError
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.folds import few_shot_subset, split_view
from brainfoundry.training.card import SEEN_FILE, Card
from brainfoundry.training.checkpoint import read_card

SEEN_VERSION = 1
_KEY = b"brainfoundry.seen"

SEEN = pa.schema(
    [
        *((name, pa.string()) for name in ("run", "stage", "cohort", "manifest_hash", "subject", "session")),
        *((name, pa.string()) for name in ("split", "modality")),
        ("fingerprint", pa.binary(LENGTH)),
    ]
)
"""One row a scan. `fingerprint` is null for a participant who has withdrawn since: only the id stays."""


def fingerprints_of(shards: ShardSet) -> pa.Table:
    """The shard set's fingerprints.

    Raises:
        DataError: it has none, or damaged ones.
    """
    try:
        return shards.fingerprints()
    except DataError as error:
        raise DataError(
            f"cannot prove whose scans these are: {error.problem}",
            file=error.file,
            fix="restore the file, or convert the cohort again with its prepare job",
        ) from error


def own_scans(
    shards: ShardSet,
    modalities: Sequence[str],
    *,
    run: str,
    stage: str,
    held_out_fold: int | None = None,
    share: float = 100.0,
    draw: int = 0,
) -> pa.Table:
    """What a run sees itself: scans of the train and val sessions of its shard set, in its modalities.

    Args:
        modalities: the run's channels by name.
        held_out_fold: for a run over folds: splits are those of `stream.folds.split_view`, so it sees every
            fold but this one, and no test session.
        share, draw: for a few-shot run: of the train sessions it sees those of its subset alone.

    Raises:
        DataError: the shard set has no fingerprints, or damaged ones.
        ConfigError: nobody is in that fold, or no such few-shot subset.
    """
    subset = few_shot_subset(shards, share=share, draw=draw, fold=held_out_fold)
    table = split_view(fingerprints_of(shards), held_out_fold, subset=subset)
    table = table.filter(pc.is_in(table["split"], pa.array(["train", "val"])))
    table = table.filter(pc.is_in(table["modality"], pa.array(list(modalities))))
    fixed = {
        "run": run, "stage": stage, "cohort": shards.meta.cohort, "manifest_hash": shards.meta.manifest_hash
    }  # fmt: skip
    columns = {n: pa.array([fixed[n]] * len(table)) if n in fixed else table[n] for n in SEEN.names}
    return pa.table(columns).cast(SEEN)


def seen_table(
    own: pa.Table,
    parents: Sequence[str] = (),
    *,
    earlier: pa.Table | None = None,
    run: str = "",
    index: pa.Table | None = None,
) -> pa.Table:
    """The table of a checkpoint: its own scans, its parents', and what the run saw before a withdrawal.

    Args:
        own: from `own_scans`.
        parents: URIs of the checkpoints the run was initialised from.
        earlier: table of the checkpoint this run continues from. Those who are in it and no longer in `own`
            have withdrawn: their ids stay, their fingerprints do not.
        run: name of the run, where `earlier` is given.
        index: of the shard set. Who is in it has not withdrawn, and only left the run's few-shot subset,
            which a withdrawal changes: the fingerprint stays.

    Raises:
        CheckpointError: a parent is missing, damaged, or has no table.
    """
    if earlier is None:
        tables = [own, *(load_seen(uri) for uri in parents)]
    else:  # whose table has all that its parents' had: they may be gone by now
        tables = [own, earlier.filter(pc.not_equal(earlier["run"], run))]
        before = earlier.filter(pc.equal(earlier["run"], run))
        here, stored = set(_sessions(own)), set(_sessions(index) if index is not None else ())
        left = before.filter(pa.array([key not in here for key in _sessions(before)], pa.bool_()))
        there = pa.array([key in stored for key in _sessions(left)], pa.bool_())
        gone = left.filter(pc.invert(there))
        nothing = pa.nulls(gone.num_rows, SEEN.field("fingerprint").type)
        gone = gone.set_column(SEEN.names.index("fingerprint"), "fingerprint", nothing)
        tables += [left.filter(there), gone]
    both = pa.concat_tables([t.select(SEEN.names).cast(SEEN) for t in tables])
    # Two parents may share an ancestor.
    names = [n for n in SEEN.names if n != "fingerprint"]
    twice = both.append_column("place", pa.array(range(both.num_rows), pa.int64()))
    first = twice.group_by(names).aggregate([("place", "min")])["place_min"].to_numpy()
    return both.take(pa.array(np.sort(first))).combine_chunks()


def _sessions(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(*(table[name].to_pylist() for name in ("subject", "session")), strict=True))


def encode_seen(table: pa.Table, parents: Sequence[str] = ()) -> bytes:
    """`seen.parquet`: the table, and for whose sake it is complete."""
    about = {"version": SEEN_VERSION, "parents": list(parents)}
    columns = [
        column if column.type == SEEN.field("fingerprint").type else column.dictionary_encode()
        for column in table.columns
    ]
    sink = io.BytesIO()
    compact = pa.table(columns, names=table.column_names).replace_schema_metadata({_KEY: json.dumps(about)})
    pq.write_table(compact, sink, compression="zstd")
    return sink.getvalue()


def load_seen(uri: str, card: Card | None = None) -> pa.Table:
    """The table of a checkpoint (`SEEN`).

    Args:
        uri: the checkpoint's folder.
        card: its card, where it was read already.

    Raises:
        CheckpointError: there is none, it does not match the card, or it leaves out a parent on the card:
            whom these weights have seen cannot be proved.
    """
    uri = files.absolute(uri)
    card = card or read_card(uri)
    where = files.join(uri, SEEN_FILE)
    entry = card.files.get(SEEN_FILE)
    if entry is None or not files.exists(where):
        raise _unproved(
            "the checkpoint has no table of the scans it has seen", where,
            "use a checkpoint that has one: those made before this version must be trained again",
        )  # fmt: skip
    data = files.read_bytes(where)
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise _unproved(
            "the table of seen scans does not match its checksum on the card", where, "restore it"
        )
    try:
        table = pq.read_table(io.BytesIO(data))
        about = json.loads(table.schema.metadata[_KEY])
        if about["version"] != SEEN_VERSION:
            raise ValueError(f"version {about['version']}, this program reads {SEEN_VERSION}")
        table = table.replace_schema_metadata(None).select(SEEN.names).cast(SEEN)
    except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise _unproved(f"the table of seen scans cannot be read: {error}", where, "restore it") from error
    missing = sorted(set(card.parents) - set(about["parents"]))
    if missing:
        raise _unproved(
            f"the table of seen scans leaves out the parent {missing[0]}",
            where,
            "train again from its parents",
        )
    return table


def _unproved(problem: str, file: str, fix: str) -> CheckpointError:
    return CheckpointError(f"cannot prove whom these weights have seen: {problem}", file=file, fix=fix)
