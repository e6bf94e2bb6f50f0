"""Withdrawal: participants leave a shard set, and of them only a tombstone (who, and that) stays in it.

Rewritten are the shards that hold them, with their summaries, and the set's tables; every other shard keeps
its bytes. Rows that stay keep shard and order, and their split and fold.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from brainfoundry.cohorts.exclusions import write_exclusions
from brainfoundry.cohorts.intake import exclusions_of
from brainfoundry.cohorts.left_out import same_ids
from brainfoundry.cohorts.manifest import read_manifest, write_manifest
from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.core.progress import progress
from brainfoundry.store.cache import forget
from brainfoundry.store.changing import Change, begin, finish, pending, unwritable, with_history
from brainfoundry.store.commit import delete_leftovers, write_tables
from brainfoundry.store.meta import (
    SHARD_SCHEMA,
    ShardSetMeta,
    intake_uri,
    manifest_uri,
    shard_uri,
    sidecar_uri,
)
from brainfoundry.store.row import EncodedRow
from brainfoundry.store.shard_task import ConvertSpec
from brainfoundry.store.tombstones import anonymous_meta, anonymous_outcome, tombstoned
from brainfoundry.store.writer import ShardWriter, head_of


@dataclass(frozen=True, kw_only=True)
class Withdrawal:
    """What a withdrawal does, or did, to a shard set.

    Args:
        uri: of the shard set.
        cohort: its name.
        subjects: who goes, ascending, as the set spells them.
        earlier: of the list, who had gone before.
        unknown: ids of the list that are nobody's here.
        sessions: stored sessions that go.
        shards: numbers of the shards that are rewritten.
        meta: of the set, after it.
        resumed: True where an interrupted withdrawal was finished first; its subjects are among `subjects`.
    """

    uri: str
    cohort: str
    subjects: tuple[str, ...]
    earlier: tuple[str, ...]
    unknown: tuple[str, ...]
    sessions: int
    shards: tuple[int, ...]
    meta: ShardSetMeta
    resumed: bool = False


def withdraw(uri: str, ids: Collection[str], *, dry_run: bool = False) -> Withdrawal:
    """Tombstone participants in the shard set at `uri`.

    Ids of nobody here are reported, not refused; those who went before are left as they are. A withdrawal
    that was interrupted is finished first, with its own list.

    Args:
        ids: subject ids, with or without BIDS's "sub-".
        dry_run: only say what would happen.

    Raises:
        DataError: no finished shard set there, another change of it was interrupted, storage that cannot be
            written, or a row that stays is damaged.
    """
    uri = files.absolute(uri)
    interrupted: frozenset[str] = frozenset()
    if pending(uri) is not None and not dry_run:
        interrupted, meta = _apply(uri, [])
    else:
        meta = ShardSetMeta.read(uri)
    table = read_manifest(manifest_uri(uri)).table.select(["subject", "reason"])
    here = {
        subject: reason == "withdrawn" for subject, reason in zip(*table.to_pydict().values(), strict=True)
    }
    wanted = frozenset(ids)
    found = {subject for subject in here if same_ids(subject) & wanted}
    spellings = {spelling for subject in found for spelling in same_ids(subject)}
    going = {subject for subject in found if not here[subject]}
    summaries = _summaries(uri, meta.shards)
    result = Withdrawal(
        uri=uri,
        cohort=meta.cohort,
        subjects=tuple(sorted(going | interrupted)),
        earlier=tuple(sorted(found - going - interrupted)),
        unknown=tuple(sorted(wanted - spellings)),
        sessions=sum(row["subject"] in going for s in summaries for row in s["rows"]),
        shards=tuple(s["shard"] for s in summaries if _names(s, going)),
        meta=meta,
        resumed=bool(interrupted),
    )
    if dry_run or not going:
        return result
    return replace(result, meta=_apply(uri, sorted(going))[1])


def _apply(uri: str, subjects: Sequence[str]) -> tuple[frozenset[str], ShardSetMeta]:
    """From `changing.json` to `shardset.json`: an interrupted withdrawal's own subjects, else `subjects`."""
    change = begin(uri, "withdrawal", {"subjects": list(subjects)})
    going = frozenset(change.payload["subjects"])
    with unwritable(uri):
        delete_leftovers(uri)
        summaries = _summaries(uri, change.before.shards)
        touched = [i for i, summary in enumerate(summaries) if _names(summary, going)]
        with progress("withdrawing", len(touched), "shards") as bar:
            for i in touched:
                summaries[i] = _rewrite_shard(uri, summaries[i], going)
                bar.advance(1)
        forget(uri)  # this machine's cache of a remote set
        return going, _rewrite_tables(uri, change, going, summaries)


