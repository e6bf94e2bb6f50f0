"""A tiny cohort with masks, in BraTS's layout, and fine-tuned checkpoints of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from brainfoundry.cohorts.few_shot import few_shot_recipe
from brainfoundry.cohorts.manifest import read_manifest, rewrite_manifest
from brainfoundry.cohorts.splits import record_of
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.meta import manifest_uri
from brainfoundry.store.resplit import resplit
from brainfoundry.store.shard_task import ConvertSpec
from brainfoundry.training.finetune_config import FinetuneConfig
from brainfoundry.training.presets_finetune import BRATS_DEMO
from tests.store.builders import SHAPE, brats_intake, put_brats

CASES = 9


def tumour(case: int) -> np.ndarray:
    """A mask with three nested labels, elsewhere in each case; the last case has no enhancing part."""
    mask = np.zeros(SHAPE, np.uint8)
    x, y, z = 10 + case, 12 + case, 10 + case
    mask[x : x + 10, y : y + 10, z : z + 10] = 2
    mask[x + 2 : x + 7, y + 2 : y + 7, z + 2 : z + 7] = 1
    if case != CASES:
        mask[x + 3 : x + 6, y + 3 : y + 6, z + 3 : z + 6] = 4
    return mask


def make_labelled(folder: Path) -> str:
    """URI of a shard set: cases 1 to 9, FLAIR and T1w, folds 0 to 2; 8 is val and 9 test, both foldless."""
    for case in range(1, CASES + 1):
        put_brats(folder / "brats", case, tumour(case))
    brats_intake(folder / "brats")
    places = {8: ("val", None), 9: ("test", None)}

    def placed(row: Any) -> Any:
        case = int(row.subject[-1])
        split, fold = places.get(case, ("train", case % 3))
        return replace(row, split=split, fold=fold)

    rewrite_manifest(
        read_manifest(str(folder / "brats" / "intake.parquet")), str(folder / "split.parquet"), placed
    )
    spec = ConvertSpec(min_slices=10, rows_per_shard=4)
    convert(read_manifest(str(folder / "split.parquet")), str(folder / "shards"), spec, executor=inline)
    return str(folder / "shards")


def with_shares(shards: str, folder: Path) -> str:
    """A copy of a shard set, with few-shot subsets of 50 % of its training subjects, in two draws."""
    uri = str(folder / "shares")
    shutil.copytree(shards, uri)
    parts = {row.subject: (row.split, row.fold) for row in read_manifest(manifest_uri(uri)).rows()}
    recipe = few_shot_recipe(shares=(50, 100), draws=2)
    resplit(uri, parts, {**record_of(parts, {"method": "conversion"}), "few_shot": recipe})
    return uri


def configuration(storage: Path, shards: str, **changes: Any) -> FinetuneConfig:
    """A nano run of a few steps on the tiny cohort."""
    config = replace(
        BRATS_DEMO,
        name="tiny",
        storage=str(storage),
        data=replace(BRATS_DEMO.data, shards=shards, crop=(64, 32, 32)),
        optim=replace(BRATS_DEMO.optim, steps=4, warmup=1),
        cluster=replace(BRATS_DEMO.cluster, cpus_per_worker=0.5, threads=1),
        keep=replace(BRATS_DEMO.keep, validate_every=2, checkpoint_every=2, log_every=1, pictures=2),
        tracking=replace(BRATS_DEMO.tracking, uri=f"sqlite:///{storage}/mlflow.db"),
    )
    return replace(config, **changes)
