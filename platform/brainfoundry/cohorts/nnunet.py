"""nnU-Net's `splits_final.json`, read and written: `[{"train": [case, ...], "val": [case, ...]}, ...]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from brainfoundry.cohorts.folds import place
from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.cohorts.rows import Row
from brainfoundry.cohorts.splits import Part
from brainfoundry.core import files
from brainfoundry.core.errors import DataError


def read_nnunet(uri: str) -> list[dict[str, list[str]]]:
    """Read `splits_final.json`.

    Raises:
        DataError: not of its shape, a case that a fold both trains and validates on.
    """
    uri = files.absolute(uri)
    value = files.read_json(uri)
    fix = 'write [{"train": [case, ...], "val": [case, ...]}, ...], one entry a fold'
    if not isinstance(value, list) or not value:
        raise DataError("not an nnU-Net splits file: it holds no list of folds", file=uri, fix=fix)
    for number, fold in enumerate(value):
        lists = [fold.get(name) for name in ("train", "val")] if isinstance(fold, dict) else [None]
        if not all(isinstance(cases, list) and all(isinstance(c, str) for c in cases) for cases in lists):
            raise DataError(f"fold {number} has no lists train and val", file=uri, fix=fix)
        both = set(fold["train"]) & set(fold["val"])
        if both:
            raise DataError(
                f"fold {number} both trains and validates on it", file=uri, subject=min(both), fix="keep one"
            )
    return value


def case_of(row: Row) -> str:
    """A session's nnU-Net case identifier, as its files are named: BraTS-GLI-00000-000, sub-01_ses-1."""
    if not row.session:
        return row.subject
    return f"{row.subject}{'_ses-' if row.subject.startswith('sub-') else '-'}{row.session}"


def write_nnunet(uri: str, manifest: Manifest) -> int:
    """Write a manifest's folds as `splits_final.json`: cases are sessions. Without folds: one, train and val.

    Returns:
        How many folds were written.

    Raises:
        DataError: there are neither folds nor a validation split.
    """
    rows = [row for row in manifest.rows(included_only=True) if row.split in ("train", "val")]
    folds = sorted({row.fold for row in rows if row.fold is not None})
    if folds:
        dealt = [row for row in rows if row.fold is not None]
        value = [
            {
                "train": [case_of(row) for row in dealt if row.fold != fold],
                "val": [case_of(row) for row in dealt if row.fold == fold],
            }
            for fold in folds
        ]
    elif any(row.split == "val" for row in rows):
        value = [{s: [case_of(row) for row in rows if row.split == s] for s in ("train", "val")}]
    else:
        raise DataError("manifest has neither folds nor a val split", file=manifest.meta.source,
                        fix="split the cohort with --folds or --val first")  # fmt: skip
    files.write_json(uri, value)
    return len(value)


def parts_of_nnunet(
    folds: Sequence[Mapping[str, Sequence[str]]], manifest: Manifest, *, file: str
) -> tuple[dict[str, Part], list[str]]:
    """Subject -> (split, fold), and the cases that fit no subject. One fold alone is train and val.

    Raises:
        DataError: a subject in two validation folds, or in train and val of one fold by different sessions.
    """
    names = {row.subject: row.subject for row in manifest.rows()}
    for row in manifest.rows():
        if row.session:
            names |= {f"{row.subject}{by}{row.session}": row.subject for by in ("-", "_", "_ses-")}
    parts: dict[str, Part] = {}
    unknown: dict[str, None] = {}
    for number, fold in enumerate(folds):
        part: Part = ("val", None) if len(folds) == 1 else ("train", number)
        for case in fold["val"]:
            if case in names:
                place(parts, names[case], part, file)
            else:
                unknown[case] = None
    for number, fold in enumerate(folds):
        held = ("val", None) if len(folds) == 1 else ("train", number)
        for case in fold["train"]:
            if case not in names:
                unknown[case] = None
            elif parts.setdefault(names[case], ("train", None)) == held:
                place(parts, names[case], ("train", None), file)  # its other session is validated on: refused
    return parts, list(unknown)
