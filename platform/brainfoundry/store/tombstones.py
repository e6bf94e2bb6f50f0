"""What stays of participants who withdrew: tombstones in manifests, and no mention anywhere else."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from brainfoundry.cohorts.manifest import ManifestMeta, Row

ANONYMOUS = "(withdrawn)"
"""What stands for an id in sentences about others."""
_WORTH_LOOKING_FOR = 5
"""Characters of an id below which it is a word of many other meanings, such as 01."""


def tombstoned(rows: Iterable[Row], subjects: Collection[str]) -> list[Row]:
    """The rows with tombstones in place of those of `subjects`, whom no other row mentions either."""
    pattern = _pattern(subjects)
    return [
        row.tombstone()
        if row.subject in subjects
        else replace(row, detail=pattern.sub(ANONYMOUS, row.detail))
        if row.detail
        else row
        for row in rows
    ]


def anonymous_outcome(outcome: Mapping[str, Any], subjects: Collection[str]) -> dict[str, Any]:
    """What became of somebody else's session, without mention of `subjects`."""
    return {**outcome, "detail": _pattern(subjects).sub(ANONYMOUS, outcome["detail"])}


def anonymous_meta(meta: ManifestMeta, subjects: Collection[str]) -> ManifestMeta:
    """A manifest's metadata without mention of `subjects`: in its notes, and in how its splits were made."""
    pattern = _pattern(subjects)
    notes = tuple(pattern.sub(ANONYMOUS, note) for note in meta.notes)
    return replace(meta, notes=notes, splits=_scrubbed(meta.splits, subjects))


def _scrubbed(value: Any, subjects: Collection[str]) -> Any:
    """Plain values without list entries or keys that are one of the ids."""
    if isinstance(value, Mapping):
        return {key: _scrubbed(v, subjects) for key, v in value.items() if key not in subjects}
    if isinstance(value, list | tuple):
        return [_scrubbed(v, subjects) for v in value if not (isinstance(v, str) and v in subjects)]
    return value


def _pattern(subjects: Collection[str]) -> re.Pattern[str]:
    """Any of the ids as a word of its own; nothing where there is none."""
    long = [re.escape(subject) for subject in sorted(subjects) if len(subject) >= _WORTH_LOOKING_FOR]
    return re.compile(r"(?<![A-Za-z0-9])(?:" + "|".join(long) + r")(?![A-Za-z0-9])" if long else r"(?!)")
