"""The cohorts of a demo study, made when somebody runs one without data of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

from brainfoundry.cohorts.few_shot import few_shot_recipe
from brainfoundry.cohorts.manifest import read_manifest
from brainfoundry.cohorts.splits import SplitSpec, split_subjects
from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.experiments.study import StudySpec
from brainfoundry.store.demo import ensure_demo_atlas, ensure_demo_brats, ensure_demo_shards
from brainfoundry.store.meta import manifest_uri, meta_uri
from brainfoundry.store.resplit import resplit

_LABELLED = {"brats": ensure_demo_brats, "atlas": ensure_demo_atlas}
SPLIT = SplitSpec(test=4, val=2, folds=2)
"""Of the dozen labelled demo cases: four to test on, two to choose checkpoints by, six to train on."""
FEW_SHOT = few_shot_recipe(shares=(5, 10, 20, 40, 50, 100))


def demo_cohorts(spec: StudySpec, folder: Path, *, make: bool = True) -> dict[str, str]:
    """The shard sets of a study's cohorts below a demo folder; what is not there is made.

    Args:
        folder: such as `$BRAINFOUNDRY_HOME/demo`.
        make: False only looks.

    Raises:
        DataError: one is not there and `make` is False.
    """
    recipes = {run.cohort: run.recipe for run in spec.runs}
    try:
        return {name: _made(recipe, folder, make=make) for name, recipe in recipes.items()}
    except DataError as error:
        if make:
            raise
        fix = "leave out --dry-run: the study makes them; or name your own shard sets with --cohorts"
        raise DataError("the demo cohorts are not made yet", file=error.file, fix=fix) from None


def is_demo(spec: StudySpec) -> bool:
    """Whether every run of a study is of the demo preset."""
    return all(run.preset == "demo" for run in spec.runs)


def _made(recipe: str, folder: Path, *, make: bool) -> str:
    return ensure_demo_shards(folder, make=make) if recipe == "ukb" else _split(recipe, folder, make=make)


def _split(recipe: str, folder: Path, *, make: bool) -> str:
    """A copy of a labelled demo shard set with a test split, folds and few-shot subsets.

    The demo's own has none of them, and a new split of it would be another cohort to runs that began on it.
    """
    final = folder / f"study-{recipe}-shards"
    if files.exists(meta_uri(str(final))):
        return str(final)
    if not make:
        raise DataError("there is no demo cohort for studies yet", file=final)
    source = _LABELLED[recipe](folder)
    half = final.with_name(f".{final.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(source, half)
    split = split_subjects(read_manifest(manifest_uri(str(half))), SPLIT)
    resplit(str(half), split.parts, {**split.record, "few_shot": FEW_SHOT})
    half.rename(final)
    return str(final)