def _summaries(uri: str, shards: int) -> list[dict[str, Any]]:
    return [files.read_json(sidecar_uri(uri, shard)) for shard in range(shards)]


def _names(summary: dict[str, Any], subjects: Collection[str]) -> bool:
    return any(entry["subject"] in subjects for name in ("rows", "outcomes") for entry in summary[name])


def _rewrite_shard(uri: str, summary: dict[str, Any], subjects: Collection[str]) -> dict[str, Any]:
    """The shard and its summary without `subjects`; an interrupted rewrite is done again from what is there.

    Raises:
        DataError: the head of a row that stays is damaged. Damaged bricks are copied as they are.
    """
    shard = summary["shard"]
    outcomes = [anonymous_outcome(o, subjects) for o in summary["outcomes"] if o["subject"] not in subjects]
    described = {(row["subject"], row["session"]): row for row in summary["rows"]}
    if not any(subject in subjects for subject, _ in described):  # was never stored: only its outcome goes
        with unwritable(uri):
            files.write_json(sidecar_uri(uri, shard), summary | {"outcomes": outcomes})
        return summary | {"outcomes": outcomes}
    with ShardWriter(uri, shard) as writer:
        for batch in _batches(uri, shard):
            key = batch.column("subject")[0].as_py(), batch.column("session")[0].as_py()
            if key[0] in subjects:
                continue
            row = described.pop(key, None)
            if row is None or head_of(memoryview(batch.serialize()), False) != _head(row):
                raise _damaged(uri, shard, "the head of a row is not what its summary says", key[0])
            writer.add(EncodedRow(batch=batch, index=row))
        for subject, _ in described:
            if subject not in subjects:
                raise _damaged(uri, shard, "it lacks a session that its summary names", subject)
        return writer.commit(summary["task_hash"], outcomes, check_bricks=False)


def _head(row: dict[str, Any]) -> tuple[int, int]:
    return row["head_length"], row["head_crc"]


def _batches(uri: str, shard: int) -> Iterable[pa.RecordBatch]:
    """The rows of a shard, one in memory at a time."""
    fs, path = files.filesystem(shard_uri(uri, shard))
    try:
        with fs.open_input_file(path) as handle, pa.ipc.open_file(handle) as source:
            if not source.schema.equals(SHARD_SCHEMA):
                raise _damaged(uri, shard, "its columns are not those of a shard")
            for number in range(source.num_record_batches):
                yield source.get_batch(number)
    except (pa.ArrowException, FileNotFoundError) as error:
        raise _damaged(uri, shard, f"it cannot be read: {error}") from error


def _damaged(uri: str, shard: int, what: str, subject: str | None = None) -> DataError:
    return DataError(
        f"shard is damaged: {what}",
        file=shard_uri(uri, shard),
        subject=subject,
        fix="restore the file from a copy, then run this job again: it goes on",
    )


def _rewrite_tables(
    uri: str, change: Change, subjects: Collection[str], summaries: Sequence[dict[str, Any]]
) -> ShardSetMeta:
    """Everything beside the shards; `shardset.json` last."""
    converted = read_manifest(manifest_uri(uri))
    spec = ConvertSpec(**change.before.spec)
    meta = anonymous_meta(converted.meta, subjects)
    tables = write_tables(uri, tombstoned(converted.rows(), subjects), meta, summaries, spec)
    if files.exists(intake_uri(uri)):
        intake = read_manifest(intake_uri(uri))
        meta = anonymous_meta(intake.meta, subjects)
        write_manifest(intake_uri(uri), tombstoned(intake.rows(), subjects), meta)
        _rewrite_exclusions(uri, "exclusions_intake", intake_uri(uri))
    _rewrite_exclusions(uri, "exclusions", manifest_uri(uri))
    return finish(uri, with_history(change.before, change, len(subjects), **tables.fields()))


def _rewrite_exclusions(uri: str, name: str, source: str) -> None:
    """The tables for people that the prepare jobs leave beside the set."""
    where = files.join(uri, name)
    if files.exists(f"{where}.json"):
        manifest = read_manifest(source)
        title = f"Exclusions, {manifest.meta.stage}"
        write_exclusions(where, exclusions_of(manifest), title=title, notes=manifest.meta.notes)
