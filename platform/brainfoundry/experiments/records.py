"""What came of each run of a study: one small JSON file, written once everything else of it is there.

`STUDY/records/ID.json` is the commit mark of a node, and all that reports read of a run besides its score
table, card and manifest. A node whose record says finished, stopped or unfit is done; one that failed is
tried again when the study is submitted again.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from brainfoundry.core import files
from brainfoundry.core.errors import DataError

VERSION = 1
_READERS = 16
"""Records read at once: on an object store each costs a round trip."""


@dataclass(frozen=True, kw_only=True)
class StudyFolder:
    """Where everything of a study lies: STORAGE/NAME."""

    name: str
    uri: str

    @property
    def frozen(self) -> str:
        """The study as it was first submitted."""
        return files.join(self.uri, "study.yaml")

    @property
    def runs(self) -> str:
        """Training runs, a folder each."""
        return files.join(self.uri, "runs")

    def record(self, node: str) -> str:
        """Record of a node."""
        return files.join(self.uri, "records", f"{node}.json")

    def absolute(self, relative: str) -> str:
        """URI of what a record names relative to the study."""
        return files.join(self.uri, relative)


def scores_of(node: str) -> str:
    """Score table of a node, relative to the study."""
    return f"scores/{node}.parquet"


def losses_of(node: str) -> str:
    """Losses of a node, relative to the study."""
    return f"losses/{node}.parquet"


_LOSSES = pa.schema([("step", pa.int64()), ("name", pa.string()), ("value", pa.float64())])


def write_loss_table(uri: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Losses as a table: rows of step, name, value."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), _LOSSES), sink, compression="zstd")
    files.make_folder(uri.rpartition("/")[0])
    files.write_bytes(uri, sink.getvalue())


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One node of a study, done."""

    version: int = VERSION
    study: str
    id: str
    kind: Literal["pretrain", "finetune", "external", "given"]
    role: Literal["ancestor", "choice", "trial"]
    point: Mapping[str, Any]
    """Its value on every axis."""
    state: Literal["finished", "failed", "stopped", "unfit"]
    """stopped: given up early by the scheduler of a search. unfit: options that were only tried, and that do
    not train (the loss was no longer finite, the run was refused or ran out of GPU memory)."""
    run_dir: str
    checkpoint: str | None = None
    """The one that was judged, and that others start from."""
    parents: tuple[str, ...] = ()
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """Options picked on validation, or drawn by a search."""
    steps: int = 0
    parameters: int | None = None
    seconds: float | None = None
    """Of training, over all attempts; like the rest of the cost None where nobody measured."""
    device_hours: float | None = None
    device: str | None = None
    cpu_hours: float | None = None
    energy_kwh: float | None = None
    test: Mapping[str, Any] | None = None
    """shards, manifest_hash, split, fold, subjects; None where nothing was tested."""
    scores: str | None = None
    """Per-subject `ScoreTable`, relative to the study."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Mean of each metric over the test subjects where it is defined."""
    validation: Mapping[str, float] = field(default_factory=dict)
    """Scores, or losses, of the checkpoint on the held-out subjects it was chosen by (`val/dice_mean`)."""
    losses: str | None = None
    """Table step, name, value, relative to the study."""
    chosen_on: str = ""
    """Where the best checkpoint was chosen; "": nowhere, the last one stands."""
    leaks: tuple[Mapping[str, Any], ...] = ()
    """Test subjects that the weights have seen, as --data.allow-leak let pass."""
    error: str = ""
    mlflow_run: str | None = None
    git_commit: str | None = None
    started: str = ""
    """First attempt, UTC, ISO 8601."""
    ended: str = ""
    attempts: int = 0

    @property
    def done(self) -> bool:
        """Whether a study that is submitted again leaves the node alone."""
        return self.state != "failed"


def write_record(study: StudyFolder, record: TrialRecord) -> None:
    """Leave the record, whole or not at all."""
    files.make_folder(files.join(study.uri, "records"))
    files.write_json(study.record(record.id), asdict(record))


def read_records(folder: str) -> dict[str, TrialRecord]:
    """The records of a study, by node.

    Args:
        folder: STUDY, on any storage.

    Raises:
        DataError: a damaged record, or one of another version.
    """
    where = files.join(folder, "records")
    names = [name for name in files.list_names(where) if name.endswith(".json")]
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(lambda name: _read(files.join(where, name)), names))
    return {record.id: record for record in found}


def by_run(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Each training once: a trial that was searched for is the run of its best point."""
    return list({record.run_dir: record for record in records}.values())


def named_after(prefix: str, records: Mapping[str, TrialRecord]) -> dict[str, TrialRecord]:
    """The records of nodes whose names are this one, a dash and a digest."""
    return {name: record for name, record in records.items() if name.rpartition("-")[0] == prefix}


def read_record(study: StudyFolder, node: str) -> TrialRecord:
    """The record of a node.

    Raises:
        DataError: there is none, or it cannot be used.
    """
    return _read(study.record(node))


def _read(uri: str) -> TrialRecord:
    value = files.read_json(uri)
    version = value.get("version") if isinstance(value, dict) else None
    if version != VERSION:
        raise DataError(
            f"record of version {version!r}, this is version {VERSION}", file=uri,
            fix="read it with the release that wrote it, or delete it: its trial is then evaluated again",
        )  # fmt: skip
    known = {f.name for f in fields(TrialRecord)}
    if value.keys() != known:
        odd = sorted(value.keys() ^ known)[0]
        raise DataError(f"record with a missing or unknown field {odd!r}", file=uri, fix="delete it")
    lists = {name: tuple(value[name]) for name in ("parents", "leaks")}
    return TrialRecord(**{**value, **lists})
