"""The cohort manifest: one row a subject and session, with the verdict, its reason and the scans' identity.

A Parquet file whose schema metadata key `brainfoundry` holds the JSON of `ManifestMeta`. Rows are in
ascending order of (subject, session), each pair once. The hash is SHA-256 over the canonical JSON of every
row, a line each in that order, then of the metadata: it does not depend on the Parquet writer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from brainfoundry.cohorts.exclusions import Stage, Tally, exclusion_table
from brainfoundry.cohorts.rows import SCHEMA, Row, Scan, canonical_json
from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.core.rng import hash64_int, key_of

__all__ = [
    "SCHEMA", "VERSION", "Manifest", "ManifestMeta", "ManifestWriter", "Row", "Scan", "assign_split",
    "exclusion_table", "read_manifest", "rewrite_manifest", "write_manifest",
]  # fmt: skip

VERSION = 1
_META_KEY, _HASH_KEY = b"brainfoundry", b"brainfoundry.hash"


@dataclass(frozen=True, kw_only=True)
class ManifestMeta:
    """What holds for the whole cohort.

    Args:
        modalities: names in channel order.
        template_space: such as "MNI152"; "" for scanner space.
        source: where the scans came from.
        rules: the exclusion rules with their values.
        stage: "intake" (headers only) or "converted" (voxels seen).
        counts: code -> {"subjects": n, "sessions": n}; made by the writer.
        notes: sentences for the exclusion report.
        labels: scheme of the lesion masks (`cohorts.labels.SCHEMES`); "" for a cohort without.
        splits: how split, fold and few-shot subsets were made (`cohorts.splits`); empty where none were.
    """

    cohort: str
    modalities: tuple[str, ...]
    template_space: str
    skull_stripped: bool
    source: str
    rules: Mapping[str, Any] = field(default_factory=dict)
    stage: Stage = "intake"
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    labels: str = ""
    splits: Mapping[str, Any] = field(default_factory=dict)
    version: int = VERSION

    def to_json(self) -> str:
        """Canonical JSON."""
        return canonical_json({f.name: getattr(self, f.name) for f in fields(self)})

    @staticmethod
    def from_json(text: str | bytes, uri: str) -> ManifestMeta:
        """The inverse of `to_json`.

        Raises:
            DataError: of another version, or not of this shape.
        """
        fix = "make the manifest again with this version's prepare job, or use the version that wrote it"
        try:
            value = json.loads(text)
            version = value["version"]
            if version == VERSION:
                for name in ("modalities", "notes"):
                    value[name] = tuple(value[name])
                return ManifestMeta(**value)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"manifest metadata cannot be read: {error}", file=uri, fix=fix) from error
        raise DataError(
            f"manifest of version {version}; this code reads version {VERSION}", file=uri, fix=fix
        )


class _Digest:
    """The manifest hash, fed row by row."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def add(self, row: Mapping[str, Any]) -> None:
        self._sha.update(canonical_json(row).encode() + b"\n")

    def finish(self, meta: ManifestMeta) -> str:
        done = self._sha.copy()
        done.update(meta.to_json().encode())
        return done.hexdigest()


@dataclass(frozen=True)
class Manifest:
    """A manifest in memory: its Arrow table (columns of `SCHEMA`), its metadata and its hash."""

    table: pa.Table
    meta: ManifestMeta
    hash: str

    def rows(self, *, included_only: bool = False) -> Iterator[Row]:
        """The rows in order."""
        for value in _dicts(self.table):
            if not included_only or value["verdict"] == "included":
                yield Row.from_dict(value)

    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """Code -> {"subjects": n, "sessions": n}, as `exclusion_table` takes them."""
        return self.meta.counts


def _dicts(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=2048):
        yield from batch.to_pylist()


