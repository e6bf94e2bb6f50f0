"""Fixtures of the store's tests; Ray comes from tests/conftest.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from brainfoundry.cohorts.exclusions import exclusion_table, write_exclusions
from brainfoundry.cohorts.manifest import Manifest, read_manifest, write_manifest
from brainfoundry.store.convert import convert, inline
from tests.store.builders import brain, brats_intake, intake, lesion, nifti, put, put_brats
from tests.store.withdrawals import SPEC, SUBJECTS, tumour


@pytest.fixture
def cohort(tmp_path: Path) -> Callable[[int], Manifest]:
    """Makes n participants with two int16 modalities and gives their intake manifest."""

    def make(n: int, first: int = 9_900_001) -> Manifest:
        for eid in range(first, first + n):
            put(tmp_path / "ukb", eid, {"T1w": nifti(brain(eid)), "FLAIR": nifti(brain(eid + 500, top=700))})
        return intake(tmp_path / "ukb")

    return make


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """Seven cases in four shards; of case 6 the voxels were refused, and a note names case 3."""
    folder = tmp_path_factory.mktemp("withdraw")
    for case in range(1, 8):
        put_brats(folder / "brats", case, lesion(5) if case == 6 else tumour(case))
    intake = brats_intake(folder / "brats")
    intake = replace(intake, meta=replace(intake.meta, notes=(f"{SUBJECTS[2]} looks odd",)))
    write_manifest(str(folder / "intake.parquet"), intake.rows(), intake.meta)
    intake = read_manifest(str(folder / "intake.parquet"))
    done = convert(intake, str(folder / "out"), SPEC, executor=inline)
    lines = exclusion_table(done.manifest.counts())
    write_exclusions(
        str(folder / "out" / "exclusions"), lines, title="Exclusions, converted", notes=intake.meta.notes
    )
    return folder / "out", intake


@pytest.fixture
def shards(made: tuple[Path, Manifest], tmp_path: Path) -> Path:
    """A copy to change, times of files included."""
    shutil.copytree(made[0], tmp_path / "set", copy_function=shutil.copy2)
    return tmp_path / "set"
