"""MONAI datalists, read and written; and any other tool's list of a cohort, as parts of a manifest.

A datalist is `{"training": [{"image": path or paths, "label": path, "fold": k}], "validation": [...],
"test": [...]}`. Its entries are files; what comes out here is one (split, fold) a subject of the manifest.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from brainfoundry.cohorts.folds import (
    PUBLISHED_FOLDS,
    Listed,
    checked_fold,
    file_source,
    place,
    read_fold_list,
    settle,
    some,
)
from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.cohorts.nnunet import parts_of_nnunet, read_nnunet
from brainfoundry.cohorts.rows import Row, Scan
from brainfoundry.cohorts.splits import Part
from brainfoundry.core import files
from brainfoundry.core.errors import DataError

SECTIONS = {"training": "train", "validation": "val", "test": "test"}
"""Section of a datalist -> split."""
_OTHER_NAMES = {"train": "training", "val": "validation", "testing": "test"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One case of a datalist.

    Args:
        section: "training", "validation" or "test".
        images: paths in channel order; a lone string in the file is one path.
        fold: as the file has it, unchecked; None without.
        listed: True where the file gives `image` as a list, to be written so again.
        extra: the entry's other keys.
    """

    section: str
    images: tuple[str, ...]
    label: str | None = None
    fold: Any = None
    listed: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the file has it."""
        value: dict[str, Any] = {"image": list(self.images) if self.listed else self.images[0]}
        if self.label is not None:
            value["label"] = self.label
        if self.fold is not None:
            value["fold"] = self.fold
        return value | dict(self.extra)


@dataclass(frozen=True, kw_only=True)
class Datalist:
    """A MONAI datalist: its entries in the file's order, and the other keys of the file."""

    entries: tuple[Entry, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the file has it."""
        sections: dict[str, list[dict[str, Any]]] = {}
        for entry in self.entries:
            sections.setdefault(entry.section, []).append(entry.to_json())
        return {**self.extra, **sections}


def read_datalist(uri: str) -> Datalist:
    """Read a MONAI datalist; `test` entries may be bare paths, as in the Medical Segmentation Decathlon.

    Raises:
        DataError: no JSON, no section, or an entry without an image.
    """
    uri = files.absolute(uri)
    value = files.read_json(uri)
    fix = 'write {"training": [{"image": ..., "label": ..., "fold": 0}, ...]}'
    if not isinstance(value, dict):
        raise DataError("not a MONAI datalist: the file holds no named sections", file=uri, fix=fix)
    entries, extra = [], {}
    for name, content in value.items():
        section = _OTHER_NAMES.get(name, name)
        if section not in SECTIONS or not isinstance(content, list):
            extra[name] = content
            continue
        for number, item in enumerate(content):
            item = {"image": item} if isinstance(item, str) else item
            image = item.get("image") if isinstance(item, dict) else None
            images = [image] if isinstance(image, str) else image
            if not isinstance(images, list) or not images or not all(isinstance(i, str) for i in images):
                raise DataError(f"entry {number} of {name!r} names no image", file=uri, fix=fix)
            rest = {k: v for k, v in item.items() if k not in ("image", "label", "fold")}
            entries.append(
                Entry(
                    section=section,
                    images=tuple(images),
                    label=item.get("label"),
                    fold=item.get("fold"),
                    listed=not isinstance(image, str),
                    extra=rest,
                )
            )
    if not entries:
        raise DataError("datalist has no entry in training, validation or test", file=uri, fix=fix)
    return Datalist(entries=tuple(entries), extra=extra)


def write_datalist(uri: str, datalist: Datalist) -> None:
    """Write it as MONAI reads it."""
    files.write_bytes(uri, (json.dumps(datalist.to_json(), indent=1) + "\n").encode())


def datalist_of(manifest: Manifest, *, root: str = "") -> Datalist:
    """The datalist of a manifest's included sessions, images in the manifest's order of modalities.

    Sessions in no split are left out. Every entry names its subject and session too.

    Args:
        root: folder (MONAI's `base_dir`) below which paths are written; "": whole paths.

    Raises:
        DataError: scans inside archives, which MONAI does not read, a session without one of the modalities,
            or nobody is in a split.
    """
    of = {split: section for section, split in SECTIONS.items()}
    entries = []
    for row in manifest.rows(included_only=True):
        if row.split:
            scans = {scan.modality: scan for scan in row.scans}
            lacks = [name for name in manifest.meta.modalities if name not in scans]
            if lacks:
                raise DataError(
                    f"session has no {', '.join(lacks)}: MONAI's lists have no place for a missing channel",
                    file=manifest.meta.source,
                    subject=row.subject,
                    fix="prepare the cohort without optional modalities, and write the datalist of that",
                )
            images = tuple(_path(scans[name], row, root) for name in manifest.meta.modalities)
            label = None if row.label is None else _path(row.label, row, root)
            extra = {"subject": row.subject} | ({"session": row.session} if row.session else {})
            entries.append(
                Entry(
                    section=of[row.split],
                    images=images,
                    label=label,
                    fold=row.fold,
                    listed=len(manifest.meta.modalities) > 1,
                    extra=extra,
                )
            )
    if not entries:
        raise DataError("no session is in a split", file=manifest.meta.source, fix="split the cohort first")
    modality = {str(channel): name for channel, name in enumerate(manifest.meta.modalities)}
    about = {"name": manifest.meta.cohort, "modality": modality}
    return Datalist(entries=tuple(sorted(entries, key=_section_order)), extra=about)


def _section_order(entry: Entry) -> int:
    return list(SECTIONS).index(entry.section)


def _path(scan: Scan, row: Row, root: str) -> str:
    if scan.member:
        raise DataError(
            "a datalist names files, and this scan lies inside an archive",
            file=scan.uri,
            subject=row.subject,
            fix="unpack the archives, make the manifest of the folder, and write the datalist of that",
        )
    return os.path.relpath(scan.uri, files.absolute(root)) if root and files.is_local(scan.uri) else scan.uri


# ---------------------------------------------------------------------------------------------------------
# From paths to subjects


class PathIndex:
    """Finds the subject a path belongs to, by the end of a manifest's URIs or by the subject's name in it."""

    def __init__(self, manifest: Manifest) -> None:
        self._subjects = set(manifest.table["subject"].to_pylist())
        self._tails: dict[str, set[tuple[str, str]]] = defaultdict(set)
        for row in manifest.rows():
            for scan in (*row.scans, *((row.label,) if row.label else ())):
                uri = scan.uri.removeprefix("file://")
                self._tails[PurePosixPath(uri).name].add((uri, row.subject))

    def subject(self, path: str) -> str | None:
        """The subject; None where nothing fits, or several do."""
        clean = path.replace("\\", "/").removeprefix("file://")
        parts = [part for part in clean.split("/") if part not in ("", ".", "..")]
        # As many of the path's last components as the candidates share: the longest agreement wins.
        best: dict[int, set[str]] = defaultdict(set)
        for uri, subject in self._tails.get(parts[-1] if parts else "", ()):
            shared = 0
            for mine, theirs in zip(reversed(parts), reversed(uri.split("/")), strict=False):
                if mine != theirs:
                    break
                shared += 1
            # What they share must say who it is: t1.nii.gz alone is everybody's.
            if shared == len(parts) or subject in _names("/".join(parts[-shared:])):
                best[shared].add(subject)
        found = best[max(best)] if best else set()
        if not found:
            named = [_names(part) & self._subjects for part in parts]
            # Of 01 and sub-01 the longer; a file of p1 and p2 is neither's.
            found = {s for names in named for s in names if not any(s in t and s != t for t in names)}
        return next(iter(found)) if len(found) == 1 else None


def _names(text: str) -> set[str]:
    """Every name in a text that begins and ends between words: of sub-01_T1w.nii.gz also 01 and sub-01."""
    edges = [match.end() for match in re.finditer(r"^|[-_./]", text)]
    return {
        text[start : stop - 1] for i, start in enumerate(edges) for stop in (*edges[i + 1 :], len(text) + 1)
    }


def parts_of_datalist(
    datalist: Datalist, manifest: Manifest, *, file: str, n_folds: int = PUBLISHED_FOLDS
) -> tuple[dict[str, Part], list[str]]:
    """Subject -> (split, fold) of a datalist's entries, and the paths that fit no subject.

    Raises:
        DataError: an entry of two subjects, a subject in two folds or splits, or a fold that does not exist.
    """
    index = PathIndex(manifest)
    known = set(manifest.table["subject"].to_pylist())
    parts: dict[str, Part] = {}
    unknown = []
    for number, entry in enumerate(datalist.entries):
        named = entry.extra.get("subject")
        paths = (*entry.images, *((entry.label,) if isinstance(entry.label, str) else ()))
        found = {str(named)} if named in known else {index.subject(path) for path in paths} - {None}
        if len(found) > 1:
            who = sorted(map(str, found))
            raise DataError(
                f"entry {number} ({entry.section}) mixes files of several subjects: {some(who)}",
                file=file,
                subject=who[0],
                fix="give each subject an entry of its own",
            )
        subject = next(iter(found), None)
        fold = None
        if entry.fold is not None:
            fold = checked_fold(entry.fold, n_folds, file=file, subject=subject or entry.images[0])
        if subject is None:
            unknown.append(str(named or entry.images[0]))
        else:
            place(parts, subject, (SECTIONS[entry.section], fold), file)
    return parts, unknown


def read_parts(
    uri: str, manifest: Manifest, *, n_folds: int = PUBLISHED_FOLDS, ignore_unknown: bool = False
) -> Listed:
    """Whatever list a file is, as parts of a cohort: MONAI datalist, nnU-Net splits (JSON), or a fold table.

    Raises:
        DataError: see the readers; names that the cohort does not have, unless `ignore_unknown`.
    """
    uri = files.absolute(uri)
    unknown: Iterable[str] = ()
    if uri.lower().endswith(".json"):
        if isinstance(files.read_json(uri), list):
            kind = "nnunet"
            parts, unknown = parts_of_nnunet(read_nnunet(uri), manifest, file=uri)
        else:
            kind = "datalist"
            parts, unknown = parts_of_datalist(read_datalist(uri), manifest, file=uri, n_folds=n_folds)
    else:
        kind, parts = "fold list", read_fold_list(uri, n_folds)
    settings = {"method": kind, **file_source(uri)}
    return settle(
        parts, manifest, file=uri, settings=settings, ignore_unknown=ignore_unknown, unknown=unknown
    )
