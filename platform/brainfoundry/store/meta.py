"""What a shard set says of itself: `shardset.json`, the columns of its tables, the names of its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import pyarrow as pa

from brainfoundry.core import files
from brainfoundry.core.errors import DataError

VERSION = 1
BRICK = 32
"""Voxels along each side of a brick."""

FloatMode = Literal["quantize", "lossless"]
CodeDtype = Literal["int16", "float32"]

QUANTISATION_BOUND = "abs(restored - source) <= (max - min) / 131070 for every voxel of every quantised scan"
LOSSLESS_BOUND = "restored = source, bit for bit"

_SCAN_INDEX = pa.struct(
    [
        ("modality", pa.string()),
        ("slope", pa.float64()),
        ("inter", pa.float64()),
        ("zero_code", pa.float64()),
        ("code_dtype", pa.string()),
        *((name, pa.float64()) for name in ("mean", "sd", "min", "max", "p0_5", "p1", "p99", "p99_5")),
        ("nonzero", pa.int64()),
        ("coding", pa.string()),
        ("error_bound", pa.float64()),
        ("max_error", pa.float64()),
        ("fixups", pa.int64()),
        ("present", pa.bool_()),
    ]
)
INDEX_SCHEMA = pa.schema(
    [
        ("subject", pa.string()),
        ("session", pa.string()),
        ("split", pa.string()),
        ("fold", pa.int32()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("shape", pa.list_(pa.int32())),
        ("spacing", pa.list_(pa.float64())),
        ("box_lo", pa.list_(pa.int32())),
        ("box_hi", pa.list_(pa.int32())),
        ("slices", pa.int32()),
        ("has_label", pa.bool_()),
        ("label_values", pa.list_(pa.int32())),
        ("scans", pa.list_(_SCAN_INDEX)),
        # Where the row's record batch lies in its file, and the checksum of all of it that is not bricks.
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("head_length", pa.int64()),
        ("head_crc", pa.int64()),
    ]
)
"""`index.parquet`, one row a stored session in (shard, row) order. Statistics are of the non-zero voxels, in
the file's units; `value = code * slope + inter`; errors are of the stored numbers (before scl_slope). In a
labelled set the last scan is the mask; `label_values` are the labels in it, without 0. Where `present` is
false the session came without that scan: every voxel reads as 0, and statistics are 0."""

FINGERPRINT_SCHEMA = pa.schema(
    [
        ("subject", pa.string()),
        ("session", pa.string()),
        ("split", pa.string()),
        ("fold", pa.int32()),
        ("modality", pa.string()),
        ("fingerprint", pa.binary()),
    ]
)
"""`fingerprints.parquet`, one row a stored scan (masks have none), in the index's order."""

CHANGE_JOBS = {"withdrawal": "jobs/withdraw.py", "split": "jobs/split.py"}
"""What can be done to a finished shard set, and the job that does it (`store.changing`)."""

LABEL = "label"
"""Name of the mask among a session's scans."""

ABSENT = "absent"
"""The coding of a modality that the session came without."""

_SCAN_ROW = pa.struct(
    [
        ("modality", pa.string()),
        ("code_dtype", pa.string()),
        ("zero_code", pa.float64()),
        ("coding", pa.string()),
        ("raw_step", pa.float64()),
        ("raw_base", pa.float64()),
        ("orientation", pa.list_(pa.int8())),
        ("header", pa.large_binary()),
        ("tail", pa.large_binary()),
        ("fixup_index", pa.large_binary()),
        ("fixup_value", pa.large_binary()),
    ]
)
SHARD_SCHEMA = pa.schema(
    [
        ("subject", pa.string()),
        ("session", pa.string()),
        ("shape", pa.list_(pa.int32())),
        ("box_lo", pa.list_(pa.int32())),
        ("box_hi", pa.list_(pa.int32())),
        ("affine", pa.list_(pa.float64())),
        ("scans", pa.list_(_SCAN_ROW)),
        ("brick_crc", pa.list_(pa.uint32())),
        # Last, so that the bricks' bytes are the end of the record batch and all before them is the head.
        ("bricks", pa.large_list(pa.large_binary())),
    ],
    metadata={"brainfoundry": json.dumps({"shard_version": VERSION, "brick": BRICK})},
)
"""A shard: Arrow IPC file, one record batch a session. Bricks are modality-major, then C order over the brick
grid; an empty one holds nothing but `zero_code`."""


def meta_uri(uri: str) -> str:
    """`shardset.json`, the commit mark."""
    return files.join(uri, "shardset.json")


def index_uri(uri: str) -> str:
    """`index.parquet`."""
    return files.join(uri, "index.parquet")


def manifest_uri(uri: str) -> str:
    """`manifest.parquet`, the converted cohort manifest."""
    return files.join(uri, "manifest.parquet")


