"""The bytes of a scan the manifest names: straight out of its zip, unpacked in memory, checked."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import pyarrow.fs as pafs
from isal import isal_zlib

from brainfoundry.cohorts.exclusions import ScanError, UnreadableArchive
from brainfoundry.cohorts.manifest import Scan
from brainfoundry.core import files
from brainfoundry.core.remote import StorageError
from brainfoundry.store.volume import DamagedData, Volume, decode_nifti

_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Of a zip's member, before its data: mark, and the lengths of the name and of what follows it."""
_GZIP = b"\x1f\x8b"
_SLACK = 64 << 20
"""Bytes beside the voxels that a file may hold: header extensions can be large, a gzip bomb is larger."""


def load_scan(scan: Scan, subject: str) -> Volume:
    """Read, decompress, check and decode one scan.

    The zip's CRC-32, gzip's own, and the identity and geometry the intake recorded are all checked.

    Raises:
        ScanError: with the reason code, whatever the bytes are.
        StorageError: the storage does not answer; nothing is known of the scan.
    """
    where = _where(scan)
    with _told(where, subject):
        packed = _read(scan, subject)
        voxels = int(np.prod(scan.shape)) * np.dtype(scan.dtype).itemsize
        data = gunzip(packed, voxels + _SLACK, file=where, subject=subject) if packed[:2] == _GZIP else packed
        volume = decode_nifti(data, modality=scan.modality, file=where, subject=subject)
    found = (volume.header.shape, volume.header.dtype)
    if found != (scan.shape, scan.dtype):
        raise _changed(f"it was {scan.shape} {scan.dtype} and is {found[0]} {found[1]}", where, subject)
    return volume


def read_scan(scan: Scan, subject: str) -> bytes:
    """The bytes of one scan as they lie there, gzipped or not, held against the intake's size and CRC-32.

    Raises:
        ScanError: with the reason code.
        StorageError: the storage does not answer; nothing is known of the scan.
    """
    with _told(_where(scan), subject):
        return _read(scan, subject)


@contextmanager
def _told(where: str, subject: str) -> Iterator[None]:
    """Whatever goes wrong inside is a ScanError: zipfile, isal and pyarrow raise many kinds, and none may
    cost more than this scan."""
    try:
        yield
    except (ScanError, StorageError):  # storage that is down says nothing about the scan
        raise
    except Exception as error:
        problem = f"cannot be read: {error or type(error).__name__}"
        raise DamagedData(problem, file=where, subject=subject, fix="deliver it again") from error


def _where(scan: Scan) -> str:
    return f"{scan.uri}:{scan.member}" if scan.member else scan.uri


def _read(scan: Scan, subject: str) -> bytes:
    read = _read_member if scan.member else _read_plain
    return read(scan, _where(scan), subject)


def _changed(how: str, where: str, subject: str) -> DamagedData:
    fix = "run the intake again, into a new shard set"
    return DamagedData(f"file has changed since the intake: {how}", file=where, subject=subject, fix=fix)


def _open(uri: str) -> tuple[Any, pafs.FileInfo]:
    fs, path = files.filesystem(uri)
    info = fs.get_file_info(path)
    if info.type != pafs.FileType.File:
        raise FileNotFoundError("the file is gone since the intake")
    return fs.open_input_file(path), info


def _read_plain(scan: Scan, where: str, subject: str) -> bytes:
    handle, info = _open(scan.uri)
    with closing(handle):
        if info.size != scan.size:
            raise _changed(f"it had {scan.size:,} bytes and has {info.size:,}", where, subject)
        return handle.read()


def _read_member(scan: Scan, where: str, subject: str) -> bytes:
    handle, _ = _open(scan.uri)
    with closing(handle):
        try:
            archive = zipfile.ZipFile(handle)
            info = archive.getinfo(scan.member)
        except (zipfile.BadZipFile, KeyError) as error:
            problem = f"zip cannot be read: {error}"
            raise UnreadableArchive(problem, file=where, subject=subject, fix="deliver it again") from error
        if (info.file_size, info.CRC) != (scan.size, scan.crc32):
            raise _changed("other size or CRC-32 in the zip directory", where, subject)
        data = _inflate_member(handle, info)
        return archive.read(info) if data is None else data  # checks the CRC-32, and says what is wrong


def _inflate_member(handle: Any, info: zipfile.ZipInfo) -> bytes | None:
    """The bytes of a deflated member, checked, faster than zipfile; None where anything is unusual."""
    if info.compress_type != zipfile.ZIP_DEFLATED or info.flag_bits & 1:
        return None
    handle.seek(info.header_offset)
    head = handle.read(_LOCAL_HEADER.size)
    if len(head) < _LOCAL_HEADER.size:
        return None
    magic, name, extra = _LOCAL_HEADER.unpack(head)
    handle.seek(info.header_offset + _LOCAL_HEADER.size + name + extra)
    packed = handle.read(info.compress_size)
    inflate = isal_zlib.decompressobj(wbits=-15)
    try:
        data = inflate.decompress(packed, info.file_size + 1)
    except isal_zlib.error:  # type: ignore[misc]  # the stub has it as a value
        return None
    whole = magic == b"PK\x03\x04" and inflate.eof and len(data) == info.file_size
    return data if whole and isal_zlib.crc32(data) == info.CRC else None


def gunzip(packed: bytes, limit: int, *, file: object, subject: str | None) -> bytes:
    """Decompress gzip, its checksums checked; several members in a row are joined.

    Args:
        limit: bytes at which to stop: more is taken for damage.

    Raises:
        DamagedData: damaged, cut short, or larger than `limit`.
    """
    parts: list[bytes] = []
    room = limit
    rest = packed
    # The last four bytes say how much there is. Asking for just that spares a copy, a third of the time.
    said = int.from_bytes(packed[-4:], "little")
    while rest[:2] == _GZIP:
        inflate = isal_zlib.decompressobj(wbits=31)
        try:
            part = inflate.decompress(rest, min(said, room) + 1)
            if inflate.unconsumed_tail and not inflate.eof:  # more than was said, or several members
                part += inflate.decompress(inflate.unconsumed_tail, room - len(part) + 1)
        except isal_zlib.error as error:  # type: ignore[misc]  # the stub has it as a value
            problem = f"gzip data is damaged: {error}"
            raise DamagedData(problem, file=file, subject=subject, fix="deliver it again") from error
        room -= len(part)
        if room < 0:
            problem = f"gzip data unpacks to more than the {limit:,} bytes its header allows"
            raise DamagedData(problem, file=file, subject=subject, fix="deliver it again")
        if not inflate.eof:
            problem = "gzip data is cut short"
            raise DamagedData(problem, file=file, subject=subject, fix="deliver it again")
        parts.append(part)
        rest = inflate.unused_data
    if not parts:
        raise DamagedData("not gzip data", file=file, subject=subject, fix="deliver it again")
    return parts[0] if len(parts) == 1 else b"".join(parts)
