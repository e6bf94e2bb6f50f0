"""UK Biobank's bulk files: finding them below a folder, and reading one image's header out of each."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.fs as pafs

from brainfoundry.cohorts.exclusions import MissingMember, ScanError, UnreadableArchive
from brainfoundry.cohorts.folder import Probe, identity_of, mtime_of, scan_of
from brainfoundry.cohorts.nifti_header import DEFLATE_MAX_RATIO, read_header
from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.core.remote import StorageError

# {eid}_{field}_{instance}_{array}, UK Biobank's naming of bulk data.
_NAME = re.compile(r"^(\d+)_(\d+)_(\d+)_(\d+)(\.zip)?$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class BulkField:
    """A UK Biobank data field that carries a modality, and the file inside it that we train on."""

    field: int
    member: str
    title: str


# Fields and members as UK Biobank's showcase and its brain imaging documentation (1.8, section 2) name them.
FIELDS: dict[str, BulkField] = {
    "T1w": BulkField(
        field=20252, member="T1/T1_brain_to_MNI.nii.gz", title="T1 structural brain images - NIFTI"
    ),
    "FLAIR": BulkField(
        field=20253,
        member="T2_FLAIR/T2_FLAIR_brain_to_MNI.nii.gz",
        title="T2 FLAIR structural brain images - NIFTI",
    ),
}


class BulkFile(NamedTuple):
    """One bulk file found: a zip, or a folder with what a zip held. `path` is inside the file system."""

    eid: str
    field: int
    instance: int
    path: str
    packed: bool


class BulkFolder:
    """A folder of bulk files on any storage.

    Raises:
        DataError: no such folder.
    """

    def __init__(self, uri: str) -> None:
        self.uri = files.absolute(uri)
        self._fs, self.path = files.filesystem(self.uri)
        self._local = isinstance(self._fs, pafs.LocalFileSystem)
        if self._fs.get_file_info(self.path).type != pafs.FileType.Directory:
            fix = "give the folder that holds the bulk files ({eid}_20252_2_0.zip and so on)"
            raise DataError("no such folder", file=self.uri, fix=fix)

    def find(self) -> Iterator[BulkFile]:
        """Every bulk file below the folder, of any field, in no promised order.

        Folders named like a bulk file are taken as unpacked ones and not entered: listing the 70 or so
        files in each of 80,000 of them would take longer than reading the headers.
        """
        waiting, seen = [self.path], set[tuple[int, int]]()
        if self._local:
            seen.add(identity_of(Path(self.path)))
        while waiting:
            for name, path, is_folder, identity in self._list(waiting.pop()):
                match = _NAME.match(name)
                if match and is_folder == (match[5] is None):
                    yield BulkFile(match[1], int(match[2]), int(match[3]), path, not is_folder)
                elif is_folder and identity not in seen:
                    if identity is not None:  # linked folders may form a circle
                        seen.add(identity)
                    waiting.append(path)

    def _list(self, folder: str) -> Iterator[tuple[str, str, bool, tuple[int, int] | None]]:
        try:
            if not self._local:
                for info in self._fs.get_file_info(pafs.FileSelector(folder)):
                    yield info.base_name, info.path, info.type == pafs.FileType.Directory, None
                return
            for path in Path(folder).iterdir():
                if path.suffix.lower() == ".zip":  # spares a stat of each of 80,000 files on network storage
                    yield path.name, str(path), False, None
                elif path.is_dir():
                    yield path.name, str(path), True, identity_of(path)
        except OSError as error:
            fix = "make the folder readable, or move it out of the intake folder"
            raise DataError(f"folder cannot be listed: {error}", file=folder, fix=fix) from error

    def open(self, path: str) -> Any:
        """A binary file handle with read, seek and tell."""
        return Path(path).open("rb") if self._local else self._fs.open_input_file(path)

    def probe(self, found: BulkFile, modality: str) -> Probe:
        """Read one header: the zip's directory and the first bytes of the member, or of the plain file.

        Raises:
            ScanError: with the reason code of what is wrong; nothing else.
        """
        member = FIELDS[modality].member
        uri = self._uri_of(found.path)
        where = f"{uri}:{member}" if found.packed else f"{uri}/{member}"
        try:
            if found.packed:
                return self._probe_zip(found, modality, uri, member, where)
            return self._probe_plain(found, modality, where, f"{found.path}/{member}")
        except (ScanError, StorageError):
            raise
        except Exception as error:  # zipfile raises many kinds on damage; none may stop an intake
            kind = "zip" if found.packed else "file"
            problem = f"{kind} cannot be read: {error or type(error).__name__}"
            raise UnreadableArchive(problem, file=where, subject=found.eid, fix="deliver it again") from error

    def _uri_of(self, path: str) -> str:
        """The URI of a path of this folder's file system."""
        return path if self._local else self.uri + path.removeprefix(self.path)

    def _probe_zip(self, found: BulkFile, modality: str, uri: str, member: str, where: str) -> Probe:
        def unreadable(problem: str) -> UnreadableArchive:
            return UnreadableArchive(problem, file=where, subject=found.eid, fix="deliver it again")

        with closing(self.open(found.path)) as handle:
            length = handle.seek(0, 2)
            if length == 0:
                raise unreadable("zip is empty (0 bytes)")
            try:
                archive = zipfile.ZipFile(handle)
            except zipfile.BadZipFile as error:
                handle.seek(0)
                cut = handle.read(4) == b"PK\x03\x04"
                problem = "zip is cut short: it has no directory at its end" if cut else f"not a zip: {error}"
                raise unreadable(problem) from error
            with archive:
                try:
                    info = archive.getinfo(member)
                except KeyError:
                    problem = f"archive holds no {member} (it holds {len(archive.namelist())} other files)"
                    raise MissingMember(problem, file=uri, subject=found.eid) from None
                if info.header_offset + info.compress_size > length:
                    raise unreadable("zip is cut short: its directory points past its end")
                if info.file_size > info.compress_size * DEFLATE_MAX_RATIO + DEFLATE_MAX_RATIO:
                    raise unreadable("zip directory gives an impossible size")
                with archive.open(info) as stream:
                    header = read_header(
                        stream, size=info.file_size, gzipped=True, file=where, subject=found.eid
                    )
        scan = scan_of(header, modality, uri, size=info.file_size, member=member, crc32=info.CRC)
        return Probe(scan, header.affine)

    def _probe_plain(self, found: BulkFile, modality: str, uri: str, path: str) -> Probe:
        info = self._fs.get_file_info(path)
        if info.type != pafs.FileType.File:
            problem = f"unpacked folder holds no {FIELDS[modality].member}"
            raise MissingMember(problem, file=self._uri_of(found.path), subject=found.eid)
        with closing(self.open(path)) as stream:
            header = read_header(stream, size=info.size, gzipped=True, file=uri, subject=found.eid)
        return Probe(scan_of(header, modality, uri, size=info.size, mtime=mtime_of(info)), header.affine)
