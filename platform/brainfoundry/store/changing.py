"""Changing a finished shard set (withdrawal, another split) so that a crash never leaves a half truth.

`changing.json` is written before the first file is touched and deleted after `shardset.json`, the last one.
While it lies there readers refuse the set; running the same job again finishes the change. Every step of
a change must therefore be harmless when it is done twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.store.meta import CHANGE_JOBS, VERSION, ShardSetMeta, changing_uri, claim_uri, meta_uri


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change that has begun.

    Args:
        what: key of `meta.CHANGE_JOBS`.
        when: UTC of its first attempt, ISO 8601.
        before: the description of the set as it was.
        payload: what the change is, as the first attempt gave it, for the attempt that finishes it.
        resumed: True where an earlier attempt was interrupted.
    """

    what: str
    when: str
    before: ShardSetMeta
    payload: Mapping[str, Any] = field(default_factory=dict)
    resumed: bool = False

    def history(self, subjects: int) -> tuple[Mapping[str, Any], ...]:
        """`ShardSetMeta.history` after this change: the earlier entries, then the hash that it replaces."""
        entry = {
            "manifest_hash": self.before.manifest_hash,
            "what": self.what,
            "subjects": subjects,
            "when": self.when,
        }
        return (*self.before.history, entry)


def pending(uri: str) -> dict[str, Any] | None:
    """`changing.json` of the shard set at `uri`, or None where no change is under way."""
    where = changing_uri(uri)
    return files.read_json(where) if files.exists(where) else None


def begin(uri: str, what: str, payload: Mapping[str, Any]) -> Change:
    """Announce a change, or take up the one that was interrupted (with its own payload).

    Args:
        payload: plain values, as JSON takes them. It is deleted with `changing.json`.

    Raises:
        DataError: no finished shard set there, or a change of another kind was interrupted.
    """
    found = pending(uri)
    if found is None:
        before = ShardSetMeta.read(uri)
        when = now()
        value = {"version": VERSION, "what": what, "when": when, "before": before.to_dict()}
        with unwritable(uri):
            files.write_json(changing_uri(uri), value | {"payload": dict(payload)})
        return Change(what=what, when=when, before=before, payload=payload)
    if found["what"] != what:
        raise DataError(
            f"another change of this shard set ({found['what']}) was interrupted",
            file=changing_uri(uri),
            fix=f"run {CHANGE_JOBS.get(found['what'], 'that job')} again first: it finishes what it began",
        )
    before = ShardSetMeta.from_dict(found["before"], changing_uri(uri))
    return Change(what=what, when=found["when"], before=before, payload=found["payload"], resumed=True)


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def finish(uri: str, meta: ShardSetMeta) -> ShardSetMeta:
    """Write `shardset.json`, the commit mark, and take `changing.json` away.

    The history also goes into `convert.json`: it outlives a `shardset.json` deleted to mend a shard.
    """
    with unwritable(uri):
        if files.exists(claim_uri(uri)):
            claim = files.read_json(claim_uri(uri))
            files.write_json(claim_uri(uri), claim | {"history": list(meta.history)})
        files.write_json(meta_uri(uri), meta.to_dict())
        files.delete_file(changing_uri(uri))
    return meta


def past(uri: str) -> tuple[Mapping[str, Any], ...]:
    """The history that `convert.json` keeps; empty for a set that was never changed."""
    if not files.exists(claim_uri(uri)):
        return ()
    return tuple(files.read_json(claim_uri(uri)).get("history", ()))


@contextmanager
def unwritable(uri: str) -> Iterator[None]:
    """Tell a full or lost disk in one line."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"shard set cannot be written: {error}",
            file=uri,
            fix="free space or choose a folder you may write to, then run again: it goes on where it stopped",
        ) from error


def with_history(meta: ShardSetMeta, change: Change, subjects: int, **changed: Any) -> ShardSetMeta:
    """The description after `change`: `changed` fields, and one more entry of history."""
    return replace(meta, **changed, history=change.history(subjects))
