"""A cohort's folder on any storage: listing its images, and reading one image's header."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from brainfoundry.cohorts.exclusions import ScanError, UnreadableArchive
from brainfoundry.cohorts.manifest import Scan
from brainfoundry.cohorts.nifti_header import NiftiHeader, read_header
from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.core.remote import StorageError

Enter = Callable[[tuple[str, ...]], bool]
"""Says of a folder's path, in parts, whether to look into it."""


@dataclass(frozen=True)
class Probe:
    """A header that could be read: the scan for the manifest and its affine (4 x 4, voxel to mm)."""

    scan: Scan
    affine: np.ndarray


def scan_of(header: NiftiHeader, modality: str, uri: str, *, size: int, **identity: Any) -> Scan:
    """The manifest's scan of a header; `identity`: member and crc32 of what lies in a zip, else mtime."""
    return Scan(
        modality=modality, uri=uri, shape=header.shape, spacing=header.spacing,
        orientation=header.orientation, dtype=header.dtype, size=size, **identity,
    )  # fmt: skip


def mtime_of(info: pafs.FileInfo) -> float | None:
    """Seconds since 1970, where the storage knows."""
    return None if info.mtime_ns is None else info.mtime_ns / 1e9


@dataclass
class Folder:
    """A cohort's folder on any storage.

    Raises:
        DataError: no such folder.
    """

    uri: str
    example: str = "the files of the cohort"
    unreadable_names: int = field(init=False, default=0)
    """Images of the last `images()` that were passed over because their path is no UTF-8."""
    _fs: pafs.FileSystem = field(init=False, repr=False)
    _path: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.uri = files.absolute(self.uri)
        self._fs, self._path = files.filesystem(self.uri)
        if self._fs.get_file_info(self._path).type != pafs.FileType.Directory:
            raise DataError("no such folder", file=self.uri, fix=f"give the folder that holds {self.example}")

    def images(self, enter: Enter | None = None) -> Iterator[tuple[str, ...]]:
        """The parts of each NIfTI file's path below the folder, in no promised order.

        Hidden files and folders are passed over; links are followed, to each real folder once.

        Args:
            enter: says of a folder's parts whether to look into it; by default all.
        """
        self.unreadable_names = 0
        listed = self._local(enter) if files.is_local(self.uri) else self._remote(enter)
        for parts in listed:
            if parts[-1].endswith((".nii.gz", ".nii")) and not parts[-1].startswith("."):
                if _is_text(parts):
                    yield parts
                else:
                    self.unreadable_names += 1

    def _local(self, enter: Enter | None) -> Iterator[tuple[str, ...]]:
        waiting: list[tuple[str, ...]] = [()]
        seen = {identity_of(self._path)}
        while waiting:
            parts = waiting.pop()
            folder = os.path.join(self._path, *parts)  # noqa: PTH118 (Path would cost seconds over 100,000)
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        below = (*parts, entry.name)
                        if not _is_folder(entry):
                            yield below
                        elif not entry.name.startswith(".") and (enter is None or enter(below)):
                            identity = identity_of(entry.path)
                            if identity not in seen:  # linked folders may form a circle
                                seen.add(identity)
                                waiting.append(below)
            except OSError as error:
                fix = "make the folder readable, or move it out of the cohort"
                raise DataError(f"folder cannot be listed: {error}", file=folder, fix=fix) from error

    def _remote(self, enter: Enter | None) -> Iterator[tuple[str, ...]]:
        # One listing of everything: object stores answer it in pages of a thousand, not folder by folder.
        for info in self._fs.get_file_info(pafs.FileSelector(self._path, recursive=True)):
            if info.type != pafs.FileType.File:
                continue
            parts = tuple(info.path.removeprefix(self._path).strip("/").split("/"))
            above = [parts[: i + 1] for i in range(len(parts) - 1)]
            if not any(p[-1].startswith(".") or (enter is not None and not enter(p)) for p in above):
                yield parts

    def uri_of(self, parts: Sequence[str]) -> str:
        """The URI of a file below the folder."""
        return files.join(self.uri, *parts)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself and the like: a file, and opening it will tell
        return False


def _is_text(parts: Sequence[str]) -> bool:
    """Whether a path can be written down: names that are no UTF-8 have no place in a manifest."""
    try:
        "".join(parts).encode()
    except UnicodeEncodeError:
        return False
    return True


def identity_of(folder: str | Path) -> tuple[int, int]:
    """What tells a local folder from any other, whatever links lead to it."""
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


class HeaderReader:
    """Reads headers of a cohort's files; its storage is connected to once, not once a file.

    Args:
        source: URI of the cohort's folder. Files elsewhere can be read too.
    """

    def __init__(self, source: str) -> None:
        self._source = files.absolute(source)
        self._fs, self._path = files.filesystem(self._source)

    def probe(self, uri: str, modality: str, subject: str) -> Probe:
        """Read one header.

        Raises:
            ScanError: with the reason code of what is wrong; nothing else.
        """
        try:
            fs, path = self._locate(uri)
            info = fs.get_file_info(path)
            if info.type != pafs.FileType.File:
                raise _gone(uri, path, subject)
            with closing(self._open(fs, path)) as stream:
                # By its first bytes, not its name: uncompressed files that are called .nii.gz are common.
                gzipped = stream.read(2) == b"\x1f\x8b"
                stream.seek(0)
                header = read_header(stream, size=info.size, gzipped=gzipped, file=uri, subject=subject)
        except (ScanError, StorageError):
            raise
        except Exception as error:  # storage raises many kinds; none may stop an intake
            problem = f"file cannot be read: {error or type(error).__name__}"
            raise UnreadableArchive(problem, file=uri, subject=subject, fix="deliver it again") from error
        return Probe(scan_of(header, modality, uri, size=info.size, mtime=mtime_of(info)), header.affine)

    def _locate(self, uri: str) -> tuple[pafs.FileSystem, str]:
        if uri.startswith(f"{self._source}/"):
            return self._fs, self._path + uri.removeprefix(self._source)
        return files.filesystem(uri)

    @staticmethod
    def _open(fs: pafs.FileSystem, path: str) -> Any:
        local = isinstance(fs, pafs.LocalFileSystem)
        return Path(path).open("rb") if local else fs.open_input_file(path)


def _gone(uri: str, path: str, subject: str) -> UnreadableArchive:
    link = files.is_local(uri) and Path(path).is_symlink()
    problem = "link points nowhere" if link else "file is gone since it was listed"
    fix = "fetch its content (datalad get, git annex get)" if link else "deliver it again"
    return UnreadableArchive(problem, file=uri, subject=subject, fix=fix)
