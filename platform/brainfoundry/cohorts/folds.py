"""Folds from a list: the published five of BraTS 2021, or a table `subject_id,fold` of the user's own.

A list speaks of subjects; all sessions of one go together. A subject in two folds, a fold that does not
exist and a subject that the cohort does not have are refused with file, subject and fix; nothing is written.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.cohorts.splits import Assignment, Part, record_of
from brainfoundry.cohorts.tables import read_lines, subject_column
from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError, DataError

PUBLISHED = ("brats21",)
PUBLISHED_FOLDS = 5
# Later challenges number their cases anew, so only the names of 2021 are matched.
_BRATS21 = re.compile(r"BraTS2021_(\d{5})")


@dataclass(frozen=True, kw_only=True)
class Listed:
    """What a list says of a cohort.

    Args:
        parts: subject -> (split, fold), for every included subject; ("", None) where the list is silent.
        unlisted: included subjects on which the list is silent.
        unknown: names in the list that the cohort does not have.
        excluded: names in the list whose sessions are all excluded in the cohort.
        record: for `ManifestMeta.splits`.
    """

    parts: Assignment
    unlisted: tuple[str, ...]
    unknown: tuple[str, ...]
    excluded: tuple[str, ...]
    record: Mapping[str, Any]

    def notes(self) -> list[str]:
        """Sentences on everybody the list and the cohort do not share."""
        told = (
            (self.unlisted, "of the cohort are not in the list: in no split"),
            (self.unknown, "of the list are not in the cohort"),
            (self.excluded, "of the list are excluded in the cohort"),
        )
        return [f"{len(who):,} subjects {what}: {some(who)}" for who, what in told if who]


def some(names: Iterable[str]) -> str:
    """The first few names."""
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def place(parts: dict[str, Part], subject: str, part: Part, file: str) -> None:
    """Put a subject into a part.

    Raises:
        DataError: it is in another one already.
    """
    before = parts.setdefault(subject, part)
    if before != part:
        raise DataError(
            f"sessions of one subject are in two folds or splits: {part_name(before)} and {part_name(part)}",
            file=file,
            subject=subject,
            fix="keep all its sessions in one: scans of one person in two folds are a leak",
        )


def part_name(part: Part) -> str:
    """Such as "train", "fold 3"."""
    return part[0] or "no split" if part[1] is None else f"fold {part[1]}"


def settle(
    parts: Mapping[str, Part],
    manifest: Manifest,
    *,
    file: str,
    settings: Mapping[str, Any],
    ignore_unknown: bool = False,
    unknown: Iterable[str] = (),
) -> Listed:
    """Hold a list's parts against a cohort.

    Args:
        settings: of the record: what the list is.
        ignore_unknown: report names that the cohort does not have, instead of refusing the list.
        unknown: names that were not even matched to a subject.

    Raises:
        DataError: unknown names, or none that is known.
    """
    table = manifest.table.select(["subject", "verdict"])
    known = {False: set[str](), True: set[str]()}
    for row in table.to_pylist():
        known[row["verdict"] == "included"].add(row["subject"])
    included = known[True]
    strangers = tuple(sorted({*unknown, *(s for s in parts if s not in included | known[False])}))
    if strangers and not ignore_unknown:
        raise DataError(
            f"list names {len(strangers):,} subjects that the cohort does not have: {some(strangers)}",
            file=file,
            subject=strangers[0],
            fix="correct the names, or pass --ignore-unknown to go on without them",
        )
    if not included & set(parts):
        raise DataError(
            "list names no subject of this cohort",
            file=file,
            subject=min(included, default=None),
            fix="name subjects as the manifest does",
        )
    whole: dict[str, Part] = {subject: parts.get(subject, ("", None)) for subject in sorted(included)}
    return Listed(
        parts=whole,
        unlisted=tuple(s for s in whole if s not in parts),
        unknown=strangers,
        excluded=tuple(sorted(set(parts) & (known[False] - included))),
        record=record_of(whole, settings),
    )


# ---------------------------------------------------------------------------------------------------------
# Published folds


def case_number(subject: str) -> int | None:
    """The case number in a BraTS 2021 subject's name: BraTS2021_00000 -> 0; None for other names."""
    match = _BRATS21.fullmatch(subject)
    return int(match.group(1)) if match else None


