"""Files on any storage by URI: a local path, or whatever pyarrow or fsspec can open (s3://, gs://, memory://)."""

from __future__ import annotations

import json
import os
import uuid
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from brainfoundry.core import remote
from brainfoundry.core.errors import DataError


def is_local(uri: str | os.PathLike[str]) -> bool:
    """True for a plain path or a file:// URI."""
    text = os.fspath(uri)
    return "://" not in text or text.startswith("file://")


def absolute(uri: str | os.PathLike[str]) -> str:
    """The URI with a local path made absolute (Ray workers run in another folder); remote ones as they
    are."""
    text = os.fspath(uri)
    if not is_local(text):
        return text.rstrip("/")
    return str(Path(text.removeprefix("file://")).expanduser().resolve())


def join(uri: str, *parts: str) -> str:
    """URI of a path below `uri`."""
    return "/".join([uri.rstrip("/"), *parts])


def filesystem(uri: str | os.PathLike[str]) -> tuple[pafs.FileSystem, str]:
    """File system and path inside it: pyarrow's own, or fsspec's for schemes pyarrow does not know.

    Remote ones wait out passing faults; see `core.remote`.

    Raises:
        DataError: nobody knows the scheme.
        StorageError: the storage does not answer or refuses.
    """
    text = absolute(uri)
    if is_local(text):
        return pafs.LocalFileSystem(), text
    scheme, _, rest = text.partition("://")
    if scheme in _BUCKETS:
        if "?" in text:
            raise DataError(
                "a URI with options after '?' has no folder to put files into",
                file=text.partition("?")[0],
                fix="set AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and the credentials' variables instead",
            )
        settings = tuple(sorted(i for i in os.environ.items() if i[0].startswith(_SETTINGS)))
        bucket, _, key = rest.partition("/")
        fs, root = _open(f"{scheme}://{bucket}", scheme, settings)
        return fs, f"{root}/{key}" if key else root
    return _open(text, scheme, ())


_BUCKETS = ("s3", "gs")
"""Schemes of the form scheme://bucket/key: one file system a bucket serves all its keys."""
_SETTINGS = ("AWS_", "GOOGLE_")


@lru_cache(maxsize=64)
def _open(uri: str, scheme: str, settings: tuple[tuple[str, str], ...]) -> tuple[pafs.FileSystem, str]:
    """`settings` are those the file system reads from the environment: with others, it is another one."""
    try:
        fs, path = remote.retry(lambda: pafs.FileSystem.from_uri(uri), uri=uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as native:  # a scheme it was not built with
        try:
            import fsspec

            inner, path = fsspec.core.url_to_fs(uri)
        except Exception as other:
            raise DataError(
                f"cannot open storage: {native}; {other}",
                file=uri,
                fix="check the scheme, install its fsspec package (s3: pip install 'brainfoundry[s3]')",
            ) from other
        fs = pafs.PyFileSystem(pafs.FSSpecHandler(inner))
    return remote.waiting(fs, scheme), path


def exists(uri: str) -> bool:
    """True where a file or folder is."""
    fs, path = filesystem(uri)
    return fs.get_file_info(path).type != pafs.FileType.NotFound


def list_names(uri: str) -> list[str]:
    """Sorted names of what lies directly in a folder; empty where there is no folder."""
    fs, path = filesystem(uri)
    try:
        infos = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    except FileNotFoundError:  # in spite of allow_not_found, where another process makes the folder meanwhile
        return []
    return sorted(PurePosixPath(i.path).name for i in infos)


def make_folder(uri: str) -> None:
    """Create a folder and its parents.

    Raises:
        DataError: where the storage cannot be written.
    """
    fs, path = filesystem(uri)
    try:
        fs.create_dir(path, recursive=True)
    except OSError as error:
        raise DataError(
            f"storage cannot be written: {error}", file=uri, fix="choose a folder you may write to"
        ) from error


def check_writable(uri: str) -> None:
    """Prove by writing and deleting a small file that a folder can be written, before hours are spent.

    Raises:
        DataError: where it cannot.
    """
    make_folder(uri)
    probe = join(uri, f".probe-{uuid.uuid4().hex[:8]}")
    try:
        write_bytes(probe, b"probe")
        delete_file(probe)
    except OSError as error:
        raise DataError(
            f"storage cannot be written: {error}", file=uri, fix="choose a folder you may write to"
        ) from error


def read_bytes(uri: str) -> bytes:
    """The whole file.

    Raises:
        DataError: where there is none.
    """
    fs, path = filesystem(uri)
    try:
        with fs.open_input_file(path) as handle:
            return handle.read()
    except FileNotFoundError as error:
        raise DataError("no such file", file=uri, fix="check the path") from error


def read_range(uri: str, offset: int, length: int) -> bytes:
    """A part of a file; shorter where the file ends.

    Raises:
        FileNotFoundError: there is no such file.
    """
    fs, path = filesystem(uri)
    with fs.open_input_file(path) as handle:
        return handle.read_at(length, offset)


def version(uri: str) -> str:
    """What changes whenever the file is written anew: its ETag where there is one, else size and time.

    Raises:
        FileNotFoundError: there is no such file.
    """
    return remote.version(*filesystem(uri))


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file so that it is there whole or not at all (local: temporary name, fsync, rename)."""
    fs, path = filesystem(uri)
    if isinstance(fs, pafs.LocalFileSystem):
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with temporary.open("wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)
        return
    # Object stores show an object only once it is complete. Nothing is compressed by its name's ending.
    with fs.open_output_stream(path, compression=None) as stream:
        stream.write(data)


def read_json(uri: str) -> Any:
    """The parsed JSON file.

    Raises:
        DataError: where the file is missing or is not JSON.
    """
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise DataError(
            f"not valid JSON: {error}", file=uri, fix="restore the file or make it again"
        ) from error


def write_json(uri: str, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_bytes(uri, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def delete_file(uri: str) -> None:
    """Delete a file if it is there."""
    fs, path = filesystem(uri)
    if fs.get_file_info(path).type == pafs.FileType.File:
        fs.delete_file(path)


def delete_folder(uri: str) -> None:
    """Delete a folder with all it holds, if it is there."""
    fs, path = filesystem(uri)
    if fs.get_file_info(path).type == pafs.FileType.Directory:
        fs.delete_dir(path)
