"""One shard's conversion: manifest rows in, a shard with its summary out; nothing where that is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from brainfoundry.cohorts.exclusions import ScanError
from brainfoundry.cohorts.fingerprint import fingerprint
from brainfoundry.cohorts.labels import check_values
from brainfoundry.cohorts.manifest import Row, Scan
from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.core.remote import StorageError
from brainfoundry.store import bricks
from brainfoundry.store.mask import Mask, read_mask
from brainfoundry.store.meta import BRICK, LABEL, VERSION, FloatMode, shard_uri, sidecar_uri
from brainfoundry.store.row import EncodedRow, encode_row
from brainfoundry.store.source import load_scan
from brainfoundry.store.writer import ShardWriter


@dataclass(frozen=True, kw_only=True)
class ConvertSpec:
    """How a manifest becomes a shard set.

    Args:
        float_mode: scans that are not 16-bit integers: "quantize" to int16 with a bound on the error, or
            "lossless" as float32.
        spacing_mm: isotropic voxel size to resample to; None keeps the files' grid and allows restoration.
        min_slices: axial slices with brain that every modality must have (paper Fig. 3: at least 100).
        slice_rule: "content" excludes sessions with fewer; "header" only counts them.
        rows_per_shard: sessions a shard, which is one task; about 5 MB each at 1 mm with 2 modalities.
        n_val: subjects held out for validation, or
        val_fraction: that share of them, rounded.
        seed: of the split.

    Raises:
        ConfigError: a value out of range.
    """

    float_mode: FloatMode = "quantize"
    spacing_mm: float | None = None
    min_slices: int = 100
    slice_rule: Literal["content", "header"] = "content"
    rows_per_shard: int = 64
    n_val: int = 0
    val_fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (
            ("float_mode", ("quantize", "lossless")),
            ("slice_rule", ("content", "header")),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}", fix=f"choose {' or '.join(choices)}")
        if self.spacing_mm is not None and not 0.1 <= self.spacing_mm <= 20:
            raise ConfigError(f"spacing_mm is {self.spacing_mm}", fix="give millimetres between 0.1 and 20")
        if self.rows_per_shard < 1 or self.min_slices < 0:
            raise ConfigError("rows_per_shard must be at least 1 and min_slices at least 0", fix="correct it")
        if self.n_val < 0 or not 0 <= self.val_fraction < 1 or (self.n_val and self.val_fraction):
            raise ConfigError(
                f"cannot hold out n_val={self.n_val} and val_fraction={self.val_fraction}",
                fix="give one of them: n_val of 0 or more, or val_fraction from 0 to below 1",
            )

    def of_shards(self) -> dict[str, Any]:
        """The settings that decide what is in the shards; the split does not."""
        names = ("n_val", "val_fraction", "seed")
        return {name: value for name, value in asdict(self).items() if name not in names}


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """What one task needs to know.

    Args:
        rows: included rows of the intake manifest, in its order.
        modalities: in channel order.
        labels: scheme of the masks to store after them; "" for none.
        optional: of the modalities, those a row may lack.
        withdrawn: subjects among `rows` who withdrew since; they keep their place in the dealing, and the
            shard is made without them.
    """

    uri: str
    shard: int
    spec: ConvertSpec
    modalities: tuple[str, ...]
    rows: tuple[Row, ...]
    labels: str = ""
    optional: tuple[str, ...] = ()
    withdrawn: tuple[str, ...] = ()

    def hash(self) -> str:
        """SHA-256 over all that decides the shard's content, withdrawals aside."""
        value = [
            VERSION, BRICK, self.shard, self.spec.of_shards(), self.modalities, self.labels,
            self.optional, [r.to_dict() for r in self.rows],
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """For the way to a worker."""
        value = asdict(self) | {"rows": [r.to_dict() for r in self.rows]}
        return json.dumps(value)

    @staticmethod
    def from_json(text: str) -> ShardTask:
        """The inverse of `to_json`."""
        value = json.loads(text)
        return ShardTask(
            uri=value["uri"],
            shard=value["shard"],
            spec=ConvertSpec(**value["spec"]),
            modalities=tuple(value["modalities"]),
            rows=tuple(Row.from_dict(r) for r in value["rows"]),
            labels=value["labels"],
            optional=tuple(value["optional"]),
            withdrawn=tuple(value["withdrawn"]),
        )


def finished_summary(task: ShardTask) -> dict[str, Any] | None:
    """The summary of this very shard if an earlier run finished it, else None."""
    where = sidecar_uri(task.uri, task.shard)
    if not files.exists(where):
        return None
    try:
        summary = files.read_json(where)
    except StorageError:  # an outage: not the same as no summary
        raise
    except DataError:
        return None
    if not isinstance(summary, dict) or summary.get("task_hash") != task.hash():
        return None
    fs, path = files.filesystem(shard_uri(task.uri, task.shard))
    return summary if fs.get_file_info(path).size == summary.get("size") else None


def convert_shard(task: ShardTask) -> dict[str, Any]:
    """Make the shard, one session in memory at a time, or find that it is made.

    A session whose scans cannot be used is left out, and its outcome says why.

    Returns:
        The shard's summary.

    Raises:
        DataError: storage cannot be written.
    """
    done = finished_summary(task)
    if done is not None:
        return done
    bricks.one_thread()
    outcomes: list[dict[str, Any]] = []
    with ShardWriter(task.uri, task.shard) as writer:
        for row in task.rows:
            if row.subject in task.withdrawn:
                continue
            encoded, outcome = convert_row(task, row)
            outcomes.append(outcome)
            if encoded is not None:
                writer.add(encoded)
        return writer.commit(task.hash(), outcomes)


def convert_row(task: ShardTask, row: Row) -> tuple[EncodedRow | None, dict[str, Any]]:
    """The encoded session or None, and what became of it."""
    outcome: dict[str, Any] = {"subject": row.subject, "session": row.session, "reason": "", "detail": ""}
    digests: dict[str, str] = {}
    outcome["sha256"] = digests
    try:
        scans = _scans(task, row)
        volumes = []
        for scan in scans:
            volumes.append(load_scan(scan, row.subject))
            digests[scan.modality] = volumes[-1].sha256
        mask = _load_mask(task, row, outcome)
        enforced = task.spec.min_slices if task.spec.slice_rule == "content" else 0
        encoded = encode_row(
            row.subject,
            row.session,
            volumes,
            files=[_place(scan) for scan in scans],
            float_mode=task.spec.float_mode,
            spacing_mm=task.spec.spacing_mm,
            min_slices=enforced,
            labelled=bool(task.labels),
            mask=mask,
            modalities=task.modalities,
        )
        prints = {volume.modality: fingerprint(volume.raw_XYZ).hex() for volume in volumes}
    except ScanError as error:
        return None, outcome | {"reason": error.reason, "detail": describe(error)}
    except (ArithmeticError, LookupError, MemoryError, ValueError) as error:
        # Whatever else a strange volume makes NumPy or SciPy say: it costs this row, not the job.
        problem = f"volume cannot be converted: {type(error).__name__}: {' '.join(str(error).split())}"
        return None, outcome | {"reason": "damaged_data", "detail": problem}
    outcome["slices"] = encoded.index["slices"]
    return replace(encoded, index=encoded.index | {"fingerprints": prints}), outcome


class MissingModality(ScanError):
    """A session without a modality that its cohort requires."""

    reason = "missing_modality"


def _scans(task: ShardTask, row: Row) -> list[Scan]:
    """The session's scans in channel order; those that are optional may lack, not all of them."""
    there = {scan.modality: scan for scan in row.scans}
    lacks = [name for name in task.modalities if name not in there and name not in task.optional]
    scans = [there[name] for name in task.modalities if name in there]
    if lacks or not scans:
        problem = f"the manifest names no scan of {', '.join(lacks or task.modalities)}"
        fix = "run the intake again, with those a session may lack as optional modalities"
        raise MissingModality(problem, subject=row.subject, fix=fix)
    return scans


def _load_mask(task: ShardTask, row: Row, outcome: dict[str, Any]) -> Mask | None:
    """The mask, held against the scheme; its labels and digest go into `outcome` even if it is refused."""
    if not task.labels or row.label is None:
        return None
    where = _place(row.label)
    volume = load_scan(replace(row.label, modality=LABEL), row.subject)
    outcome["sha256"][LABEL] = volume.sha256
    mask = read_mask(volume, file=where, subject=row.subject)
    outcome["label_values"] = list(mask.values)
    check_values(mask.values, task.labels, file=where, subject=row.subject)
    return mask


def _place(scan: Scan) -> str:
    return f"{scan.uri}:{scan.member}" if scan.member else scan.uri


def describe(error: DataError) -> str:
    """Problem, file and fix in one line; the row names the subject."""
    where = f" [{error.file}]" if error.file else ""
    return error.problem + where + (f". Fix: {error.fix}" if error.fix else "")


def as_failure(error: DataError) -> Mapping[str, Any]:
    """A DataError as plain values, to travel from a worker to the driver."""
    return {"problem": error.problem, "file": error.file, "subject": error.subject, "fix": error.fix}
