"""The gate before training and evaluation: no test subject may be one that a checkpoint's weights have seen.

Refuses by default; with the flag the leak is recorded on the card instead, and in the run's tags and report.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from brainfoundry.cohorts.leaks import BY_ID, BY_IMAGE, Leaks, find_leaks
from brainfoundry.core import files
from brainfoundry.core.errors import CheckpointError, ConfigError, DataError
from brainfoundry.core.progress import progress
from brainfoundry.store.reader import ShardSet
from brainfoundry.training.card import SEEN_FILE
from brainfoundry.training.checkpoint import read_card
from brainfoundry.training.seen import fingerprints_of, load_seen, own_scans, seen_table

EXAMPLES = 5
_SELECTION = re.compile(r"^(?P<uri>.+?)(?:#(?:split=(?P<split>\w+)|fold=(?P<fold>\d+)))?$")


@dataclass(frozen=True)
class TestSet:
    """The scans that a model must not have seen."""

    __test__ = False  # not one of pytest's

    uri: str
    selection: str
    """Such as "split test" or "fold 3"."""
    cohort: str
    manifest_hash: str
    table: pa.Table
    """cohort, subject, session, modality, fingerprint."""

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.selection} of {self.uri}"


def open_test_set(shards: str | ShardSet, *, split: str = "test", fold: int | None = None) -> TestSet:
    """The test sessions of a shard set: those of a split, or of a fold where one is given.

    Raises:
        DataError: no whole shard set, one without fingerprints, or nobody in that split or fold.
    """
    opened = ShardSet.open(shards) if isinstance(shards, str) else shards
    table, wanted = fingerprints_of(opened), ("fold", fold) if fold is not None else ("split", split)
    chosen = table.filter(pc.equal(table[wanted[0]], wanted[1]))
    selection = f"{wanted[0]} {wanted[1]}"
    if not chosen.num_rows:
        there = sorted({str(v) for v in table[wanted[0]].to_pylist() if v not in (None, "")})
        raise DataError(
            f"nobody is in {selection}",
            file=opened.uri,
            fix=f"choose one of {', '.join(there)}" if there else f"give the shard set {wanted[0]}s first",
        )
    columns = chosen.select(["subject", "session", "modality", "fingerprint"])
    cohort = pa.array([opened.meta.cohort] * chosen.num_rows, pa.string())
    return TestSet(
        opened.uri,
        selection,
        opened.meta.cohort,
        opened.meta.manifest_hash,
        columns.append_column("cohort", cohort),
    )


def parse_test_set(text: str) -> TestSet:
    """The test set that `URI`, `URI#split=NAME` or `URI#fold=K` names."""
    match = _SELECTION.match(text)
    if match is None or ("#" in match["uri"] and "=" in match["uri"].rpartition("#")[2]):
        raise ConfigError(f"{text!r} names no test set", fix="write URI, URI#split=NAME or URI#fold=K")
    fold = None if match["fold"] is None else int(match["fold"])
    return open_test_set(match["uri"], split=match["split"] or "test", fold=fold)


@dataclass(frozen=True)
class Held:
    """One test set held against one source of seen scans."""

    test: TestSet
    source: str
    """The checkpoint, or the run that is about to start."""
    leaks: Leaks

    def record(self) -> dict[str, Any]:
        """What goes on the card: plain values."""
        return {
            "test": self.test.uri,
            "selection": self.test.selection,
            "cohort": self.test.cohort,
            "manifest_hash": self.test.manifest_hash,
            "source": self.source,
            "tested": self.leaks.tested,
            "leaked": len(self.leaks.subjects),
            "by_id": self.leaks.count(BY_ID),
            "by_image": self.leaks.count(BY_IMAGE),
            "seen_by": self.leaks.runs(),
        }

    def examples(self) -> list[str]:
        """A few of them: "A (as B)" where the image was seen under another id."""
        first: dict[str, str] = {}
        for row in self.leaks.rows.to_pylist():
            other = (row["seen_cohort"], row["seen_subject"]) != (row["cohort"], row["subject"])
            first.setdefault(
                row["subject"], f"{row['subject']} (as {row['seen_subject']})" if other else row["subject"]
            )
        return list(first.values())[:EXAMPLES]

    def line(self, *, examples: bool = True) -> str:
        """What was found, in a sentence; without examples where ids should not travel."""
        leaks = self.leaks
        if not leaks.subjects:
            return f"none of {leaks.tested} subjects in {self.test.name} was seen by {self.source}"
        by = "; ".join(f"{r['subjects']} by run {r['run']} ({r['stage']})" for r in leaks.runs()[:EXAMPLES])
        return (
            f"{len(leaks.subjects)} of {leaks.tested} test subjects ({self.test.name}) were seen in "
            f"training: {leaks.count(BY_ID)} by id, {leaks.count(BY_IMAGE)} by image"
            + (f", such as {', '.join(self.examples())}" if examples else "")
            + f"; seen: {by}"
        )


def hold(tests: Sequence[TestSet], seen: Mapping[str, pa.Table]) -> list[Held]:
    """Hold every test set against every table of seen scans (source -> `training.seen.SEEN`)."""
    held = []
    for test in tests:
        for source, table in seen.items():
            with progress("leak gate", 2 * test.table.num_rows, "images") as counter:
                held.append(Held(test, source, find_leaks(test.table, table, tick=counter.advance)))
    return held


def refuse(held: Sequence[Held], *, allow: bool, flag: str) -> tuple[dict[str, Any], ...]:
    """The records of those that leak, for the card, where `allow`.

    Raises:
        DataError: there is a leak and it is not allowed.
    """
    leaking = [h for h in held if h.leaks.subjects]
    if leaking and not allow:
        raise DataError(
            leaking[0].line(),
            file=leaking[0].source,
            fix="choose another test set, or a checkpoint that has not seen it (jobs/check_leaks.py tells); "
            f"{flag} goes on and records the leak on the card and in the report",
        )
    return tuple(h.record() for h in leaking)


def gate(
    tests: Sequence[TestSet], checkpoints: Sequence[str], *, allow: bool = False, flag: str = "--allow-leak"
) -> tuple[dict[str, Any], ...]:
    """Let a run or an evaluation begin only where no checkpoint it starts from has seen its test sets.

    Args:
        checkpoints: URIs; each carries the table of its own run and all its ancestors.
        allow: go on over a leak, and where a checkpoint has no table of the scans it has seen.
        flag: how the user says so, for the message.

    Returns:
        For `Card.leaks`: a record for each test set and checkpoint that leak, or may (`unproved`); empty
        where all is clean.

    Raises:
        DataError: a test subject was seen and `allow` is False.
        CheckpointError: a checkpoint cannot prove whom it has seen and `allow` is False, or its table is
            damaged.
    """
    seen, unproved = {}, []
    for uri in map(files.absolute, checkpoints):
        card = read_card(uri)
        if SEEN_FILE in card.files:
            seen[uri] = load_seen(uri, card)
        elif allow:
            unproved += [_unproved(test, uri) for test in tests]
        else:
            raise CheckpointError(
                "cannot prove whom these weights have seen: the checkpoint has no table of the scans it has "
                "seen",
                file=uri,
                fix="use a checkpoint that was trained here and has one (imported weights never do); "
                f"{flag} goes on and says so in the report",
            )
    return (*unproved, *refuse(hold(tests, seen), allow=allow, flag=flag))


def _unproved(test: TestSet, source: str) -> dict[str, Any]:
    """The record of a checkpoint that may have seen anybody."""
    return {
        "test": test.uri, "selection": test.selection, "cohort": test.cohort,
        "manifest_hash": test.manifest_hash, "source": source,
        "tested": pc.count_distinct(test.table["subject"]).as_py(), "leaked": 0, "by_id": 0, "by_image": 0,
        "seen_by": [], "unproved": True,
    }  # fmt: skip


def leak_note(record: Mapping[str, Any]) -> str:
    """What a report says of a record of `gate`."""
    if record.get("unproved"):
        return (
            f"LEAK NOT EXCLUDED: nobody can tell which of the {record['tested']} subjects "
            f"({record['selection']}) {record['source']} has seen: it has no table of its training scans"
        )
    return (
        f"LEAK: {record['leaked']} of {record['tested']} subjects ({record['selection']}) were seen by "
        f"{record['source']}"
    )


def gate_run(
    shards: ShardSet,
    modalities: Sequence[str],
    *,
    run: str,
    stage: str,
    guard: Sequence[str] = (),
    parents: Sequence[str] = (),
    allow: bool = False,
    earlier: str | None = None,
    fold: int | None = None,
    share: float = 100.0,
    draw: int = 0,
) -> tuple[tuple[dict[str, Any], ...], list[str]]:
    """The gate of a run that is about to start: what it and its parents see, against test sets.

    Its own test split cannot leak by id, but can by image: a scan that is there twice under two ids.

    Args:
        guard: `URI[#split=NAME|#fold=K]` of test sets that it must not see.
        parents: checkpoints it starts from.
        earlier: its own newest checkpoint, where it goes on: who was seen and has withdrawn since counts too.
        fold: the fold that it holds out: a test set too.
        share, draw: its few-shot subset of the training subjects.

    Returns:
        Records for `Card.leaks`, and a line a test set for the report and the tags (no ids).

    Raises:
        DataError: a leak that is not allowed, or a test set that cannot be read.
        CheckpointError: a parent cannot prove whom it has seen.
    """
    tests = [parse_test_set(text) for text in guard]
    if "test" in pc.unique(shards.index["split"]).to_pylist():
        tests.append(open_test_set(shards))
    if fold is not None:
        tests.append(open_test_set(shards, fold=fold))
    if not tests:
        return (), []
    own = own_scans(shards, modalities, run=run, stage=stage, held_out_fold=fold, share=share, draw=draw)
    before = None if earlier is None else load_seen(earlier)
    table = seen_table(own, parents, earlier=before, run=run, index=shards.index)
    held = hold(tests, {run: table})
    return refuse(held, allow=allow, flag="--data.allow-leak"), [h.line(examples=False) for h in held]
