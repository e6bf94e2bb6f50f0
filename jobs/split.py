#!/usr/bin/env python
"""Split a cohort by subject: train, val, test, folds and nested few-shot subsets.

Works on a manifest (before conversion) or on a finished shard set (no shard is rewritten). The split is a
pure function of which subjects there are, their strata and the seed, and is recorded in the manifest.

    python jobs/split.py --shards runs/demo/shards --test 0.2 --folds 5 --stratify sex,site
    python jobs/split.py --shards runs/brats/shards --published brats21 --test-fold 0
    python jobs/split.py --manifest intake.parquet --out split.parquet --test 100 --few-shot 5,10,20,40,100
    python jobs/split.py --shards runs/brats/shards --check
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from brainfoundry.cohorts.datalists import datalist_of, read_parts, write_datalist
from brainfoundry.cohorts.few_shot import few_shot_recipe, few_shot_subsets, write_few_shot
from brainfoundry.cohorts.folds import (
    PUBLISHED_FOLDS,
    file_source,
    folds_of,
    published_folds,
    write_fold_list,
)
from brainfoundry.cohorts.manifest import Manifest, read_manifest, write_manifest
from brainfoundry.cohorts.nnunet import write_nnunet
from brainfoundry.cohorts.splits import (
    Assignment,
    SplitSpec,
    hold_out,
    parse_size,
    placed,
    print_split,
    record_of,
    split_subjects,
    verify_split,
)
from brainfoundry.cohorts.strata import (
    AGE_BANDS,
    MANIFEST_COLUMNS,
    Columns,
    people_of,
    read_columns,
    strata_of,
)
from brainfoundry.core.errors import ConfigError
from brainfoundry.core.job import run_job
from brainfoundry.store.meta import manifest_uri
from brainfoundry.store.resplit import resplit


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    shards: str | None = None
    """Shard set to split: its manifest, index and fingerprints are rewritten, its shards are not."""
    manifest: str | None = None
    """Or a manifest to split; the new one goes to --out."""
    out: str | None = None
    """File (or URI) for the manifest with the split."""
    test: str = "0"
    """Subjects of the test set: a count, or a share such as 0.2 or 20%."""
    val: str = "0"
    """Subjects of the validation set, likewise."""
    folds: int = 0
    """Deal the training subjects to this many folds; with --from-datalist: how many the list has (5)."""
    stratify: tuple[str, ...] = ()
    """Columns to balance over the parts: sex, site, age (in bands), or columns of --table."""
    table: str | None = None
    """Table of your own with a subject column, for --stratify."""
    age_bands: tuple[float, ...] = AGE_BANDS
    """Years at which an age band begins (paper, Table 1: <45, 45-49, ..., >=65)."""
    min_stratum: int = 10
    """Strata of fewer subjects are pooled with their neighbours."""
    published: str | None = None
    """Or published folds: brats21, the five of the BraTS 2021 training set, by case number."""
    from_datalist: str | None = None
    """Or folds from a file: a MONAI datalist, nnU-Net's splits_final.json, or a table subject_id,fold."""
    ignore_unknown: bool = False
    """Go on where that file names subjects that the cohort does not have (they are reported)."""
    val_fold: int | None = None
    """Put this fold's subjects into val."""
    test_fold: int | None = None
    """Put this fold's subjects into test."""
    few_shot: tuple[float, ...] = ()
    """Sizes of nested few-shot subsets, per cent of the training subjects, such as 5,10,20,40,100."""
    draws: int = 5
    """Independent draws of each few-shot size."""
    seed: int = 0
    """Of everything drawn: the same seed and subjects give the same split."""
    write_datalist: str | None = None
    """Write the split as a MONAI datalist (plain files only: MONAI reads no archives)."""
    datalist_root: str = ""
    """Folder that the datalist's paths are relative to; empty: whole paths."""
    write_nnunet: str | None = None
    """Write the folds as nnU-Net's splits_final.json."""
    write_folds: str | None = None
    """Write the folds as a table subject_id,fold."""
    write_few_shot: str | None = None
    """Write the few-shot subsets as a table share,draw,subject_id."""
    replace: bool = False
    """Deal a shard set anew that is split already. Runs and studies on it are refused from then on, and who
    was tested may be trained on: to keep both, split a copy of the folder."""
    check: bool = False
    """Only hold the split against its record: exit status 1 where they differ."""
    dry_run: bool = False
    """Show the split; write nothing."""


