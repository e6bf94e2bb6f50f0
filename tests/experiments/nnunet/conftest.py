"""A tiny cohort with masks, folds and few-shot subsets, and its export."""

from pathlib import Path

import pytest

from brainfoundry.experiments.nnunet.cases import Selection
from brainfoundry.experiments.nnunet.export import Export, export_dataset, plan_export
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.shard_task import ConvertSpec
from tests.store.builders import brats_intake, put_brats
from tests.training.labelled import make_labelled, with_shares


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of `labelled.make_labelled` with shares of 50 %: folds 0 to 2 of cases 1 to 7; 8 is val, 9 test."""
    folder: Path = tmp_path_factory.mktemp("nnunet")
    return with_shares(make_labelled(folder), folder)


@pytest.fixture
def exported(shards: str, tmp_path: Path) -> Export:
    """Fold 0 (cases 3 and 6) held out and tested."""
    selection = Selection(shards=shards, fold=0, test="fold")
    return export_dataset(plan_export(selection, str(tmp_path / "nnunet")))


@pytest.fixture(scope="session")
def small_unlabelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a shard set without masks."""
    folder: Path = tmp_path_factory.mktemp("unlabelled")
    put_brats(folder / "brats", 1, None)
    manifest = brats_intake(folder / "brats", labels="ignore")
    convert(manifest, str(folder / "shards"), ConvertSpec(min_slices=10), executor=inline)
    return str(folder / "shards")