class ManifestWriter:
    """Writes rows as they come, in constant memory; the file appears when `close` succeeds, or not at all.

    Use as a context manager. `meta` and `hash` are final after `close`.

    Args:
        uri: where to write, local or remote.
        meta: metadata; its counts are replaced by those of the rows.
        rows_per_group: rows of one Parquet row group, the most that are held in memory.

    Raises:
        DataError: storage cannot be written.
        ValueError: rows out of order.
    """

    def __init__(self, uri: str, meta: ManifestMeta, *, rows_per_group: int = 4096) -> None:
        self.uri, self.meta, self.hash = files.absolute(uri), meta, ""
        self._group = rows_per_group
        self._buffer: list[dict[str, Any]] = []
        self._digest, self._tally, self._last = _Digest(), Tally(), ("", "")
        self._fs, self._path = files.filesystem(self.uri)
        self._local = isinstance(self._fs, pafs.LocalFileSystem)
        # A remote file is spooled here first, so that an interrupted job leaves nothing half-written there.
        folder = Path(self._path).parent if self._local else Path(tempfile.gettempdir())
        self._temporary = folder / f".{Path(self._path).name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Without Arrow's own copy of the schema, readers see the metadata added at the end as its own.
            self._sink = pq.ParquetWriter(
                str(self._temporary), SCHEMA, compression="zstd", store_schema=False
            )
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: Exception) -> DataError:
        return DataError(
            f"manifest cannot be written: {error}", file=self.uri, fix="choose a folder you may write to"
        )

    def write(self, row: Row) -> None:
        """Append a row; its (subject, session) must come after the last one's."""
        if row.key <= self._last:
            raise ValueError(f"rows must ascend in (subject, session): {row.key} after {self._last}")
        self._last = row.key
        value = row.to_dict()
        self._digest.add(value)
        self._tally.add(row.subject, row.reason)
        self._buffer.append(value)
        if len(self._buffer) >= self._group:
            self._flush()

    def note(self, *notes: str) -> None:
        """Add sentences to the metadata's notes."""
        self.meta = replace(self.meta, notes=(*self.meta.notes, *notes))

    def _flush(self) -> None:
        if self._buffer:
            self._sink.write_table(pa.Table.from_pylist(self._buffer, schema=SCHEMA))
            self._buffer.clear()

    def close(self) -> None:
        """Write the metadata and put the file in its place."""
        self.meta = replace(self.meta, counts=self._tally.counts())
        self.hash = self._digest.finish(self.meta)
        try:
            self._flush()
            self._sink.add_key_value_metadata(
                {_META_KEY.decode(): self.meta.to_json(), _HASH_KEY.decode(): self.hash}
            )
            self._sink.close()
            if self._local:
                with self._temporary.open("rb") as handle:
                    os.fsync(handle.fileno())
                self._temporary.replace(self._path)
            else:
                with self._temporary.open("rb") as source, self._fs.open_output_stream(self._path) as target:
                    shutil.copyfileobj(source, target, 1 << 20)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            self._temporary.unlink(missing_ok=True)

    def abort(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError):
            self._sink.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> ManifestWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def write_manifest(uri: str, rows: Iterable[Row], meta: ManifestMeta) -> str:
    """Write rows (ascending in subject and session) as a manifest.

    Returns:
        Its hash.
    """
    with ManifestWriter(uri, meta) as writer:
        for row in rows:
            writer.write(row)
    return writer.hash


def rewrite_manifest(
    manifest: Manifest, uri: str, update: Callable[[Row], Row], *, meta: ManifestMeta | None = None
) -> str:
    """Write `manifest` again with every row passed through `update`, as conversion does.

    Returns:
        The new manifest's hash.
    """
    return write_manifest(uri, (update(row) for row in manifest.rows()), meta or manifest.meta)


def read_manifest(uri: str) -> Manifest:
    """Read a manifest and check its hash.

    Raises:
        DataError: missing, not a manifest, of another version, or changed after it was written.
    """
    uri = files.absolute(uri)
    remake = "make it again with the prepare job"
    fs, path = files.filesystem(uri)
    try:
        with fs.open_input_file(path) as handle, pq.ParquetFile(handle) as source:
            stored = source.metadata.metadata or {}
            if _META_KEY not in stored:
                raise DataError("Parquet file is not a cohort manifest", file=uri, fix=remake)
            meta = ManifestMeta.from_json(stored[_META_KEY], uri)
            table = source.read()
        if table.schema.names != SCHEMA.names or table.schema.types != SCHEMA.types:
            raise DataError("manifest has other columns than this version writes", file=uri, fix=remake)
        digest = _Digest()
        for value in _dicts(table):
            digest.add(value)
    except FileNotFoundError as error:
        raise DataError("no such manifest", file=uri, fix="check the path, or run the prepare job") from error
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: damaged text is no UTF-8
        raise DataError(f"manifest cannot be read: {error}", file=uri, fix=remake) from error
    found = digest.finish(meta)
    if stored.get(_HASH_KEY) != found.encode():
        fix = "restore the file; to change rows write a new manifest with write_manifest"
        raise DataError(
            "manifest was changed after it was written: its hash does not match", file=uri, fix=fix
        )
    return Manifest(table.replace_schema_metadata(None), meta, found)


def assign_split(subjects: Iterable[str], n_val: int, seed: int) -> dict[str, str]:
    """Subject -> "train" or "val": the n_val subjects of lowest `hash64(seed, key_of(subject))` are held out.

    By subject, never by session, and a pure function of *which* subjects there are: their order and
    repetition do not matter, and a new subject moves at most one other.

    Raises:
        ConfigError: where no subject would be left to train on.
    """
    unique = set(subjects)
    if not 0 <= n_val < max(len(unique), 1):
        raise ConfigError(
            f"cannot hold out {n_val} of {len(unique)} subjects for validation",
            fix=f"choose between 0 and {max(len(unique) - 1, 0)}",
        )
    ranked = sorted(unique, key=lambda subject: (hash64_int(seed, key_of(subject)), subject))
    return {subject: "val" if rank < n_val else "train" for rank, subject in enumerate(ranked)}