def main(config: SplitConfig) -> int:
    if (config.shards is None) == (config.manifest is None):
        raise ConfigError("nothing to split, or too much", fix="name --shards or --manifest, one of them")
    manifest = read_manifest(manifest_uri(config.shards) if config.shards else str(config.manifest))
    own = [name for name in config.stratify if name not in MANIFEST_COLUMNS]
    columns = read_columns(config.table, own, people_of(manifest)) if config.table else {}
    if config.check:
        problems = verify_split(manifest, columns=columns)
        print("\n".join(problems) or "the split is what its record says")
        return 1 if problems else 0

    # --- who goes where
    parts, record, notes = choose(config, manifest, columns)
    refuse_to_replace(config, manifest, record)
    rows = [placed(row, parts) for row in manifest.rows()]
    strata = strata_of(
        people_of(rows), config.stratify, bands=config.age_bands, smallest=config.min_stratum, columns=columns
    )
    print_split(parts, strata.of if config.stratify else {})
    for note in notes:
        print(f"- {note}")
    subsets = few_shot_subsets(rows, record["few_shot"], columns) if "few_shot" in record else {}
    for (share, draw), subjects in subsets.items():
        if draw == 0:
            print(f"few-shot {share:g} %: {len(subjects):,} training subjects")
    if config.dry_run:
        print("dry run: nothing was written")
        return 0

    # --- written
    if config.shards:  # also where nothing is new: it finishes a split that was interrupted
        resplit(config.shards, parts, record)
        manifest = read_manifest(manifest_uri(config.shards))
        print(f"{config.shards}: manifest {manifest.hash[:12]}; no shard was rewritten")
    elif config.out:
        write_manifest(config.out, rows, replace(manifest.meta, splits=record))
        manifest = read_manifest(config.out)
        print(f"{config.out}: manifest {manifest.hash[:12]}")
    elif record != manifest.meta.splits:
        raise ConfigError("nowhere to write the split", fix="name the new manifest with --out, or --dry-run")

    # --- lists for other tools
    if config.write_datalist:
        datalist = datalist_of(manifest, root=config.datalist_root)
        write_datalist(config.write_datalist, datalist)
        print(f"MONAI datalist, {len(datalist.entries):,} entries: {config.write_datalist}")
    if config.write_nnunet:
        print(f"nnU-Net splits, {write_nnunet(config.write_nnunet, manifest)} folds: {config.write_nnunet}")
    if config.write_folds:
        write_fold_list(config.write_folds, folds_of(parts))
        print(f"fold list: {config.write_folds}")
    if config.write_few_shot:
        write_few_shot(config.write_few_shot, subsets)
        print(f"few-shot subsets, {len(subsets):,}: {config.write_few_shot}")
    return 0


def refuse_to_replace(config: SplitConfig, manifest: Manifest, record: dict[str, Any]) -> None:
    """Refuse (ConfigError) to lose the split, or the few-shot subsets, that a shard set has on record."""
    before = manifest.meta.splits
    if not (config.shards and before) or config.replace:
        return
    lost = [] if before.get("parts_sha256") == record.get("parts_sha256") else ["split"]
    lost += ["few-shot subsets"] if before.get("few_shot") and not record.get("few_shot") else []
    if lost:
        sizes = ", ".join(f"{n:,} {name}" for name, n in before.get("sizes", {}).items())
        raise ConfigError(
            f"the shard set has another {' and '.join(lost)} already ({sizes}), which this would replace",
            file=config.shards,
            fix="split a copy of the folder, or add --replace: what began on the old split is then refused",
        )


def choose(
    config: SplitConfig, manifest: Manifest, columns: Columns
) -> tuple[Assignment, dict[str, Any], list[str]]:
    """Parts, their record, and what to tell about them; the manifest's own where no split is asked for."""
    test, val = parse_size(config.test), parse_size(config.val)
    listed = [name for name in ("published", "from_datalist") if getattr(config, name)]
    dealt = bool(test or val or (config.folds and not config.from_datalist))
    if len(listed) + dealt > 1:
        raise ConfigError(
            "several ways to split at once: --published, --from-datalist, and sizes or --folds",
            fix="choose one",
        )
    if dealt:
        spec = SplitSpec(
            seed=config.seed, test=test, val=val, folds=config.folds, stratify=config.stratify,
            age_bands=config.age_bands, min_stratum=config.min_stratum,
            val_fold=config.val_fold, test_fold=config.test_fold,
        )  # fmt: skip
        split = split_subjects(manifest, spec, columns=columns)
        parts, record, notes = split.parts, dict(split.record), list(split.record["notes"])
    elif listed:
        if config.published:
            found = published_folds(manifest, config.published)
        else:
            found = read_parts(
                str(config.from_datalist), manifest, n_folds=config.folds or PUBLISHED_FOLDS,
                ignore_unknown=config.ignore_unknown,
            )  # fmt: skip
        parts = hold_out(found.parts, config.val_fold, config.test_fold)
        held = {"val_fold": config.val_fold, "test_fold": config.test_fold}
        record, notes = record_of(parts, {**found.record, **held}), found.notes()
    else:
        parts = {person.subject: person.part for person in people_of(manifest).values()}
        record, notes = dict(manifest.meta.splits), []
        if config.few_shot and not record:  # the conversion's own split, held by its digest from now on
            record = record_of(parts, {"method": "conversion"})
        if config.val_fold is not None or config.test_fold is not None:
            raise ConfigError(
                "a fold to hold out, and no folds", fix="add --folds, --published or --from-datalist"
            )
    if columns:
        record["table"] = file_source(str(config.table))
    if config.few_shot:
        record["few_shot"] = few_shot_recipe(
            seed=config.seed, shares=config.few_shot, draws=config.draws, stratify=config.stratify,
            age_bands=config.age_bands, min_stratum=config.min_stratum,
        )  # fmt: skip
    return parts, record, notes


if __name__ == "__main__":
    run_job(SplitConfig, main, description=__doc__)