def intake_uri(uri: str) -> str:
    """`intake.parquet`, the intake manifest."""
    return files.join(uri, "intake.parquet")


def claim_uri(uri: str) -> str:
    """`convert.json`: what is being made here, and what was done to it since."""
    return files.join(uri, "convert.json")


def fingerprints_uri(uri: str) -> str:
    """`fingerprints.parquet`."""
    return files.join(uri, "fingerprints.parquet")


def changing_uri(uri: str) -> str:
    """`changing.json`, there while the set is being changed; see `store.changing`."""
    return files.join(uri, "changing.json")


def report_uri(uri: str) -> str:
    """`report.json`."""
    return files.join(uri, "report.json")


def shard_uri(uri: str, shard: int) -> str:
    """One shard's Arrow file."""
    return files.join(uri, "shards", f"shard-{shard:05d}.arrow")


def sidecar_uri(uri: str, shard: int) -> str:
    """One shard's summary, its commit mark."""
    return files.join(uri, "shards", f"shard-{shard:05d}.json")


@dataclass(frozen=True, kw_only=True)
class ShardSetMeta:
    """`shardset.json`: what holds for the whole set.

    Args:
        modalities: names in channel order.
        space: template space of the volumes, such as "MNI152"; "" for scanner space.
        float_mode: how scans that are not 16-bit integers are kept.
        code_dtype: dtype in which crops are delivered: float32 where any scan has float bricks.
        spacing_mm: isotropic voxel size the volumes were resampled to; None = as stored in the files.
        brick: voxels along each side of a brick.
        manifest_hash: of the converted manifest, `manifest.parquet`.
        intake_hash: of the intake manifest it was made from; a withdrawal leaves it as it was.
        spec: the conversion's settings.
        counts: the manifest's counts, reason code -> {"subjects", "sessions"}.
        rows, shards: how many sessions and shard files there are.
        bound: the promise kept for scans that are not stored bit-exactly.
        index_sha256: of `index.parquet`.
        labels: scheme of the masks (`cohorts.labels`); "" for a set without.
        fingerprints_sha256: of `fingerprints.parquet`.
        history: earlier manifest hashes, the newest last: {"manifest_hash", "what" was done to it
            ("withdrawal" or "split"), "subjects" concerned, "when" (UTC, ISO 8601)}.
    """

    cohort: str
    modalities: tuple[str, ...]
    space: str
    skull_stripped: bool
    float_mode: FloatMode
    code_dtype: CodeDtype
    spacing_mm: float | None
    manifest_hash: str
    intake_hash: str
    rows: int
    shards: int
    index_sha256: str
    bound: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    labels: str = ""
    fingerprints_sha256: str = ""
    history: tuple[Mapping[str, Any], ...] = ()
    brick: int = BRICK
    version: int = VERSION

    def to_dict(self) -> dict[str, Any]:
        """Plain values with a digest of themselves, as `shardset.json` holds them."""
        value = asdict(self) | {"modalities": list(self.modalities), "history": list(self.history)}
        return value | {"digest": _digest(value)}

    @staticmethod
    def read(uri: str) -> ShardSetMeta:
        """Read `shardset.json` of the shard set at `uri`.

        Raises:
            DataError: missing, damaged, of another version, or in the middle of a change.
        """
        where = meta_uri(uri)
        if files.exists(changing_uri(uri)):
            what = files.read_json(changing_uri(uri)).get("what", "change")
            job = CHANGE_JOBS.get(what, "the job that did it")
            raise DataError(
                f"shard set is being changed ({what}), or a change was interrupted",
                file=changing_uri(uri),
                fix=f"wait for it, or run {job} again with the same options: it finishes what it began",
            )
        if not files.exists(where):
            raise DataError(
                "no shard set here, or its conversion did not finish",
                file=where,
                fix="check the path, or run the prepare job again: it resumes",
            )
        return ShardSetMeta.from_dict(files.read_json(where), where)

    @staticmethod
    def from_dict(value: Any, where: str) -> ShardSetMeta:
        """The inverse of `to_dict`.

        Args:
            where: the file it came from, for messages.

        Raises:
            DataError: damaged, or of another version.
        """
        fix = "convert the scans again with the prepare job"
        if not isinstance(value, dict) or "version" not in value:
            raise DataError("not a shard set description", file=where, fix=fix)
        if value["version"] != VERSION:
            raise DataError(
                f"shard set of version {value['version']!r}; this code reads version {VERSION}",
                file=where,
                fix=f"{fix}, or use the version that wrote it",
            )
        value = dict(value)
        digest = value.pop("digest", None)
        if digest != _digest(value) or set(value) != {f.name for f in fields(ShardSetMeta)}:
            raise DataError("shard set description was damaged or changed by hand", file=where, fix=fix)
        lists = {name: tuple(value[name]) for name in ("modalities", "history")}
        return ShardSetMeta(**(value | lists))


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