def published_cases(name: str = "brats21") -> dict[int, int]:
    """Case number -> fold of a published division (its file names the source); 0 to 4 are the paper's 1 to 5.

    Raises:
        ConfigError: one that is not shipped.
    """
    if name not in PUBLISHED:
        raise ConfigError(f"no published folds {name!r}", fix=f"choose of {', '.join(PUBLISHED)}")
    text = (resources.files("brainfoundry.cohorts") / "data" / f"{name}_folds.csv").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {int(row["case"]): int(row["fold"]) for row in csv.DictReader(lines)}


def published_folds(manifest: Manifest, name: str = "brats21") -> Listed:
    """The published folds of a cohort's subjects, all of whom are training subjects.

    Cases that the cohort does not have are no fault of it; subjects that are no case of the list are in no
    split.

    Raises:
        DataError: no subject of the cohort is in the list.
    """
    cases = published_cases(name)
    parts: dict[str, Part] = {}
    for subject in manifest.table["subject"].unique().to_pylist():
        fold = cases.get(-1 if (case := case_number(subject)) is None else case)
        if fold is not None:
            parts[subject] = ("train", fold)
    settings = {"method": "published", "source": name, "folds": PUBLISHED_FOLDS}
    return settle(parts, manifest, file=f"the published folds {name}", settings=settings)


# ---------------------------------------------------------------------------------------------------------
# Lists of the user's own


def checked_fold(text: Any, n_folds: int, *, file: str, subject: str) -> int:
    """A fold's number.

    Raises:
        DataError: no number, or none of 0 to n_folds - 1.
    """
    try:
        fold = int(str(text).strip())
    except ValueError:
        fold = -1
    if not 0 <= fold < n_folds:
        raise DataError(
            f"fold {str(text).strip()!r}: the {n_folds} folds are 0 to {n_folds - 1}",
            file=file,
            subject=subject,
            fix="correct the list, or say how many folds it has with --folds",
        )
    return fold


def read_fold_list(uri: str, n_folds: int = PUBLISHED_FOLDS) -> dict[str, Part]:
    """Subject -> ("train", fold) of a table with a subject and a fold column; one line a subject or session.

    Raises:
        DataError: no such columns, a fold that does not exist, or a subject in two folds.
    """
    uri = files.absolute(uri)
    parts: dict[str, Part] = {}
    key = ""
    for number, cells in read_lines(uri):
        if not key:
            key = subject_column(cells, uri)
            if "fold" not in cells:
                raise DataError("fold list has no column fold", file=uri, fix="write subject_id,fold lines")
        subject = cells.get(key, "")
        if not subject:
            raise DataError(f"line {number} names no subject", file=uri, fix="write subject_id,fold lines")
        fold = checked_fold(cells.get("fold", ""), n_folds, file=uri, subject=subject)
        place(parts, subject, ("train", fold), uri)
    return parts


def write_fold_list(uri: str, folds: Mapping[str, int]) -> None:
    """Write subject -> fold as a table `subject_id,fold`."""
    sink = io.StringIO()
    csv.writer(sink, lineterminator="\n").writerows([("subject_id", "fold"), *sorted(folds.items())])
    files.write_bytes(uri, sink.getvalue().encode())


def file_source(uri: str) -> dict[str, str]:
    """A list's name and digest, for the record."""
    return {"source": files.absolute(uri), "source_sha256": hashlib.sha256(files.read_bytes(uri)).hexdigest()}


def folds_of(parts: Assignment) -> dict[str, int]:
    """Subject -> fold, of those that have one."""
    return {subject: fold for subject, (_, fold) in parts.items() if fold is not None}
