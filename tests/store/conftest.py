"""Fixtures of the store's tests; Ray comes from tests/conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from brainfoundry.cohorts.manifest import Manifest
from tests.store.builders import brain, intake, nifti, put


@pytest.fixture
def cohort(tmp_path: Path) -> Callable[[int], Manifest]:
    """Makes n participants with two int16 modalities and gives their intake manifest."""

    def make(n: int, first: int = 9_900_001) -> Manifest:
        for eid in range(first, first + n):
            put(tmp_path / "ukb", eid, {"T1w": nifti(brain(eid)), "FLAIR": nifti(brain(eid + 500, top=700))})
        return intake(tmp_path / "ukb")

    return make
