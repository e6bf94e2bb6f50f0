"""Real shard sets of tiny volumes in any cohort's name, and checkpoints whose ancestors are real too."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from brainfoundry.cohorts.manifest import read_manifest, write_manifest
from brainfoundry.cohorts.ukb_files import FIELDS
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.shard_task import ConvertSpec
from brainfoundry.training import checkpoint
from brainfoundry.training.seen import encode_seen, own_scans, seen_table
from tests.store.builders import AFFINE, brain, intake, nifti
from tests.training.test_checkpoint import MODEL, STATE, card

SHAPE = (36, 40, 34)


def image(seed: int) -> bytes:
    """A NIfTI file of a made-up brain."""
    return nifti(brain(seed, SHAPE))


def disguised(data: bytes) -> bytes:
    """The same image with another header: texts, code of the space, origin, and int32 with a slope."""
    source = nibabel.Nifti1Image.from_bytes(data)
    affine = AFFINE.copy()
    affine[:3, 3] += 11
    other = nibabel.Nifti1Image(np.asarray(source.dataobj).astype(np.int32), affine)
    other.header["descrip"] = b"somebody else"
    other.header.set_slope_inter(0.5, 0)
    return other.to_bytes()


def turned(data: bytes) -> bytes:
    """The same image with the axes renamed: its header claims that the stored axes run otherwise."""
    source = nibabel.Nifti1Image.from_bytes(data)
    return nibabel.Nifti1Image(np.asarray(source.dataobj).transpose(1, 2, 0)[::-1].copy(), AFFINE).to_bytes()


def make_set(
    folder: Path,
    cohort: str,
    images: Mapping[str, bytes],
    split: Mapping[str, str] | None = None,
    fold: Mapping[str, int] | None = None,
    level: int = 6,
    sex: Mapping[str, str] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> ShardSet:
    """Convert T1w images by subject, split and folds assigned beforehand (default: all train).

    Args:
        recipe: of few-shot subsets.
    """
    source = folder / "source"
    source.mkdir(parents=True)
    field = FIELDS["T1w"]
    for subject, data in images.items():
        with zipfile.ZipFile(source / f"{subject}_{field.field}_2_0.zip", "w") as out:
            out.writestr(field.member, gzip.compress(data, level))
    found = intake(source, min_slices=10, modalities=("T1w",))
    rows = [
        replace(
            row,
            cohort=cohort,
            split=(split or {}).get(row.subject, "train"),
            fold=(fold or {}).get(row.subject),
            sex=(sex or {}).get(row.subject, row.sex),
        )
        for row in found.rows()
    ]
    uri = str(folder / "intake.parquet")
    splits = {"few_shot": dict(recipe)} if recipe else {}
    write_manifest(uri, rows, replace(found.meta, cohort=cohort, splits=splits))
    convert(read_manifest(uri), str(folder / "set"), ConvertSpec(min_slices=10), executor=inline)
    return ShardSet.open(str(folder / "set"))


def make_checkpoint(
    folder: Path, shards: ShardSet, *, run: str, stage: str, parents: Sequence[str] = (), **options: Any
) -> str:
    """A checkpoint of a run on a shard set, with its card, its parents and its table of seen scans."""
    own = own_scans(shards, ("T1w",), run=run, stage=stage, **options)
    seen = encode_seen(seen_table(own, parents), parents)
    fields = card(
        run=run,
        stage=stage,
        parents=tuple(parents),
        modalities=("T1w",),
        manifest_hash=shards.meta.manifest_hash,
    )
    return checkpoint.save(str(folder / run / "checkpoints"), fields, MODEL, STATE, seen)
