"""A small shard set of smooth made-up volumes in UK Biobank's layout, shared by the tests that train."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from brainfoundry.cohorts.ukb import UKBRules, read_ukb
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.shard_task import ConvertSpec
from tests.cohorts.builders import put_zip
from tests.training.labelled import make_labelled

SUBJECTS = 9
SHAPE = (72, 44, 40)


def volume(seed: int) -> bytes:
    """A blob with structure, zero outside, as a gzipped NIfTI."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    inside = sum(axis**2 for axis in grid) < 0.9
    texture = gaussian_filter(rng.normal(size=SHAPE), 3)
    data = np.where(inside, 800 + 4000 * texture + rng.normal(size=SHAPE) * 10, 0).astype(np.int16)
    return gzip.compress(nibabel.Nifti1Image(data, np.diag([-1.0, 1.0, 1.0, 1.0])).to_bytes(), 1)


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a shard set: 9 subjects, T1w and FLAIR, 72x44x40 voxels, 2 held out."""
    folder: Path = tmp_path_factory.mktemp("small")
    for i in range(SUBJECTS):
        for j, modality in enumerate(("T1w", "FLAIR")):
            put_zip(folder / "ukb", 9_900_001 + i, modality, volume(2 * i + j))
    intake = read_ukb(str(folder / "ukb"), str(folder / "intake.parquet"), UKBRules(min_slices=20))
    spec = ConvertSpec(min_slices=20, n_val=2, rows_per_shard=4)
    convert(intake, str(folder / "shards"), spec, executor=inline)
    return str(folder / "shards")


@pytest.fixture(scope="session")
def labelled_shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a shard set: 9 cases with masks, FLAIR and T1w (`labelled.make_labelled`)."""
    return make_labelled(tmp_path_factory.mktemp("labelled"))
